"""Defines how the parent teaches a run, as `run.json` records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kresume.values.loss import Loss


@dataclass(frozen=True)
class Teaching:
    """The part of the loss that compares a run's answers with its parent's: `--distill`.

    Attributes:
        weight: the factor of this part.
        classes: for each class of the parent, its index among the classes of the run.
        answers: the loss of the parent, which says how it answers.
        new_only: True if the rest of the loss is over the new classes alone, because no image of another one is left.
    """

    weight: float
    classes: tuple[int, ...]
    answers: Loss
    new_only: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**vars(self), "classes": list(self.classes), "answers": self.answers.as_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Teaching:
        """Reads the JSON form."""
        return cls(
            float(value["weight"]), tuple(value["classes"]), Loss.from_dict(value["answers"]), bool(value["new_only"])
        )
