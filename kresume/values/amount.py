"""Defines how much a run trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Amount:
    """How much a run trains.

    Attributes:
        epochs: passes over the training images, the last one perhaps unfinished.
        steps: optimizer updates in all.
        batch_size: images per update.
        boundaries: the step at which each epoch ends.
        reason: why this amount was chosen.
        steps_per_execution: steps that Keras runs per call; every boundary is a multiple of it.
    """

    epochs: int
    steps: int
    batch_size: int
    boundaries: tuple[int, ...]
    reason: str
    steps_per_execution: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**vars(self), "boundaries": list(self.boundaries)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Amount:
        """Reads the JSON form."""
        return cls(**{**value, "boundaries": tuple(value["boundaries"])})
