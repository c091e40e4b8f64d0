"""Decides when a snapshot is due and which snapshots are kept, as plain values.

cadence = Cadence.parse("10min")
cadence.after_step(Since(steps=12, epochs=0, seconds=601.0))       # "when the disk is free"
Retention(3).needed({10: 8, 12: 8, 14: None})                      # {8}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kresume.errors import UsageError
from kresume.spelling import option

Due = Literal["no", "when the disk is free", "now"]
"""When to take a snapshot. "now" waits until the disk has written the previous one. "when the disk is free" delays the snapshot
to the next step while the disk is busy."""


@dataclass(frozen=True)
class Since:
    """The work since the last snapshot."""

    steps: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Cadence:
    """How often a snapshot is due: every `count` steps, epochs or minutes."""

    count: float
    unit: Literal["steps", "epochs", "minutes"]

    @classmethod
    def parse(cls, text: str) -> Cadence:
        """Parses `200` (steps), `2epochs` or `10min`.

        Raises:
            UsageError: the text is none of these, or not above zero.
        """
        match = re.fullmatch(r"\s*([0-9.]+)\s*(steps?|epochs?|min|minutes?)?\s*", text)
        units: dict[str, Literal["steps", "epochs", "minutes"]] = {"s": "steps", "e": "epochs", "m": "minutes"}
        try:
            count = float(match[1]) if match else 0.0
        except ValueError:
            count = 0.0
        unit = units[(match[2] or "steps")[0]] if match else "steps"
        if count <= 0 or (unit != "minutes" and count != int(count)):
            raise UsageError(
                f"{option('snapshot-every', text)}: give a whole number of steps (200) or epochs (2epochs), or minutes (10min)"
            )
        return cls(count, unit)

    def after_step(self, since: Since) -> Due:
        """Decides between two steps of an epoch.

        Args:
            since: the work since the last snapshot.
        """
        if self.unit == "steps":
            return "now" if since.steps >= self.count else "no"
        return "when the disk is free" if self.unit == "minutes" and self._minutes_over(since) else "no"

    def after_epoch(self, since: Since, *, urgent: bool) -> Due:
        """Decides after an epoch was scored.

        Args:
            since: the work since the last snapshot.
            urgent: True if the epoch is the best one or the last one, or a signal asks for the end.
        """
        if urgent:
            return "now"
        if self.unit == "minutes":
            return "when the disk is free" if self._minutes_over(since) else "no"
        done = since.steps if self.unit == "steps" else since.epochs
        return "now" if done >= self.count else "no"

    def _minutes_over(self, since: Since) -> bool:
        return since.seconds >= 60 * self.count


@dataclass(frozen=True)
class Retention:
    """How many of the newest snapshots to keep, beside the best epochs that they refer to.

    Attributes:
        newest: how many.
        pinned: steps that are kept while the run trains.
    """

    newest: int
    pinned: frozenset[int] = frozenset()

    def needed(self, best_of: Mapping[int, int | None]) -> set[int]:
        """Returns the pinned steps, and those of the best epochs that the newest snapshots refer to.

        After falling back to one of these snapshots, its best epoch is still needed.

        Args:
            best_of: step of each snapshot -> step of the best epoch when it was taken, None without one.
        """
        return {*self.pinned, *(best for step in self.kept(best_of) if (best := best_of[step]) is not None)}

    def kept(self, best_of: Mapping[int, int | None]) -> list[int]:
        """Returns the steps of the newest snapshots, oldest first."""
        return sorted(best_of)[-self.newest :]
