"""Defines the progress of a run, as a snapshot's `meta.json` records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["training", "scoring", "epoch", "done"]
"""The point of an epoch at which a snapshot was taken.

`"training"`: between two steps. `"scoring"`: after the last step, before scoring. `"epoch"`: after a whole epoch.
`"done"`: after the whole training.
"""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer updates done in this run, by our own count.
        epoch: completed epochs.
        phase: the point within the epoch.
        lines: the number of lines of `metrics.jsonl` that belong to it.
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
        """Returns True if nothing is left to train."""
        return self.phase == "done"

    @classmethod
    def from_records(cls, records: Mapping[str, Any]) -> Progress:
        """Reads the progress from a snapshot's records."""
        return cls(**{name: records[name] for name in ("step", "epoch", "phase", "lines", "best", "stopped_early")})

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dict(vars(self))
