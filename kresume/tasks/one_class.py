"""Judges answers where each image has one class: for single-label and for binary models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SMALLEST_PROBABILITY = 1e-7  # Keras's epsilon: keeps the loss of a certain but wrong prediction finite and comparable


def right(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns which answers are right, `(images,) bool`."""
    return np.asarray(answers == labels)


def image_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the cross-entropy of each image in nats, `(images,) float64`."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(chosen, SMALLEST_PROBABILITY, 1.0)))


NO_SHARES = 0.05
"""How far from 1 the sum of an image's probabilities may be because of rounding, in 16 bits, too."""


def as_shares(outputs: np.ndarray) -> np.ndarray:
    """Divides outputs that do not add up to 1, such as one sigmoid per class, by their sum.

    Keras's cross-entropy does so, too. Else a model at chance would seem better the higher all of its outputs are. Rows
    that add up to 1 keep their bits.

    Args:
        outputs: `(images, classes)`, not negative.
    """
    total = outputs.sum(axis=-1, keepdims=True)
    differ = (np.abs(total - 1.0) > NO_SHARES) & (total > 0)
    return np.where(differ, outputs / np.where(differ, total, 1.0), outputs) if differ.any() else outputs


def scores(probabilities: np.ndarray, answers: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Computes loss, accuracy and F1: the mean F1 of the classes that occur; None without images.

    Args:
        probabilities: `(images, classes)`.
        answers: `(images,)` class indices; -1 for another class.
        labels: `(images,)` class indices.
    """
    if len(labels) == 0:
        return {"images": 0, "loss": None, "accuracy": None, "f1": None}
    from sklearn.metrics import f1_score

    return {
        "images": len(labels),
        "loss": float(image_losses(probabilities, labels).mean()),
        "accuracy": float(right(answers, labels).mean()),
        "f1": float(f1_score(labels, answers, labels=np.unique(labels), average="macro", zero_division=0.0)),
    }


def class_scores(answers: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Computes recall, precision and F1 of each class; None for a class without images."""
    if len(labels) == 0:
        return {name: {"images": 0, "recall": None, "precision": None, "f1": None} for name in classes}
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        labels, answers, labels=np.arange(len(classes)), zero_division=0.0
    )
    return {
        name: {
            "images": int(support[index]),
            "recall": float(recall[index]) if support[index] else None,
            "precision": float(precision[index]) if support[index] else None,
            "f1": float(f1[index]) if support[index] else None,
        }
        for index, name in enumerate(classes)
    }
