"""Computes metrics that the user names: `--metric`.

    metrics = read_metrics(("AUC", "cost.py:mistakes"))
    metrics[0].compute(task, labels, probabilities)         # 0.987

A name is one of Keras's metrics, computed by Keras. A function is called as `function(labels, probabilities)` with
`(images,)` class indices and `(images, classes)` probabilities, and returns one number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.errors import ModelError, UsageError
from kresume.models.own_code import as_model_error, is_function, load_function
from kresume.spelling import option
from kresume.storage.one_file import require_local
from kresume.tasks.binary import BINARY
from kresume.tasks.single_label import INDICES
from kresume.tasks.task import Task

OURS = ("images", "loss", "accuracy", "f1", "top5", "ece", "recall", "precision", "intervals", "classes")
"""Names that every evaluation has."""
PART = 4096
"""Images that a metric of Keras is updated with at once."""


@dataclass(frozen=True)
class OwnMetric:
    """A metric that the user named.

    Attributes:
        name: its key in the scores.
        given: what the user gave.
        function: the user's function; None for a metric of Keras.
    """

    name: str
    given: str
    function: Callable[[Any, Any], Any] | None = None

    def compute(self, task: Task, labels: np.ndarray, probabilities: np.ndarray) -> float | None:
        """Computes the metric.

        Args:
            task: knows the form of targets.
            labels: `(images,)`.
            probabilities: `(images, classes)`.

        Returns:
            The number; None if it is not a number, as a metric without a value on these images.

        Raises:
            ModelError: it fails, or returns no number.
        """
        given = option("metric", self.given)
        with as_model_error(given):
            if self.function is not None:
                value = self.function(labels.copy(), probabilities.copy())
            else:
                value = _of_keras(self.given, task, labels, probabilities)
        try:
            number = float(np.asarray(value))
        except (TypeError, ValueError) as error:
            shape = f" of shape {np.shape(value)}" if np.ndim(value) else ""
            raise ModelError(
                f"{given} returned {type(value).__name__}{shape}, expected one number: give a function of your own that "
                f"makes one of it, with {option('metric', 'FILE.py:FUNCTION')}"
            ) from error
        return number if np.isfinite(number) else None


def read_metrics(given: Sequence[str]) -> tuple[OwnMetric, ...]:
    """Finds the metrics that the user named; imports Keras only if one is Keras's.

    Raises:
        UsageError: Keras has no such metric, or two have the same name.
        ModelError: a file or its function does not exist.
    """
    found: list[OwnMetric] = []
    require_local("metric", list(given))
    for each in given:
        if is_function(each):
            metric = OwnMetric(each.rpartition(":")[2], each, load_function(each, "metric"))
        else:
            metric = OwnMetric(each, each)
        if metric.name.lower() in OURS:
            raise UsageError(
                f"{option('metric', each)}: {metric.name} is computed in any case: leave it out, or name your function "
                "otherwise"
            )
        if metric.name in {other.name for other in found}:
            raise UsageError(f"{option('metric', each)}: {metric.name} is given twice")
        if metric.function is None:
            from kresume.models.losses import check_metrics

            check_metrics((each,))
        found.append(metric)
    return tuple(found)


def _of_keras(name: str, task: Task, labels: np.ndarray, probabilities: np.ndarray) -> Any:
    """Computes a metric of Keras on probabilities.

    Its targets are in the form that it expects: class indices for the metrics that Keras calls sparse, else one row of
    zeros and a one per image. For two classes and one output they are zeros and ones, with the score of the second class.
    """
    import keras

    from kresume.models.keras_metrics import make_metric, takes_indices

    metric = make_metric(name)
    sparse = takes_indices(metric)
    for start in range(0, len(labels), PART):
        part, shares = labels[start : start + PART], probabilities[start : start + PART].astype(np.float32)
        shares = shares[:, 1:] if task is BINARY else shares
        metric.update_state(*task.for_metric(part, shares, INDICES, False, sparse))
    return np.asarray(keras.ops.convert_to_numpy(metric.result()))
