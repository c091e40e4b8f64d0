"""Makes the metrics of Keras that the user names: `--metric`.

    model.compile(metrics=[*loss.keras_metrics(), *own_metrics(("AUC",), loss)])

Keras's metrics differ in the targets that they expect: those that Keras calls sparse take class indices, the others a row of
zeros and a one per image. All take probabilities. Training has the targets of its loss, and a model may give logits; then
most metrics fail, and some give a wrong number without a message.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import keras

from kresume.errors import UsageError
from kresume.spelling import option
from kresume.tasks.binary import BINARY
from kresume.tasks.single_label import INDICES
from kresume.tasks.task import Head

LOWER = ("loss", "ece")
"""Ends of the names of our own metrics whose lowest value is the best."""


def make_metric(name: str) -> Any:
    """Creates the metric that Keras knows by a name, with a name of its own that no earlier one changes.

    One that gives a number for each class gives their mean.

    Args:
        name: `"AUC"` or `"top_k_categorical_accuracy"`, for example; `losses.check_metrics` has checked it.
    """
    found = keras.metrics.get(name)
    if isinstance(found, keras.metrics.Metric):
        found = type(found)
    if isinstance(found, type):
        own = {"average": "macro"} if "average" in inspect.signature(found).parameters else {}
        return found(name=keras.src.utils.naming.to_snake_case(found.__name__), **own)
    return keras.metrics.MeanMetricWrapper(found, name=name)


def takes_indices(metric: Any) -> bool:
    """Returns True if a metric expects class indices."""
    return type(metric).__name__.startswith("Sparse") or str(metric.name).startswith("sparse")


def fits(metric: Any, head: Head, form: str) -> bool:
    """Returns True if plain Keras can compute a metric from these targets and outputs.

    Args:
        metric: of Keras.
        head: how the model answers.
        form: of the targets that its loss has.
    """
    return not head.from_logits and (head.task is BINARY or takes_indices(metric) == (form == INDICES))


def better(name: str, own: Sequence[str]) -> Literal["max", "min"]:
    """Returns whether the highest or the lowest value of a metric is the best.

    Args:
        name: of the metric in the logs, for example `val_loss`, `old.accuracy` or `auc`.
        own: values of `--metric`.

    Raises:
        UsageError: Keras does not say it of this metric.
    """
    last = name.rpartition(".")[2].removeprefix("val_")
    if last.endswith(LOWER):
        return "min"
    metric = next((each for each in map(make_metric, own) if each.name == last), None)
    if metric is None or "accuracy" in last:
        return "max"
    way: dict[Any, Literal["max", "min"]] = {"up": "max", "down": "min"}
    direction = getattr(metric, "_direction", None)
    if direction not in way:
        raise UsageError(
            f"{option('monitor', name)}: Keras does not say whether a high or a low {last} is better: monitor another metric"
        )
    return way[direction]


def own_metrics(names: Sequence[str], head: Head, form: str) -> list[Any]:
    """Creates the user's metrics for a training: each gets the targets that it expects, and probabilities.

    Args:
        names: values of `--metric`.
        head: how the model answers.
        form: of the targets that its loss has.
    """
    metrics = [make_metric(name) for name in names]
    for metric in metrics:
        _translate(metric, head, form)
    return metrics


def _translate(metric: Any, head: Head, form: str) -> None:
    """Gives a metric the targets that it expects, and probabilities."""
    update, indices = metric.update_state, takes_indices(metric)

    def update_state(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        targets, shares = head.task.for_metric(y_true, y_pred, form, head.from_logits, indices)
        return update(targets, shares, sample_weight=sample_weight)

    metric.update_state = update_state
