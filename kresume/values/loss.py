"""Defines the loss of a run as it is recorded; `kresume.models.losses` chooses it and makes the Keras object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Labels = Literal["indices", "rows", "binary"]
Kind = Literal["sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"]
KINDS: tuple[Kind, ...] = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")
LABELS: Mapping[str, Labels] = {
    "sparse_categorical_crossentropy": "indices",
    "categorical_crossentropy": "rows",
    "binary_crossentropy": "binary",
}


@dataclass(frozen=True)
class Loss:
    """A loss, its label form and the kind of outputs that it reads.

    Attributes:
        kind: name of the loss in Keras, or in the user's code.
        from_logits: True if the model's outputs are logits.
        label_smoothing: as Keras defines it; always 0 for the sparse kind.
        reason: why this loss was chosen, for the plan.
        settings: serialized form of a loss that kind, logits and smoothing do not fully describe; None otherwise.
        labels: form of labels that it expects; empty in the records of older runs, where `kind` determines it.
        weight: factor by which the checkpoint multiplied the loss; None for 1.
        note: which parts of the checkpoint's compile call are unused or corrected; empty if none are.
        lost: why the checkpoint's loss cannot be built, if another one replaces it; empty otherwise.
    """

    kind: str
    from_logits: bool
    label_smoothing: float
    reason: str
    settings: Mapping[str, Any] | None = None
    labels: Labels | Literal[""] = ""
    weight: float | None = None
    note: str = ""
    lost: str = ""

    @property
    def form(self) -> Labels:
        """Returns the form of labels that the loss expects."""
        return self.labels or LABELS[self.kind]

    @property
    def one_hot(self) -> bool:
        """Returns True if labels are rows of probabilities instead of class indices."""
        return self.form == "rows"

    @property
    def outputs(self) -> Literal["probabilities", "logits", "binary", "binary-logits"]:
        """Returns the kind of the model's outputs, for scoring."""
        if self.form == "binary":
            return "binary-logits" if self.from_logits else "binary"
        return "logits" if self.from_logits else "probabilities"

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form that `run.json` stores."""
        return {field.name: getattr(self, field.name) for field in fields(Loss)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Loss:
        """Reads the JSON form, also that of runs that did not record `labels` and what follows it yet."""
        known = {field.name for field in fields(Loss)}
        return Loss(**{name: each for name, each in value.items() if name in known})
