"""Defines `run.json` as one typed value: what was decided when a run was made, and what became of it.

    record = RunRecord.from_dict(json)      # of this version and of earlier ones
    record.card.classes, record.amount.batch_size
    record.as_dict()                        # the JSON form, see docs/run-directory.md

This is the only place that knows the names of the fields on the disk. A field that earlier versions did not write has a
default here that means what they did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kresume.errors import RunError
from kresume.values.amount import Amount
from kresume.values.card import Card
from kresume.values.estimate import Estimate
from kresume.values.freezing import Freezing
from kresume.values.loss import Loss
from kresume.values.rate import RatePlan
from kresume.values.state import SavedOptimizer
from kresume.values.teaching import Teaching

FORMAT = 1
"""Version of the format. A reader refuses a later one."""

Status = Literal["running", "interrupted", "accepted", "rejected"]
StatisticsKind = Literal["recomputed", "moving"]
"""Which statistics of batch normalisation a run predicts with."""


@dataclass(frozen=True)
class ParentRecord:
    """The checkpoint that a run extends.

    Attributes:
        path: relative to the run's folder.
        format: the reader's name.
        step: its step, None if unknown.
        digest: of its arrays.
        files: bytes, time and SHA-256 of each of its files when the run was made; empty in older runs.
    """

    path: str
    format: str
    step: int | None
    digest: str
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanWords:
    """The parts of the printed plan that are no decisions of their own: reasons, names, options.

    Attributes:
        sides: validation images by origin, in words.
        pixels_reason: how the pixel convention was found.
        interpolation_reason: how the interpolation was found; empty if nothing was compared.
        classes_reason: where the order of the classes comes from.
        loss: its name and the reason for it.
        optimizer: its class.
        options: options that were given, by flag.
    """

    sides: str
    pixels_reason: str
    interpolation_reason: str
    classes_reason: str
    loss: str
    optimizer: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """The result of a finished run.

    Attributes:
        step: the step of its snapshot.
        which: `"best"` if a monitor chose it, else `"last"`.
        scores: of all, old and new validation images, and of each class.
        average: share of the weights with which the run began; 0 for the weights of the step itself.
    """

    step: int
    which: Literal["best", "last"]
    scores: Mapping[str, Any]
    average: float = 0.0


@dataclass(frozen=True)
class Best:
    """The best epoch by the monitor.

    Attributes:
        step: the step at which it ended.
        epoch: its number, counted from 0.
        value: of the monitor.
    """

    step: int
    epoch: int
    value: float


@dataclass(frozen=True)
class RunRecord:
    """The content of `run.json`.

    Attributes:
        kresume: version that made the run.
        status: `"running"`, `"interrupted"`, `"accepted"` or `"rejected"`.
        created: when it was made, ISO 8601 in UTC.
        command: the shell command that made it.
        generation: 0 for a first training, the parent's plus one otherwise.
        parent: what it extends, None for a new model.
        given: the options of the command, as they were given.
        options: the options in effect: given, or inherited from the parent.
        seed: of the order, the augmentation and a new model's weights.
        backend: `"tensorflow"` or `"jax"`.
        fingerprint: versions and machine, for equal bytes.
        card: the model card.
        loss: the loss that trains.
        optimizer: its class and config.
        rate: the learning rate.
        amount: how much is trained.
        iterations: the optimizer's count when the run began.
        variables: paths of the model's variables by group.
        base_step: steps that its ancestors did.
        images: counts of the images, at the end of training for a finished run.
        manifest: digest of the images that it began with.
        dropped: SHA-256 of images that must not come back.
        away: digest of the images that earlier generations had and it does not, in `away.parquet`; empty if there are none.
        not_used: how many listed pictures are not in the manifest; None in runs of the first versions.
        before: the parent's scores, None for a new model.
        plan: words of the printed plan.
        statistics: those of batch normalisation that it predicts with: `"recomputed"` or `"moving"`.
        balance: how an epoch is balanced: `"none"` or `"class"`; None in older runs, where the options say it.
        new_classes: names of the classes that it added to its parent's.
        freezing: which layers do not train; None if no option says so.
        teaching: how the parent teaches it; None if it does not.
        restored: how many of the parent's variables were restored, in words; empty for a new model and in older runs.
        notes: notes of the plan for the user.
        merged: lists of what merging the images found, each cut to its first rows, with their counts: `leaks`,
            `conflicts`, `relabels` (these two not in older runs).
        time: how long it was expected to take; None if that was not tried.
        failed: descriptions of the gates that the result failed.
        result: None until the run is finished.
        best: the best epoch of a finished run, None if no monitor chose one.
        finished: when it was finished, empty until then.
    """

    kresume: str
    status: Status
    created: str
    command: str
    generation: int
    parent: ParentRecord | None
    given: Mapping[str, Any]
    options: Mapping[str, Any]
    seed: int
    backend: str
    fingerprint: Mapping[str, Any]
    card: Card
    loss: Loss
    optimizer: SavedOptimizer
    rate: RatePlan
    amount: Amount
    iterations: int
    variables: Mapping[str, Sequence[str]]
    base_step: int
    images: Mapping[str, int]
    manifest: str
    dropped: Sequence[str]
    not_used: int | None
    before: Mapping[str, Any] | None
    plan: PlanWords
    statistics: StatisticsKind = "moving"
    away: str = ""
    balance: str | None = None
    new_classes: Sequence[str] = ()
    freezing: Freezing | None = None
    teaching: Teaching | None = None
    restored: str = ""
    notes: Sequence[str] = ()
    merged: Mapping[str, Any] = field(default_factory=dict)
    time: Estimate | None = None
    failed: Sequence[str] = ()
    result: Result | None = None
    best: Best | None = None
    finished: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form. The fields of a finished run are in it once the run is finished."""
        optimizer = {name: value for name, value in vars(self.optimizer).items() if name != "variables"}
        value = {
            "format": FORMAT,
            **vars(self),
            "parent": None if self.parent is None else asdict(self.parent),
            "card": self.card.as_dict(),
            "loss": self.loss.as_dict(),
            "optimizer": optimizer,
            "rate": self.rate.as_dict(),
            "amount": self.amount.as_dict(),
            "dropped": list(self.dropped),
            "away": self.away,
            "new_classes": list(self.new_classes),
            "freezing": None if self.freezing is None else self.freezing.as_dict(),
            "teaching": None if self.teaching is None else self.teaching.as_dict(),
            "notes": list(self.notes),
            "merged": dict(self.merged),
            "time": None if self.time is None else self.time.as_dict(),
            "failed": list(self.failed),
            "plan": vars(self.plan),
            "result": None if self.result is None else vars(self.result),
            "best": None if self.best is None else vars(self.best),
        }
        if not self.finished:
            for name in ("result", "best", "finished"):
                del value[name]
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], source: str) -> RunRecord:
        """Reads the JSON form of this or an earlier version.

        Args:
            value: the content of `run.json`.
            source: its path, for errors.

        Raises:
            RunError: it is not the record of a run, is damaged, or was written by a later version.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("format"), int):
            raise RunError(f"{source} is not the record of a run: it has no number `format`; restore it from a copy")
        if value["format"] > FORMAT:
            raise RunError(
                f"{source} was written by a later kresume (run format {value['format']}, this one reads up to {FORMAT}): "
                "upgrade with `pip install -U kresume`"
            )
        try:
            return cls(**_fields(value))
        except KeyError as error:
            raise RunError(
                f"{source} is damaged: it has no field {error}; restore it from a copy of the run"
            ) from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RunError(f"{source} is damaged ({error}); restore it from a copy of the run") from error


def _fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the JSON form to the fields of a record."""
    parent, result, best, optimizer = value.get("parent"), value.get("result"), value.get("best"), value["optimizer"]
    status: Status = value["status"]
    statistics: StatisticsKind = value.get("statistics", "moving")
    return {
        "kresume": str(value["kresume"]),
        "status": status,
        "created": str(value["created"]),
        "command": str(value["command"]),
        "generation": int(value["generation"]),
        "parent": ParentRecord(**parent) if parent else None,
        "given": dict(value["given"]),
        "options": dict(value["options"]),
        "seed": int(value["seed"]),
        "backend": str(value["backend"]),
        "fingerprint": dict(value["fingerprint"]),
        "card": Card.from_dict(value["card"]),
        "loss": Loss.from_dict(value["loss"]),
        "optimizer": SavedOptimizer(
            optimizer["class_name"], optimizer["config"], 0, bool(optimizer.get("loss_scale", False))
        ),
        "rate": RatePlan.from_dict(value["rate"]),
        "amount": Amount.from_dict(value["amount"]),
        "iterations": int(value["iterations"]),
        "variables": dict(value.get("variables", {})),
        "base_step": int(value["base_step"]),
        "images": dict(value["images"]),
        "manifest": str(value["manifest"]),
        "dropped": tuple(value.get("dropped", ())),
        "away": str(value.get("away") or ""),
        "not_used": value.get("not_used"),
        "before": value.get("before"),
        "plan": PlanWords(**value["plan"]),
        "statistics": statistics,
        "balance": value.get("balance"),
        "new_classes": tuple(value.get("new_classes", ())),
        "freezing": Freezing.from_dict(value["freezing"]) if value.get("freezing") else None,
        "teaching": Teaching.from_dict(value["teaching"]) if value.get("teaching") else None,
        "restored": str(value.get("restored", "")),
        "notes": tuple(value.get("notes", ())),
        "merged": dict(value.get("merged", {})),
        "time": Estimate.from_dict(value["time"]) if value.get("time") else None,
        "failed": tuple(value.get("failed", ())),
        "result": Result(**result) if result else None,
        "best": Best(**best) if best else None,
        "finished": str(value.get("finished", "")),
    }
