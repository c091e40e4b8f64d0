"""Defines the learning rate of a run as numbers; `kresume.training.rates` decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kresume.spelling import option

Schedule = Literal["keep", "constant", "cosine", "rewarm-cosine", "cooldown", "plateau"]
SCHEDULES: tuple[Schedule, ...] = ("keep", "constant", "cosine", "rewarm-cosine", "cooldown", "plateau")


@dataclass(frozen=True)
class RatePlan:
    """The learning rate of a run.

    Attributes:
        checkpoint: the checkpoint's rate, None for a new model.
        peak: the requested or decided rate: the peak of the schedule, or the constant rate.
        schedule: its name.
        warmup_steps: steps of linear warm-up from `start` to `peak`; of a cooldown the steps that hold the peak.
        steps: steps of the whole run.
        start: the rate at which the warm-up starts; of a cooldown the peak.
        reason: the source of the peak.
        saved: the checkpoint's own schedule, for `keep`.
        now: the rate of that schedule at the first step.
        end: the rate of that schedule at the last step.
        lowered_from: the rate that `peak` was lowered from, because none of the old images is there; None if it was not.
    """

    checkpoint: float | None
    peak: float
    schedule: Schedule
    warmup_steps: int
    steps: int
    start: float
    reason: str
    saved: Mapping[str, Any] | None = None
    now: float | None = None
    end: float | None = None
    lowered_from: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form, pinned in `run.json`."""
        return {**vars(self), "saved": dict(self.saved) if self.saved else None}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RatePlan:
        """Reads the JSON form."""
        return cls(**value)

    def __str__(self) -> str:
        before = f"{self.checkpoint:g} (checkpoint) -> " if self.checkpoint is not None else ""
        by = f" by step {self.warmup_steps:,}" if self.warmup_steps else ""
        if self.schedule == "keep" and self.saved:
            span = f", {self.now:.3g} now and {self.end:.3g} at the last step" if self.now is not None else ""
            return f"{before}continues the checkpoint's {self.saved['class_name']}{span} (keep; {self.reason})"
        if self.schedule in {"cosine", "rewarm-cosine"} and self.start > 0:
            falls = f", falling to {self.peak:g}" if self.start > self.peak else ""
            return (
                f"{before}{self.start:g} for the new head alone{falls}; from step {self.warmup_steps:,} on all layers train, "
                f"to 0 at step {self.steps:,} ({self.schedule}; {self.reason})"
            )
        hold = f"{option('lr-schedule', 'constant')} holds it"
        if self.schedule in {"cosine", "rewarm-cosine"}:
            return f"{before}{self.peak:g}{by}, to 0 at step {self.steps:,} ({self.schedule}; {self.reason}; {hold})"
        if self.schedule == "cooldown":
            held = f" to step {self.warmup_steps:,}" if self.warmup_steps else ""
            return f"{before}{self.peak:g}{held}, then to 0 at step {self.steps:,} (cooldown; {self.reason}; {hold})"
        if self.schedule == "plateau":
            return f"{before}{self.peak:g}, lowered when val_loss stops falling (plateau; {self.reason})"
        return f"{before}{self.peak:g}{by}, held ({self.schedule}; {self.reason})"
