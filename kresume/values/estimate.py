"""Defines how long a run is expected to take, as measured by a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """The expected duration of a run.

    Attributes:
        seconds: of the whole run, the first step's compilation not included.
        step: seconds of a step.
        tried: the number of steps that were measured.
        compiling: seconds of the first step, which compiles.
        scoring: share of `seconds` for scores and statistics between the epochs.
        thaws: after how many epochs layers begin to train that were frozen in the measured steps; 0 if none do. Later
            steps take longer, so `seconds` is the least.
    """

    seconds: float
    step: float
    tried: int
    compiling: float
    scoring: float
    thaws: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Estimate:
        """Reads the JSON form."""
        return cls(**value)

    def __str__(self) -> str:
        step = f"{self.step:.1f} s" if self.step >= 1 else f"{1000 * self.step:.{0 if self.step >= 0.01 else 1}f} ms"
        about, longer = "about", ""
        if self.thaws:
            about, longer = "at least", f"; from epoch {self.thaws + 1} on, when all layers train, a step takes longer"
        return (
            f"{about} {duration(self.seconds)}: {step} a step (measured on {self.tried}), {100 * self.scoring:.0f} % of it for "
            f"scores; compiling takes {duration(self.compiling)} at each start{longer}"
        )


def duration(seconds: float) -> str:
    """Formats seconds with at most two units: `"40 s"`, `"12 min"`, `"3 h 20 min"`, `"2 days 4 h"`."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"
