"""Decides how much a run trains, and holds the plan as values that print as text.

    amount = decide_amount(images=873, new_images=501, batch_size=32, epochs=None, steps=None, new_model=False)
    print(plan)

A decision is made once, printed with its reason and pinned in `run.json`; each has an option that overrides it. This
module only computes numbers and words: it reads no file and does not import Keras.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kresume.errors import UsageError
from kresume.images.mixing import Shares
from kresume.images.order import Order
from kresume.options.settings import DEFAULTS, FEWEST_EPOCHS, MORE_EPOCHS, NEW_SHARE_FACTOR
from kresume.spelling import option
from kresume.values.amount import Amount
from kresume.values.card import Card
from kresume.values.rate import RatePlan

HUGE_ADDITION = 10


def check_monitor(name: str | None, classes: Sequence[str]) -> None:
    """Checks that a run has the metric that `--monitor` names.

    Args:
        name: `--monitor`, or None.
        classes: the class names.

    Raises:
        UsageError: no run has such a metric.
    """
    known = {"loss", "accuracy", "val_loss", "val_accuracy"}
    known |= {f"{subset}.{metric}" for subset in ("old", "new", "all") for metric in ("loss", "accuracy", "f1")}
    known |= {f"classes.{each}.{metric}" for each in (*classes, "min") for metric in ("recall", "precision", "f1")}
    if name is not None and name not in known:
        near = difflib.get_close_matches(name, sorted(known), 1)
        hint = f"did you mean {near[0]}?" if near else "val_loss, old.accuracy or classes.min.recall, for example"
        raise UsageError(f"{option('monitor', name)}: no metric of a run: {hint}")


def epoch_boundary(order: Order, epoch: int, before: int, steps_per_execution: int) -> int:
    """Returns the step at which an epoch ends: after the call that holds its last image.

    Args:
        order: the order of the images.
        epoch: index of the epoch, from 0.
        before: the step at which the epoch begins. An epoch with fewer images than a batch still has one call.
        steps_per_execution: steps that Keras runs per call.
    """
    end = -(-order.epoch_end(epoch) // steps_per_execution) * steps_per_execution
    return max(end, before + steps_per_execution)


def decide_amount(
    *,
    images: int,
    new_images: int,
    batch_size: int,
    epochs: int | None,
    steps: int | None,
    new_model: bool,
    epochs_left: int = 0,
    epoch_images: int | None = None,
    steps_per_execution: int = 1,
) -> Amount:
    """Decides how much to train.

    Args:
        images: training images in all.
        new_images: training images that this run adds.
        batch_size: images per step.
        epochs: `--epochs`, how much *more* to train.
        steps: `--steps`, likewise.
        new_model: True if training starts from initial weights.
        epochs_left: epochs that an interrupted parent had left.
        epoch_images: images per epoch, if `--mix` or `--replay` makes it differ from `images`.
        steps_per_execution: steps that Keras runs per call; an epoch ends with the call that holds its last image.

    Raises:
        UsageError: `steps_per_execution` does not divide `steps`, or exceeds the steps of an epoch.
    """
    if steps is not None and steps % steps_per_execution:
        raise UsageError(
            f"{option('steps', steps)}: Keras runs {steps_per_execution} steps per call "
            f"({option('steps-per-execution')}), so give a multiple "
            f"of it, {steps // steps_per_execution * steps_per_execution or steps_per_execution} for example"
        )
    dealt = epoch_images or images
    if epochs is None and steps is None:
        share = new_images / images
        if new_model:
            epochs, reason = DEFAULTS.epochs, "a new model"
        elif new_images:
            epochs = max(FEWEST_EPOCHS, round(DEFAULTS.epochs * min(1.0, NEW_SHARE_FACTOR * share)))
            reason = f"{100 * share:.0f} % of the training images are new"
        else:
            epochs, reason = (0, "") if epochs_left else (MORE_EPOCHS, "no image is new")
        if epochs_left:
            epochs += epochs_left
            reason = f"{epochs_left} that the interrupted parent had left" + (f", and {reason}" if reason else "")
    else:
        reason = "--epochs" if steps is None else "--steps"
    if steps is not None:
        epochs_needed = -(-steps * batch_size // dealt)
        epochs = min(epochs, epochs_needed) if epochs is not None else epochs_needed
    order = Order(0, dealt, batch_size)
    if steps_per_execution > 1 and steps_per_execution > dealt // batch_size:
        raise UsageError(
            f"{option('steps-per-execution', steps_per_execution)}: an epoch has only "
            f"{dealt / batch_size:.1f} steps; give at most "
            f"{max(1, dealt // batch_size)}"
        )
    boundaries: list[int] = []
    for epoch in range(epochs or 0):
        boundaries.append(epoch_boundary(order, epoch, boundaries[-1] if boundaries else 0, steps_per_execution))
    if steps is not None:
        boundaries = [end for end in boundaries if end < steps] + (
            [steps] if boundaries and boundaries[-1] >= steps else []
        )
    return Amount(len(boundaries), boundaries[-1], batch_size, tuple(boundaries), reason, steps_per_execution)


def describe_batch_change(before: int, now: int, images: int, peak: float, optimizer: str) -> str:
    """Describes the effect of a new batch size: steps, and the fitting rate; empty if unchanged.

    SGD's rate scales in proportion (Goyal et al. 2017, arXiv:1706.02677), the rate of Adam and similar optimizers with
    the square root (Malladi et al. 2022, arXiv:2205.10287).

    Args:
        before: the parent's images per step.
        now: this run's images per step.
        images: images per epoch.
        peak: the planned rate.
        optimizer: its class.
    """
    if before == now:
        return ""
    factor = now / before if optimizer == "SGD" else (now / before) ** 0.5
    rule = "in proportion, as SGD likes it" if optimizer == "SGD" else f"with the square root, as {optimizer} likes it"
    return (
        f"{now} images per step, the parent had {before}: {images / before:.1f} -> {images / now:.1f} steps an epoch; a rate "
        f"that goes with it ({rule}) would be {option('lr', float(f'{peak * factor:.3g}'))} in place of {peak:g}"
    )


@dataclass(frozen=True)
class Plan:
    """Everything that `train` with the same options would do.

    Attributes:
        action: `"start"` a new model, `"extend"` a checkpoint, or `"continue"` an interrupted run.
        out: the run directory.
        parent: the checkpoint's path, format and step; empty for a new model.
        restored: how many variables were restored; empty for a new model.
        images: counts: total, old, new, train, validation, seen, duplicates, quarantined.
        sides: the number of validation images by origin, in words.
        card: the model card: classes, size, pixels.
        pixels_reason: how the pixel convention was found.
        interpolation_reason: how the interpolation was found; empty if nothing was compared.
        classes_reason: the source of the class order.
        rate: the learning rate.
        amount: epochs and steps.
        loss: its name and why it was chosen.
        optimizer: its class.
        before: the parent's scores on the validation images, None for a new model.
        options: the given options.
        notes: further notes for the user.
        shares: the composition of an epoch.
    """

    action: str
    out: str
    parent: str
    restored: str
    images: Mapping[str, int]
    sides: str
    card: Card
    pixels_reason: str
    interpolation_reason: str
    classes_reason: str
    rate: RatePlan
    amount: Amount
    loss: str
    optimizer: str
    before: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    shares: Shares | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form that `--json` prints."""
        return {
            **vars(self),
            "images": dict(self.images),
            "card": self.card.as_dict(),
            "rate": self.rate.as_dict(),
            "amount": self.amount.as_dict(),
            "options": dict(self.options),
            "notes": list(self.notes),
            "shares": self.shares.as_dict() if self.shares else {},
        }

    def __str__(self) -> str:
        images, card, amount = self.images, self.card, self.amount
        set_aside = f", {images['quarantined']:,} set aside (quarantine.csv)" if images["quarantined"] else ""
        origins = f": {images['old']:,} old, {images['new']:,} new" if self.parent else ""
        doubles = f", {images['duplicates']:,} duplicates counted once" if images["duplicates"] else ""
        classes = ", ".join(card.classes[:12]) + (", …" if len(card.classes) > 12 else "")
        seen = f", {images['seen']:,} of them seen in training" if images.get("seen") else ""
        per_epoch = (self.shares.images if self.shares else images["train"]) / amount.batch_size
        sampled = f" ({self.interpolation_reason})" if self.interpolation_reason else ""
        steps = f"{amount.steps:,} step{'s' if amount.steps > 1 else ''}"
        epochs = f"{amount.epochs} {'more ' if self.parent else ''}epoch{'s' if amount.epochs > 1 else ''}"
        lines = [
            ("run", f"{self.out} ({self.action})"),
            ("from", self.parent),
            ("restored", self.restored),
            ("images", f"{images['total']:,}{origins}{doubles}{set_aside}"),
            ("sides", f"{images['train']:,} to train, {self.sides}"),
            ("classes", f"{len(card.classes)} ({self.classes_reason}): {classes}"),
            (
                "pixels",
                f"{card.pixels} ({self.pixels_reason}), {card.image_size[0]}x{card.image_size[1]}, "
                f"{card.resize}, {card.interpolation}{sampled}",
            ),
            ("before", describe_scores(self.before) + seen if self.before else ""),
            ("rate", str(self.rate)),
            (
                "train",
                f"{epochs} = {steps} of {amount.batch_size} ({per_epoch:.1f} an epoch; {amount.reason}); "
                f"{self.optimizer}, {self.loss}",
            ),
            ("epoch", str(self.shares or "")),
            ("options", " ".join(_shown(name, value) for name, value in self.options.items())),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name + ':':<10}{text}" for name, text in lines if text)


