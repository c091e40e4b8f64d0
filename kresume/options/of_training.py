"""Lists the options of training: how much, at which rate, with which optimizer."""

from __future__ import annotations

from typing import Literal

from kresume.options.about import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, SEED, Options, option_of

AMOUNT, RATE = "How much", "Learning rate"


class TrainingOptions(Options):
    """How training goes on."""

    epochs: int | None = option_of(
        "How many more epochs. Default: by the share of new images, {default} for a new model.",
        AMOUNT,
        daily=True,
        metavar="N",
        range=AT_LEAST_1,
    )
    steps: int | None = option_of(
        "How many more steps, of one batch each; with --accumulate several are one update.",
        AMOUNT,
        metavar="N",
        range=AT_LEAST_1,
    )
    batch_size: int | None = option_of(
        "Images per step. Default {default}.", AMOUNT, daily=True, metavar="N", range=AT_LEAST_1, inherited=True
    )
    accumulate: int | None = option_of(
        "Batches whose gradients make one update. Default: as the checkpoint, 1 for a new optimizer.",
        AMOUNT, metavar="N", range=AT_LEAST_1, inherited=True, held=True,
    )  # fmt: skip
    watch: bool | None = option_of(
        "Look for new images in --data, --add and --val before each epoch and train on them; epochs grow, their number "
        "stays.",
        AMOUNT,
        inherited=True,
        may_differ=True,
    )
    steps_per_execution: int | None = option_of(
        "Steps that Keras runs per call: less overhead for small models; epochs and snapshots then end at multiples of it. "
        "Default: the model's own, else {default}.",
        AMOUNT,
        metavar="N",
        range=AT_LEAST_1,
        inherited=True,
    )
    seed: int | None = option_of(
        "Seed of the order, the augmentation and a new model's weights. Default {default}.",
        AMOUNT,
        metavar="N",
        range=SEED,
        inherited=True,
    )
    patience: int | None = option_of(
        "Stop after this many epochs without a better --monitor; the best epoch is the result.",
        AMOUNT,
        metavar="N",
        range=AT_LEAST_1,
        inherited=True,
    )
    monitor: str | None = option_of(
        "Metric that chooses the best epoch: val_loss, val_accuracy, old.accuracy, new.loss, classes.min.recall ... Default: "
        "none, the last epoch is the result; {default} with --patience.",
        AMOUNT,
        metavar="NAME",
        inherited=True,
    )
    until: str | None = option_of(
        "Stop after the epoch in which this holds: METRIC>=NUMBER, several joined by `and`, "
        '"old.accuracy>=0.95 and new.accuracy>=0.9" for example.',
        AMOUNT,
        metavar="EXPR",
    )
    bn_stats: Literal["recomputed", "moving"] | None = option_of(
        "Statistics of batch normalisation for scores, model.keras and exports: recomputed from training images with the "
        "weights of that moment, or Keras's moving averages, which trail them. Default {default}.", AMOUNT, inherited=True
    )  # fmt: skip
    freeze: tuple[str, ...] | None = option_of(
        "Layers that do not train, by name: conv*, backbone, backbone/block1*. Repeatable. none lets every layer train, also "
        "those that the checkpoint has frozen.",
        RATE,
        metavar="PATTERN",
    )
    unfreeze_at: int | None = option_of(
        "After how many epochs the frozen layers train, with their optimizer slots. Default: never.",
        RATE,
        metavar="EPOCH",
        range=AT_LEAST_1,
    )
    lr: float | None = option_of(
        "Learning rate, or the peak of the printed schedule. It always takes effect.",
        RATE,
        daily=True,
        metavar="F",
        range=ABOVE_0,
    )
    lr_scale: float | None = option_of(
        "Multiply the checkpoint's learning rate instead.", RATE, metavar="F", range=ABOVE_0
    )
    lr_schedule: Literal["keep", "constant", "cosine", "rewarm-cosine", "cooldown", "plateau"] | None = option_of(
        "keep: the checkpoint's own; constant: the same rate throughout; cosine and rewarm-cosine: a short warm-up, then down "
        "to 0; cooldown: held, then down to 0 over the last {cooldown_share:.0%} of the run; plateau: halved when val_loss "
        "stops falling. Default: rewarm-cosine when images are added, else keep; for an interrupted parent keep if its own "
        "schedule goes on, else cooldown; cosine for a new model.",
        RATE,
    )
    warmup_steps: int | None = option_of(
        "Steps of warm-up. Default: {warmup_share:.0%} of the run, at most {longest_warmup}.", RATE, metavar="N"
    )
    optimizer: str | None = option_of(
        "keep, NAME (where the checkpoint does not say it; another class takes over the slots that mean the same), NAME:keep "
        "(the same layers are frozen as in the checkpoint) or NAME:reset. Default keep; {default} for a new model.",
        RATE,
        metavar="NAME",
    )
    optimizer_from: str | None = option_of(
        "A file that holds the optimizer's state by itself: optimizer.pth beside the model.pth of --from.",
        RATE,
        metavar="FILE",
    )
    weight_decay: float | None = option_of(
        "Default: the optimizer's own.", RATE, metavar="F", range=AT_LEAST_0, inherited=True, held=True
    )
    exclude_from_weight_decay: tuple[str, ...] | None = option_of(
        "Weights that weight decay leaves out, by a part of their path (a regular expression): bias,gamma,beta. Repeatable. "
        "none leaves none out. Default: as the checkpoint, or the function of --model; a file of Keras does not hold it.",
        RATE,
        metavar="TEXT",
    )
    ema: float | None = option_of(
        "Momentum of averaged weights, 0.99 for example; scores and model.keras use the averages. Default: as the "
        "checkpoint, off for a new optimizer.",
        RATE,
        metavar="F",
        range=BELOW_1,
        inherited=True,
        held=True,
    )
    average: str | None = option_of(
        "Mix the weights with which the run began into its result, when training is done: F of them, 0.3 for example, or auto: "
        "the share that scores best on the validation images. Default {default}: the result as it was trained.",
        RATE,
        metavar="F|auto",
        inherited=True,
    )
