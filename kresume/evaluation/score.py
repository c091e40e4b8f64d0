"""Computes scores from predictions: one prediction per image, no padding in any average.

    scores = score(probabilities, labels, origins=manifest.origins, generation=2, classes=("cat", "dog"))
    scores["old"]["accuracy"], scores["classes"]["cat"]["recall"]

`old` images were added by an earlier generation, `new` images by this one, `all` is both. A subset without images has
`"images": 0` and null for every metric, because "nothing to measure" is not 0 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

OutputKind = Literal["probabilities", "logits", "binary", "binary-logits"]
SUBSETS = ("old", "new", "all")
SMALLEST_PROBABILITY = 1e-7  # Keras's epsilon: keeps the loss of a certain but wrong prediction finite and comparable


def to_probabilities(outputs: np.ndarray, kind: OutputKind) -> np.ndarray:
    """Converts a model's outputs to probabilities.

    Args:
        outputs: `(images, classes)`, or `(images, 1)` for a binary kind.
        kind: the kind of outputs.

    Returns:
        `(images, classes) float64`, each row with sum 1.
    """
    values = np.asarray(outputs, dtype=np.float64)
    if kind == "logits":
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(values / values.sum(axis=-1, keepdims=True))
    if kind == "binary-logits":
        values = 1.0 / (1.0 + np.exp(-values))
    if kind in {"binary", "binary-logits"}:
        return np.concatenate([1.0 - values, values], axis=-1)
    return values


def image_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the cross-entropy of each image in nats, `(images,) float64`."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(chosen, SMALLEST_PROBABILITY, 1.0)))


def predict_all(
    predict: Callable[[Any], np.ndarray],
    batches: Iterable[tuple[Any, int]],
    kind: OutputKind,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Predicts every image once.

    Args:
        predict: `(batch, height, width, 3) float32` in the model's convention -> outputs.
        batches: padded batches, each with the number of its rows that are images.
        kind: the kind of outputs.
        advance: called with the number of images predicted.

    Returns:
        Probabilities `(images, classes) float64`, in the order of the batches.
    """
    parts = []
    for images, count in batches:
        parts.append(to_probabilities(np.asarray(predict(images))[:count], kind))
        advance(count)
    return np.concatenate(parts) if parts else np.zeros((0, 0))


def score(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    origins: np.ndarray,
    generation: int,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Computes metrics on old, new and all images, and for each class.

    Args:
        probabilities: `(images, classes)`.
        labels: `(images,)` indices into `classes`.
        origins: `(images,)` the generation that added each image.
        generation: the current one: images with a lower origin are old.
        classes: the names of the outputs.

    Returns:
        The shape of `eval --json`: `{"all": {...}, "old": {...}, "new": {...}, "classes": {NAME: {...}}}`. Subsets have
        loss, accuracy and F1; classes have recall, precision and F1. A subset's F1 is the mean over the classes that
        occur in it.
    """
    old = origins < generation
    result: dict[str, Any] = {}
    for name, mask in (("all", np.ones(len(labels), bool)), ("old", old), ("new", ~old)):
        result[name] = _subset(probabilities[mask], labels[mask])
    result["classes"] = _classes(probabilities, labels, classes)
    return result


def _subset(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    if len(labels) == 0:
        return {"images": 0, "loss": None, "accuracy": None, "f1": None}
    from sklearn.metrics import f1_score

    guesses = probabilities.argmax(axis=-1)
    return {
        "images": len(labels),
        "loss": float(image_losses(probabilities, labels).mean()),
        "accuracy": float((guesses == labels).mean()),
        "f1": float(f1_score(labels, guesses, labels=np.unique(labels), average="macro", zero_division=0.0)),
    }


def _classes(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    if len(labels) == 0:
        return {name: {"images": 0, "recall": None, "precision": None, "f1": None} for name in classes}
    from sklearn.metrics import precision_recall_fscore_support

    guesses = probabilities.argmax(axis=-1)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, guesses, labels=np.arange(len(classes)), zero_division=0.0
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


def flatten(scores: Mapping[str, Any]) -> dict[str, float]:
    """Flattens scores to the metric names of gates and monitors.

    For example `{"old.accuracy": 0.93, "classes.rose.recall": 0.8, "classes.min.recall": ...}`. `val_accuracy` and
    `val_loss` are added for `all.accuracy` and `all.loss`. Metrics without a value are omitted.
    """
    flat = {
        f"{subset}.{metric}": value
        for subset in SUBSETS
        for metric, value in (scores.get(subset) or {}).items()
        if value is not None and metric != "images"
    }
    classes: Mapping[str, Mapping[str, Any]] = scores.get("classes") or {}
    for metric in ("recall", "precision", "f1"):
        values = {name: facts[metric] for name, facts in classes.items() if facts.get(metric) is not None}
        flat |= {f"classes.{name}.{metric}": value for name, value in values.items()}
        if values:
            flat[f"classes.min.{metric}"] = min(values.values())
    for old, new in (("all.accuracy", "val_accuracy"), ("all.loss", "val_loss")):
        if old in flat:
            flat[new] = flat[old]
    return flat
