"""Lists every option of a training once: name, type, help, range, and how runs share it.

The command line, YAML files and Python all read this table. A new option is one field here; where it has a default that depends
on nothing else, its value is one field of `kresume.options.settings.Settings`, and its help says `{default}`.

In a `TrainConfig` None means "not given". A default is filled in where an option is used, so that a run can tell an option
that its parent had from one that nobody gave.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kresume.options.about import AT_LEAST_0, AT_LEAST_1, BELOW_1, LOCAL, SEED, SHARE, About

START, IMAGES, MODEL, AMOUNT, RATE, OUTPUT, MACHINE = (
    "Where to start", "Images", "Model", "How much", "Learning rate", "The run", "Machine",
)  # fmt: skip


def _option(help: str, group: str, **about: Any) -> Any:
    return Field(None, description=help, json_schema_extra={"about": About(group, **about)})  # type: ignore[dict-item]


class TrainConfig(BaseModel):
    """The options of `kresume train` and `kresume plan` as they were given; None where one was not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_: str | None = _option(
        "Checkpoint or run to extend: a run, RUN@step, a folder of runs (the newest accepted one), .keras, .weights.h5, .h5 "
        "of Keras 2, a folder of BackupAndRestore, tf.train.Checkpoint, a SavedModel, a folder of Orbax, a PyTorch state "
        "dict. Without it a new model is trained.",
        START,
        daily=True,
        metavar="PATH",
        flag="--from",
        range=LOCAL,
    )
    or_new: bool | None = _option(
        "Start with initial weights if there is nothing at --from yet (for commands that run from the first day).",
        START,
    )
    partial: bool | None = _option(
        "Continue although some variables could not be restored; they start fresh and are listed.", START
    )
    data: tuple[str, ...] | None = _option(
        "The old images: a folder with one folder per class, a CSV, JSONL or Parquet list with path and label, a tar or zip "
        "archive, WebDataset shards, TFRecord, a manifest. Repeatable, kinds mix. A parent run remembers its own.",
        IMAGES,
        daily=True,
        metavar="PATH",
    )
    add: tuple[str, ...] | None = _option(
        "The new images. Repeatable. Images that the parent has already are recognised by content and used once.",
        IMAGES,
        daily=True,
        metavar="PATH",
    )
    val: tuple[str, ...] | None = _option(
        "Images to validate on, never trained on. Repeatable. Turns --val-split off unless that is given too.",
        IMAGES,
        daily=True,
        metavar="PATH",
    )
    val_split: float | None = _option(
        "Share of the images new to this run that validate, chosen by content and recorded. Default {default}.",
        IMAGES,
        metavar="F",
        range=BELOW_1,
    )
    val_like: str | None = _option(
        "keras:F:SEED: validate on the images of --data that image_dataset_from_directory(validation_split=F, seed=SEED) "
        "held out.",
        IMAGES,
        metavar="keras:F:SEED",
    )
    feature: tuple[str, ...] | None = _option(
        "Name of a TFRecord feature: encoded=NAME, label=NAME or text=NAME. Repeatable. Default: image/encoded, "
        "image/class/label, image/class/text.",
        IMAGES,
        metavar="ROLE=NAME",
        inherited=True,
    )
    drop: str | None = _option(
        "File with a path or a SHA-256 per line: images to remove from the manifest and the cache.",
        IMAGES,
        metavar="FILE",
    )
    remap: tuple[str, ...] | None = _option(
        "Where remembered images have moved: how their paths began before and begin now. Repeatable.",
        IMAGES,
        metavar="OLD=NEW",
    )
    on_missing: Literal["error", "drop", "cache"] | None = _option(
        "Remembered images whose files are gone: stop with an error, drop them, or train on them from the cache. Default "
        "{default}.",
        IMAGES,
    )
    on_conflict: Literal["quarantine", "old", "new"] | None = _option(
        "One image under two labels: use neither, the label that was there first, or the new one. Default {default}.",
        IMAGES,
        inherited=True,
    )
    strict_images: bool | None = _option("Stop with an error if a file cannot be used.", IMAGES, inherited=True)
    mix: str | None = _option(
        "How an epoch mixes old and new images: concat (each image once), or shares OLD:NEW, 1:1 for example. Default "
        "{default}.",
        IMAGES,
        metavar="concat|OLD:NEW",
        inherited=True,
    )
    replay: float | None = _option(
        "Share of the old images that each epoch uses, 0.25 for example; another part each time. Default: all.",
        IMAGES,
        metavar="F",
        range=SHARE,
        inherited=True,
    )
    balance: Literal["none", "class"] | None = _option(
        "class gives every class the same share of an epoch. Default {default}.", IMAGES, inherited=True
    )
    classes: str | None = _option(
        "Names of the model's outputs in their order: a,b,c, quotes around names with commas, or a file: one name per line, "
        "`0 ROCK` lines of Teachable Machine, JSON (class_indices of Keras), CSV. Default: the parent's, else the sorted "
        "class folders.",
        IMAGES,
        metavar="FILE|a,b,c",
        inherited=True,
    )
    augment: Literal["none", "light", "strong"] | None = _option(
        "light shifts; strong also mirrors, rotates, zooms and erases. Default {default}.", IMAGES, inherited=True
    )
    vary_interpolation: bool | None = _option(
        "Choose at random for each image between --interpolation and that of Keras's own loader (bilinear), for a model that "
        "unknown loaders will feed. Decodes each image a second time. Default {default}.",
        IMAGES,
        inherited=True,
    )
    mixup: float | None = _option(
        "MixUp's alpha, 0.2 for example. Default {default}.", IMAGES, metavar="F", range=AT_LEAST_0, inherited=True
    )
    cutmix: float | None = _option(
        "Largest share of a picture that CutMix replaces by another, up to 1. Default {default}.",
        IMAGES,
        metavar="F",
        range=SHARE,
        inherited=True,
    )
    rand_augment: float | None = _option(
        "RandAugment's strength from 0 to 1, two operations per image: slow on a CPU. Default {default}.",
        IMAGES,
        metavar="F",
        range=SHARE,
        inherited=True,
    )
    erase: float | None = _option(
        "Share of the images in which a random rectangle is erased. Default {default}.",
        IMAGES,
        metavar="F",
        range=SHARE,
        inherited=True,
    )
    model: str | None = _option(
        "convnet, applications:NAME, file.py:function, package.module:function, or a .json, .keras or .h5 file with an "
        "architecture. Default: the checkpoint's, else {default}.",
        MODEL,
        daily=True,
        metavar="SPEC",
    )
    map: str | None = _option(
        "YAML file that says which array of a PyTorch state dict fills which variable; its entries win over matches by name, "
        "order and shape.",
        MODEL,
        metavar="FILE",
    )
    map_out: str | None = _option(
        "Where to write the mapping of a PyTorch state dict, to correct it and give it back with --map.",
        MODEL,
        metavar="FILE",
        may_differ=True,
    )
    imports: tuple[str, ...] | None = _option(
        "Python file that registers custom layers or losses with Keras. Repeatable.",
        MODEL,
        metavar="FILE",
        flag="--import",
        inherited=True,
        may_differ=True,
    )
    trust: bool | None = _option(
        "The checkpoint is mine: run the code of its Lambda layers. Without it no code of a checkpoint is ever run.",
        MODEL,
        may_differ=True,
    )
    image_size: str | None = _option(
        "Size of the pictures in pixels, N or HEIGHTxWIDTH. Default: the model's, {default} for a new one.",
        MODEL,
        daily=True,
        metavar="N|HxW",
        inherited=True,
    )
    pixels: str | None = _option(
        "The pixel values that the model expects: auto, 0-255, 0-1, -1-1, caffe, torch (Keras's own), bgr-0-255, bgr-0-1, "
        "bgr--1-1 (OpenCV), cifar10, mnist, 0-255-inverted, 0-1-inverted, -1-1-inverted (grey), mean=M,std=S[,bgr] with one "
        "number or one per channel, or FILE.py:FUNCTION. auto reads it from the first layers, or finds it by scoring the "
        "checkpoint on old images.",
        MODEL,
        metavar="NAME",
        inherited=True,
    )
    axes: str | None = _option(
        "Order of height, width and channels in the model's input, where its shape does not say it: hwc, chw, hw, wh ... "
        "Default: what the shape says; for a row of numbers the order that fits the old images.",
        MODEL,
        metavar="ORDER",
        inherited=True,
    )
    resize: Literal["stretch", "crop", "pad"] | None = _option(
        "How pictures are resized. Default: the parent's, else {default}.", MODEL, inherited=True
    )
    interpolation: Literal["area", "bilinear", "antialias", "nearest"] | None = _option(
        "How resizing samples pixels; image_dataset_from_directory uses bilinear. Default: the parent's, else {default}.",
        MODEL,
        inherited=True,
    )
    loss: Literal["sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"] | None = (
        _option("Default: the checkpoint's, else the one that fits the last activation.", MODEL, inherited=True)
    )
    metric: tuple[str, ...] | None = _option(
        "A further Keras metric to log. Repeatable.", MODEL, metavar="NAME", inherited=True
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] | None = _option(
        "Arithmetic of the layers; variables stay float32. Default: the checkpoint's, float32 for a new model.",
        MODEL,
        inherited=True,
    )
    epochs: int | None = _option(
        "How many more epochs. Default: by the share of new images, {default} for a new model.",
        AMOUNT,
        daily=True,
        metavar="N",
        range=AT_LEAST_1,
    )
    steps: int | None = _option("How many more steps (optimizer updates).", AMOUNT, metavar="N", range=AT_LEAST_1)
    batch_size: int | None = _option(
        "Images per step. Default {default}.", AMOUNT, daily=True, metavar="N", range=AT_LEAST_1, inherited=True
    )
    accumulate: int | None = _option(
        "Batches whose gradients make one update. Default: as the checkpoint, 1 for a new optimizer.",
        AMOUNT, metavar="N", range=AT_LEAST_1, inherited=True,
    )  # fmt: skip
    watch: bool | None = _option(
        "Look for new images in --data, --add and --val before each epoch and train on them; epochs grow, their number "
        "stays.",
        AMOUNT,
        inherited=True,
        may_differ=True,
    )
    steps_per_execution: int | None = _option(
        "Steps that Keras runs per call: less overhead for small models; epochs and snapshots then end at multiples of it. "
        "Default: the model's own, else {default}.",
        AMOUNT,
        metavar="N",
        range=AT_LEAST_1,
        inherited=True,
    )
    seed: int | None = _option(
        "Seed of the order, the augmentation and a new model's weights. Default {default}.",
        AMOUNT,
        metavar="N",
        range=SEED,
        inherited=True,
    )
    patience: int | None = _option(
        "Stop after this many epochs without a better --monitor; the best epoch is the result.",
        AMOUNT,
        metavar="N",
        range=AT_LEAST_1,
        inherited=True,
    )
    monitor: str | None = _option(
        "Metric that chooses the best epoch: val_loss, val_accuracy, old.accuracy, new.loss, classes.min.recall ... Default: "
        "none, the last epoch is the result; {default} with --patience.",
        AMOUNT,
        metavar="NAME",
        inherited=True,
    )
    bn_stats: Literal["recomputed", "moving"] | None = _option(
        "Statistics of batch normalisation for scores, model.keras and exports: recomputed from training images with the "
        "weights of that moment, or Keras's moving averages, which trail them. Default {default}.", AMOUNT, inherited=True
    )  # fmt: skip
    lr: float | None = _option(
        "Learning rate, or the peak of the printed schedule. It always takes effect.", RATE, daily=True, metavar="F"
    )
    lr_scale: float | None = _option("Multiply the checkpoint's learning rate instead.", RATE, metavar="F")
    lr_schedule: Literal["keep", "constant", "cosine", "rewarm-cosine", "cooldown", "plateau"] | None = _option(
        "keep: the checkpoint's own; constant: the same rate throughout; cosine and rewarm-cosine: a short warm-up, then down "
        "to 0; cooldown: held, then down to 0 over the last {cooldown_share:.0%} of the run; plateau: halved when val_loss "
        "stops falling. Default: rewarm-cosine when images are added, else keep; for an interrupted parent keep if its own "
        "schedule goes on, else cooldown; cosine for a new model.",
        RATE,
    )
    warmup_steps: int | None = _option(
        "Steps of warm-up. Default: {warmup_share:.0%} of the run, at most {longest_warmup}.", RATE, metavar="N"
    )
    optimizer: str | None = _option(
        "keep, NAME (where the checkpoint does not say it; another class takes over the slots that mean the same), NAME:keep "
        "(the same layers are frozen as in the checkpoint) or NAME:reset. Default keep; {default} for a new model.",
        RATE,
        metavar="NAME",
    )
    optimizer_from: str | None = _option(
        "A file that holds the optimizer's state by itself: optimizer.pth beside the model.pth of --from.",
        RATE,
        metavar="FILE",
    )
    weight_decay: float | None = _option(
        "Default: the optimizer's own.", RATE, metavar="F", range=AT_LEAST_0, inherited=True
    )
    ema: float | None = _option(
        "Momentum of averaged weights, 0.99 for example; scores and model.keras use the averages. Default: as the "
        "checkpoint, off for a new optimizer.",
        RATE,
        metavar="F",
        range=BELOW_1,
        inherited=True,
    )
    out: str | None = _option(
        "The run directory. Default: runs/<n>-<name>. Given alone, continues that run.",
        OUTPUT,
        daily=True,
        metavar="DIR",
        range=LOCAL,
    )
    overwrite: bool | None = _option(
        "Move what is at --out aside and start again; an interrupted run that this same command began is continued.",
        OUTPUT,
        may_differ=True,
    )
    snapshot_every: str | None = _option(
        "How often to take a snapshot: steps (200), epochs (2epochs) or minutes (10min). Default {default}.",
        OUTPUT,
        metavar="N",
        inherited=True,
        may_differ=True,
    )
    keep: int | None = _option(
        "How many snapshots to keep. Default {default}.",
        OUTPUT,
        metavar="N",
        range=AT_LEAST_1,
        inherited=True,
        may_differ=True,
    )
    take_over: bool | None = _option(
        "Continue a run that another machine holds, without waiting until that machine is silent.",
        OUTPUT,
        may_differ=True,
    )
    backend: Literal["tensorflow", "jax"] | None = _option(
        "Default: KERAS_BACKEND, else jax with an accelerator and tensorflow on a CPU, where it is several times faster.",
        MACHINE,
        daily=True,
        inherited=True,
        may_differ=True,
    )
    device: Literal["auto", "cpu", "gpu", "tpu"] | None = _option("Default {default}.", MACHINE, may_differ=True)
    devices: int | None = _option(
        "How many devices share each batch, through JAX. Default: as many of those here as divide the batch size.",
        MACHINE,
        metavar="N",
        range=AT_LEAST_1,
        may_differ=True,
    )
    cache: str | None = _option(
        "Where decoded pictures are kept: auto ($KRESUME_CACHE, else ~/.cache/kresume), off, or a folder. Default {default}.",
        MACHINE,
        metavar="DIR",
        range=LOCAL,
        inherited=True,
        may_differ=True,
    )
    cache_limit: str | None = _option(
        "Largest size of the cache, 500MB or 50GB for example; pictures that were unused for longest are removed first. Kept "
        "for later commands. Default {default}.",
        MACHINE,
        metavar="SIZE",
        inherited=True,
        may_differ=True,
    )
    exact: Literal["on", "off"] | None = _option(
        "on requests deterministic kernels of an accelerator; a CPU repeats without it. Default {default}.",
        MACHINE,
        inherited=True,
    )
