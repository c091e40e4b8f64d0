"""Defines the task of most classifiers: one output per class, and the highest one is the answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from kresume.spelling import option
from kresume.tasks import one_class
from kresume.tasks.task import Task

INDICES, ROWS = "indices", "rows"
"""Forms of targets: class indices, and one row of class probabilities per image."""


def _units(classes: int) -> int:
    return classes


def _classes_of(units: int) -> int | None:
    return units if units > 1 else None


def _targets(labels: np.ndarray, form: str, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[labels] if form == ROWS else np.asarray(labels, np.int32)


def _graph_targets(labels: Any, form: str, classes: int) -> Any:
    import tensorflow as tf

    return tf.one_hot(labels, classes, dtype=tf.float32) if form == ROWS else labels


def _probabilities(outputs: np.ndarray, from_logits: bool) -> np.ndarray:
    if not from_logits:
        return outputs
    values = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return np.asarray(values / values.sum(axis=-1, keepdims=True))


def _graph_probabilities(outputs: Any, from_logits: bool) -> Any:
    import tensorflow as tf

    return tf.nn.softmax(outputs) if from_logits else outputs


def _log_probabilities(outputs: Any, from_logits: bool) -> Any:
    from keras import config, ops

    return ops.log_softmax(outputs, axis=-1) if from_logits else ops.log(ops.maximum(outputs, config.epsilon()))


def _answers(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(probabilities.argmax(axis=-1))


def _keras_loss(name: str, from_logits: bool, label_smoothing: float) -> Any:
    import keras

    if name == "sparse_categorical_crossentropy":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    return keras.losses.CategoricalCrossentropy(from_logits=from_logits, label_smoothing=label_smoothing)


def _keras_metrics(form: str, from_logits: bool) -> list[Any]:
    import keras

    del from_logits  # the highest output is the same
    if form == ROWS:
        return [keras.metrics.CategoricalAccuracy(name="accuracy")]
    return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]


def _for_metric(targets: Any, outputs: Any, form: str, from_logits: bool, indices: bool) -> tuple[Any, Any]:
    from keras import ops

    shares = ops.cast(outputs, "float32")
    shares = ops.softmax(shares, axis=-1) if from_logits else shares
    if indices and form == ROWS:
        return ops.argmax(targets, axis=-1), shares
    if not indices and form == INDICES:
        return ops.one_hot(ops.cast(ops.reshape(targets, (-1,)), "int32"), shares.shape[-1], dtype="float32"), shares
    return targets, shares


def _confident(label: int, units: int, from_logits: bool) -> np.ndarray:
    row = np.full(units, 0.0 if from_logits else 0.2 / (units - 1), np.float32)
    row[label] = 3.0 if from_logits else 0.8
    return row


def _misfit(loss: str, units: int) -> str:
    del loss
    return (
        f"does not fit a model with {units} output, which tells two classes apart: give "
        f"{option('loss', 'binary_crossentropy')}"
    )


SINGLE_LABEL = Task(
    name="single-label",
    losses={"sparse_categorical_crossentropy": INDICES, "categorical_crossentropy": ROWS},
    related_losses=frozenset(),
    borrowed_losses=frozenset({"binary_crossentropy"}),
    mixed_loss="categorical_crossentropy",
    kinds=("probabilities", "logits"),
    activation="softmax",
    units=_units,
    classes_of=_classes_of,
    targets=_targets,
    graph_targets=_graph_targets,
    probabilities=_probabilities,
    graph_probabilities=_graph_probabilities,
    log_probabilities=_log_probabilities,
    answers=_answers,
    right=one_class.right,
    image_losses=one_class.image_losses,
    scores=one_class.scores,
    class_scores=one_class.class_scores,
    keras_loss=_keras_loss,
    keras_metrics=_keras_metrics,
    for_metric=_for_metric,
    confident=_confident,
    misfit=_misfit,
)