def _shown(flag: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    return " ".join(f"{flag} {item}" for item in (value if isinstance(value, (list, tuple)) else [value]))


def describe_scores(scores: Mapping[str, Any]) -> str:
    """Formats scores: `"84.0 % of 300 validation images (old 91.2 % of 67, new 81.0 % of 233)"`."""
    everything = scores["all"]
    if not everything["images"]:
        return (
            f"no validation images: nothing can be measured; give {option('val', 'PATH')} or {option('val-split', 0.1)}"
        )
    parts = [
        f"{name} {100 * scores[name]['accuracy']:.1f} % of {scores[name]['images']:,}"
        for name in ("old", "new")
        if scores[name]["images"]
    ]
    both = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    return f"{100 * everything['accuracy']:.1f} % of {everything['images']:,} validation images{both}"


def describe_epoch(scores: Mapping[str, Any]) -> str:
    """Formats an epoch's scores: `"all 84.0 % (loss 0.412), old 91.2 % (0.291), new 81.0 % (0.463)"`."""
    if not scores["all"]["images"]:
        return "no validation images"
    both = scores["old"]["images"] and scores["new"]["images"]
    names = ("all", "old", "new") if both else ("all",)
    return ", ".join(
        f"{name} {100 * scores[name]['accuracy']:.1f} % ({'loss ' if name == 'all' else ''}{scores[name]['loss']:.3f})"
        for name in names
    )
