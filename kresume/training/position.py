"""How far a run is: what a snapshot's `meta.json` says beside the arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["training", "scoring", "epoch", "done"]
"""Where in an epoch a snapshot was taken: between two steps, after the last step with the scoring still to do, after
everything of an epoch, after everything."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer updates done in this run, by our own count.
        epoch: epochs completed.
        phase: where in the epoch.
        lines: lines of `metrics.jsonl` that belong to it.
        best: `{"step", "epoch", "value"}` of the best epoch by the monitor, or None.
        stopped_early: True once a callback has ended training.
    """

    step: int = 0
    epoch: int = 0
    phase: Phase = "epoch"
    lines: int = 0
    best: dict[str, Any] | None = None
    stopped_early: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.phase == "done"

    @classmethod
    def from_records(cls, records: Mapping[str, Any]) -> Progress:
        """Reads it back from a snapshot."""
        return cls(**{name: records[name] for name in ("step", "epoch", "phase", "lines", "best", "stopped_early")})

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return dict(vars(self))
