"""Defines the task of a model with one output for two classes: the score of the second one.

A linear output that a squared error trains to be 0 or 1 is a probability, too, where it lies between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kresume.spelling import option
from kresume.tasks import one_class
from kresume.tasks.task import Task

CLASSES = 2
MANY = "sparse_categorical_crossentropy"
"""The loss for more classes."""
FORM = "binary"
"""The form of targets: 1 for the second class, 0 for the first."""


def _units(classes: int) -> int:
    if classes != CLASSES:
        raise ValueError(f"one output tells two classes apart, not {classes}")
    return 1


def _classes_of(units: int) -> int | None:
    return CLASSES if units == 1 else None


def _targets(labels: np.ndarray, form: str, classes: int) -> np.ndarray:
    del form, classes
    return np.asarray(labels, np.int32)


def _graph_targets(labels: Any, form: str, classes: int) -> Any:
    del form, classes
    return labels


def _probabilities(outputs: np.ndarray, from_logits: bool) -> np.ndarray:
    values = 1.0 / (1.0 + np.exp(-outputs)) if from_logits else np.clip(outputs, 0.0, 1.0)
    return np.concatenate([1.0 - values, values], axis=-1)


def _graph_probabilities(outputs: Any, from_logits: bool) -> Any:
    import tensorflow as tf

    values = tf.sigmoid(outputs) if from_logits else tf.clip_by_value(outputs, 0.0, 1.0)
    return tf.concat([1.0 - values, values], axis=-1)


def _log_probabilities(outputs: Any, from_logits: bool) -> Any:
    from keras import config, ops

    if from_logits:
        return ops.concatenate([ops.log_sigmoid(-outputs), ops.log_sigmoid(outputs)], axis=-1)
    both = ops.concatenate([1.0 - outputs, outputs], axis=-1)
    return ops.log(ops.maximum(both, config.epsilon()))


def _answers(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(probabilities[:, 1] > 0.5, np.int64)  # as Keras's BinaryAccuracy: 0.5 is the first class


def _keras_loss(name: str, from_logits: bool, label_smoothing: float) -> Any:
    import keras

    del name
    return keras.losses.BinaryCrossentropy(from_logits=from_logits, label_smoothing=label_smoothing)


def _keras_metrics(form: str, from_logits: bool) -> list[Any]:
    import keras

    del form
    return [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0 if from_logits else 0.5)]


def _for_metric(targets: Any, outputs: Any, form: str, from_logits: bool, indices: bool) -> tuple[Any, Any]:
    from keras import ops

    del form, indices
    shares = ops.cast(outputs, "float32")
    return ops.reshape(targets, (-1, 1)), ops.sigmoid(shares) if from_logits else shares


def _confident(label: int, units: int, from_logits: bool) -> np.ndarray:
    del units
    high, low = (3.0, -3.0) if from_logits else (0.8, 0.2)
    return np.array([high if label else low], np.float32)


def _misfit(loss: str, units: int) -> str:
    return (
        f"over {units} outputs would ask {units} independent yes-or-no questions about an image, but kresume trains one image "
        f"to one of {units} classes: give {option('loss', MANY)}, whatever the last activation is. "
        "For several labels per image use kresume.BackupAndRestore in your own fit; "
        f"{loss} is for two classes and a model with one sigmoid output"
    )


def two_logits(values: np.ndarray) -> np.ndarray:
    """Converts one logit per image, `(images, 1)`, to two logits with that difference."""
    return np.concatenate([-values / 2, values / 2], axis=1)


def graph_single(scores: Any, *, from_logits: bool) -> Any:
    """Converts scores of two classes, `(images, 2)`, to one: the second, or the difference of the logits."""
    return scores[:, 1:] - scores[:, :1] if from_logits else scores[:, 1:]


BINARY = Task(
    name="binary",
    losses={"binary_crossentropy": FORM},
    related_losses=frozenset({"binary_focal_crossentropy"}),
    borrowed_losses=frozenset(),
    mixed_loss=None,
    kinds=("binary", "binary-logits"),
    activation="sigmoid",
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
