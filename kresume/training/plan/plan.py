"""Defines the plan of a run as a user reads it.

    print(plan)

A decision is made once, printed with its reason and recorded in `run.json`. Each has an option that overrides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kresume.class_names import show_classes
from kresume.images.mixing import Shares
from kresume.options.lookup import flag_of
from kresume.spelling import Speller, counted, joined, notation, option, respelled, setting, spelled
from kresume.values.amount import Amount
from kresume.values.card import Card
from kresume.values.estimate import Estimate
from kresume.values.rate import RatePlan

MOST_CLASSES = 12
"""Classes that the printed plan counts; `--json` counts any number."""


@dataclass(frozen=True)
class Plan:
    """Everything that `train` with the same options would do.

    Attributes:
        action: `"start"` a new model, `"extend"` a checkpoint, or `"continue"` an interrupted run.
        out: the run directory.
        parent: the checkpoint's path, format and step; empty for a new model.
        restored: how many variables were restored; empty for a new model.
        images: counts: total, old, new, train, validation, seen, duplicates, dropped, quarantined.
        sides: the number of validation images by origin, in words.
        card: the model card: classes, size, pixels.
        pixels_reason: how the pixel convention was found.
        interpolation_reason: which ways of resizing were compared; empty if none.
        classes_reason: the source of the class order.
        rate: the learning rate.
        amount: epochs and steps.
        loss: its name and why it was chosen.
        optimizer: its class.
        before: the parent's scores on the validation images, None for a new model.
        options: the given options.
        differs: what differs from the options of the parent run, in words; empty if the parent is no run.
        notes: further notes for the user.
        shares: the composition of an epoch.
        growth: the classes that are added to the parent's, in words; empty if none are.
        balance: how an epoch is balanced: `"none"` or `"class"`.
        per_class: images of each class by origin and by use: old, new, train, validation.
        disk: the space that snapshots and decoded images need, in words.
        frozen: which layers do not train, in words; empty if no option says so.
        time: how long it takes; None if it was not tried.
        distilled: how the parent teaches the run, in words; empty if it does not.
        average: what is mixed into the result, in words; empty if nothing is.
        noise: how small a difference the validation images can show.
        precision: what the layers compute in, in words; empty for float32.
        speller: how the user who asked for the plan spells options; not in the JSON form.
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
    growth: str = ""
    balance: str = "none"
    noise: str = ""
    frozen: str = ""
    distilled: str = ""
    average: str = ""
    time: Estimate | None = None
    disk: str = ""
    differs: str = ""
    precision: str = ""
    per_class: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    speller: Speller = field(default_factory=notation, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form that `--json` prints."""
        return {
            **{name: value for name, value in vars(self).items() if name != "speller"},
            "images": dict(self.images),
            "card": self.card.as_dict(),
            "rate": self.rate.as_dict(),
            "amount": self.amount.as_dict(),
            "options": dict(self.options),
            "notes": list(self.notes),
            "time": self.time.as_dict() if self.time else None,
            "per_class": {name: dict(counts) for name, counts in self.per_class.items()},
            "shares": self.shares.as_dict() if self.shares else {},
        }

    def __str__(self) -> str:
        with spelled(self.speller):
            return self._text()

    def _text(self) -> str:
        images, card, amount = self.images, self.card, self.amount
        quarantined = f", {images['quarantined']:,} quarantined (quarantine.csv)" if images["quarantined"] else ""
        origins = f": {images['old']:,} old, {images['new']:,} new" if self.parent else ""
        doubles = f", {counted(images['duplicates'], 'duplicate')} counted once" if images["duplicates"] else ""
        dropped = f", {images['dropped']:,} dropped" if images.get("dropped") else ""
        classes = show_classes(card.classes[:MOST_CLASSES]) + (", …" if len(card.classes) > MOST_CLASSES else "")
        seen = f", {images['seen']:,} of them seen in training" if images.get("seen") else ""
        per_epoch = (self.shares.images if self.shares else images["train"]) / amount.batch_size
        sampled = f" ({respelled(self.interpolation_reason)})" if self.interpolation_reason else ""
        steps = f"{amount.steps:,} step{'s' if amount.steps > 1 else ''}"
        epochs = f"{amount.epochs} {'more ' if self.parent else ''}epoch{'s' if amount.epochs > 1 else ''}"
        balanced = f"; balanced by class, because classes are new ({option('balance', 'none')} turns it off)"
        if not self.growth or self.balance != "class" or flag_of("balance") in self.options:
            balanced = ""
        lines = [
            ("run", f"{self.out} ({self.action})"),
            ("from", self.parent),
            ("restored", self.restored),
            ("images", f"{images['total']:,}{origins}{doubles}{dropped}{quarantined}"),
            ("split", f"{images['train']:,} train, {self.sides}"),
            ("by class", describe_per_class(self.per_class) if self.parent else ""),
            ("classes", f"{len(card.classes)} ({respelled(self.classes_reason)}): {classes}"),
            ("grow", self.growth),
            ("freeze", self.frozen),
            ("distill", self.distilled),
            ("average", self.average),
            (
                "pixels",
                f"{card.pixels} ({respelled(self.pixels_reason)}), {card.image_size[0]}x{card.image_size[1]}, "
                f"{card.resize}, {card.interpolation}{sampled}",
            ),
            ("before", describe_scores(self.before) + seen if self.before else ""),
            ("noise", self.noise),
            ("rate", respelled(str(self.rate))),
            (
                "train",
                f"{epochs} = {steps} of {amount.batch_size} ({per_epoch:.1f} an epoch; {respelled(amount.reason)}); "
                f"{self.optimizer}, {respelled(self.loss)}",
            ),
            ("layers", self.precision),
            ("time", str(self.time or "")),
            ("disk", self.disk),
            ("epoch", f"{self.shares or ''}{balanced}"),
            ("options", self.differs or joined(setting(name[2:], value) for name, value in self.options.items())),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name + ':':<10}{text}" for name, text in lines if text)


def describe_per_class(per_class: Mapping[str, Mapping[str, int]]) -> str:
    """Formats the images of each class as old + new: `"rose 67+49, tulip 0+12"`; empty for many classes."""
    if not 0 < len(per_class) <= MOST_CLASSES:
        return ""
    counts = [f"{name} {count['old']:,}+{count['new']:,}" for name, count in per_class.items()]
    return f"{', '.join(counts)} (old + new)"


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
