"""Defines the loss of a run as it is recorded; `kresume.models.losses` chooses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Loss:
    """A loss and the form of targets that it expects, which names the task.

    Attributes:
        kind: name of the loss in Keras, or in the user's code.
        from_logits: True if the model's outputs are logits.
        label_smoothing: as Keras defines it; always 0 for the sparse kind.
        reason: why this loss was chosen, for the plan.
        settings: serialized form of a loss that kind, logits and smoothing do not fully describe; None otherwise.
        labels: form of targets that it expects, of `Task.forms`; empty in older records, where `kind` determines it.
        weight: factor by which the checkpoint multiplied the loss; None for 1.
        note: which parts of the checkpoint's compile call are unused or corrected; empty if none are.
        lost: why the checkpoint's loss cannot be built, if another one replaces it; empty otherwise.
    """

    kind: str
    from_logits: bool
    label_smoothing: float
    reason: str
    settings: Mapping[str, Any] | None = None
    labels: str = ""
    weight: float | None = None
    note: str = ""
    lost: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form that `run.json` stores."""
        return {field.name: getattr(self, field.name) for field in fields(Loss)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Loss:
        """Reads the JSON form, also that of runs that did not record `labels` and what follows it yet."""
        known = {field.name for field in fields(Loss)}
        return Loss(**{name: each for name, each in value.items() if name in known})
