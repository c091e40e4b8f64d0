"""Compares an export with its model on real images: largest score difference, top-1 agreement.

parity = compare(prediction, samples, tolerance=1e-4)
parity.holds
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.evaluation.served import Prediction, score_kind
from kresume.exports.samples import Samples
from kresume.models.load import Loaded

TOLERANCES = {"float32": 1e-4, "mixed": 3e-2, "float16": 1e-2, "int8": 0.25}
"""Largest accepted difference of a score, by the number type of the export or the model."""


@dataclass(frozen=True)
class Parity:
    """The comparison of an export with its model.

    Attributes:
        images: the number of images.
        of: what the images are, in words.
        max_difference: the largest difference of a score (0 to 1); None if the export returns only labels.
        agreement: the share of images with the same best class.
        tolerance: the largest accepted difference.
        clear_disagreements: images whose different best class the tolerance does not explain.
        accuracy: the accuracy of the model and of the export; None without labels.
        failed: images that the export could not read.
        own_difference: the largest difference from the model's raw outputs, if these are probabilities; else None, and
            None if the export returns only labels.
    """

    images: int
    of: str
    max_difference: float | None
    agreement: float
    tolerance: float
    clear_disagreements: int
    accuracy: tuple[float, float] | None
    failed: int
    own_difference: float | None = None

    @property
    def holds(self) -> bool:
        """Returns True if the export may replace the model."""
        near = all(
            difference is None or difference <= self.tolerance
            for difference in (self.max_difference, self.own_difference)
        )
        return near and not self.clear_disagreements and not self.failed

    def problems(self) -> list[str]:
        """Lists how the export differs from the model beyond the tolerance."""
        problems = []
        if self.max_difference is not None and self.max_difference > self.tolerance:
            problems.append(f"a score differs by {self.max_difference:.2e} (accepted: {self.tolerance:.2e})")
        if self.own_difference is not None and self.own_difference > max(self.tolerance, self.max_difference or 0.0):
            problems.append(
                f"a score differs by {self.own_difference:.2e} from the model's own outputs, which add up to 1"
            )
        if self.clear_disagreements:
            problems.append(f"{self.clear_disagreements:,} of {self.images:,} pictures get another class")
        if self.failed:
            problems.append(f"it could not read {self.failed:,} of {self.images:,} pictures")
        return problems

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**vars(self), "accuracy": list(self.accuracy) if self.accuracy else None}

    def __str__(self) -> str:
        difference = "labels only" if self.max_difference is None else f"max |Δ score| {self.max_difference:.1e}"
        text = f"{difference}, top-1 agreement {100 * self.agreement:.1f} % on {self.images:,} {self.of}"
        if self.accuracy is not None:
            model, export = self.accuracy
            lost = 100 * (model - export)
            change = "the same" if lost == 0 else f"{'costs' if lost > 0 else 'gains'} {abs(lost):.2f} points"
            text += f"; accuracy {100 * model:.2f} % -> {100 * export:.2f} % ({change})"
        return text


def tolerance_of(loaded: Loaded, quantize: str | None) -> float:
    """Returns the largest accepted difference of a score for a model and the number type of its export."""
    if quantize is not None:
        return TOLERANCES[quantize]
    policies = {
        str(getattr(layer.dtype_policy, "compute_dtype", "float32")) for layer in loaded.model._flatten_layers()
    }
    return TOLERANCES["mixed"] if policies & {"float16", "bfloat16"} else TOLERANCES["float32"]


def compare(prediction: Prediction, samples: Samples, tolerance: float) -> Parity:
    """Compares another runtime's predictions with the model's own.

    Compares with the outputs as kresume interprets them, and with the raw outputs if these can only be probabilities. A
    wrong interpretation would affect the export and the first comparison alike.
    """
    reference, own = samples.reference, samples.outputs
    ours = samples.answers
    rows = np.arange(len(ours))
    difference = None
    if prediction.scores is not None:
        difference = float(np.abs(prediction.scores - reference).max())
    apart = None
    if prediction.scores is not None and own.shape[1] > 1 and score_kind(own) == "probabilities":
        apart = float(np.abs(prediction.scores - own).max())
    other = prediction.indices
    # Two classes closer than the tolerance may swap ranks; any other change is a different answer.
    gap = reference[rows, ours] - reference[rows, np.maximum(other, 0)]
    clear = (other != ours) & ((other < 0) | (gap > 2 * tolerance))
    labelled = samples.labels >= 0
    accuracy = None
    if labelled.any():
        accuracy = (
            float((ours == samples.labels)[labelled].mean()),
            float((other == samples.labels)[labelled].mean()),
        )
    return Parity(
        len(ours),
        samples.origin,
        difference,
        float((other == ours).mean()),
        tolerance,
        int(clear.sum()),
        accuracy,
        len(prediction.failed),
        apart,
    )
