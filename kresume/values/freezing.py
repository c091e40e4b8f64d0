"""Defines which layers of a run do not train, and until when, as `run.json` records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NONE = "none"
"""The pattern that freezes nothing, not even what the checkpoint has frozen."""


@dataclass(frozen=True)
class Freezing:
    """Layers that do not train, by their addresses in the tree of layers.

    Attributes:
        first: layers that are frozen for the first epochs.
        until: after how many epochs these train; 0 from the first step on, None never.
        always: layers that are frozen throughout, whatever `until` says.
        head_alone: True if `first` is every layer that trains but a new head.
    """

    first: tuple[str, ...]
    until: int | None
    always: tuple[str, ...] = ()
    head_alone: bool = False

    def thawed(self, epochs: int) -> bool:
        """Returns True if `first` trains in the epoch after so many whole ones."""
        return self.until is not None and epochs >= self.until

    def frozen(self, epochs: int) -> frozenset[str]:
        """Returns the addresses of the layers that are frozen after so many whole epochs."""
        return frozenset(self.always) | (frozenset() if self.thawed(epochs) else frozenset(self.first))

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "first": list(self.first),
            "until": self.until,
            "always": list(self.always),
            "head_alone": self.head_alone,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Freezing:
        """Reads the JSON form."""
        return cls(tuple(value["first"]), value["until"], tuple(value["always"]), bool(value["head_alone"]))
