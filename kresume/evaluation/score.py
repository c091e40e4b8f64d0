"""Computes scores from predictions: one prediction per image, no padding in any average.

    probabilities = predict_all(model.predict_on_batch, batches, head)
    scores = score(head.task, probabilities, labels, origins=manifest.origins, generation=2, classes=("cat", "dog"))
    scores["old"]["accuracy"], scores["classes"]["cat"]["recall"]

`old` images were added by an earlier generation, `new` images by this one, `all` is both. A subset without images has
`"images": 0` and null for every metric, because "nothing to measure" is not 0 %. The task computes the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kresume.tasks.task import Head, Task

SUBSETS = ("old", "new", "all")


def predict_all(
    predict: Callable[[Any], np.ndarray],
    batches: Iterable[tuple[Any, int]],
    head: Head | None,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Predicts every image once.

    Args:
        predict: `(batch, height, width, 3) float32` in the model's convention -> outputs.
        batches: padded batches, each with the number of its rows that are images.
        head: how the model answers; None returns its outputs as they are.
        advance: called with the number of images predicted.

    Returns:
        Probabilities `(images, classes) float64`, in the order of the batches.
    """
    parts = []
    for images, count in batches:
        outputs = np.asarray(np.asarray(predict(images))[:count], np.float64)
        parts.append(head.probabilities(outputs) if head is not None else outputs)
        advance(count)
    return np.concatenate(parts) if parts else np.zeros((0, 0))


def score(
    task: Task,
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    origins: np.ndarray,
    generation: int,
    classes: Sequence[str],
    answers: np.ndarray | None = None,
) -> dict[str, Any]:
    """Computes metrics on old, new and all images, and for each class.

    Args:
        task: computes the metrics.
        probabilities: `(images, classes)`.
        labels: `(images,)` indices into `classes`.
        origins: `(images,)` the generation that added each image.
        generation: the current one: images with a lower origin are old.
        classes: the names of the outputs.
        answers: `(images,)` the predicted classes, -1 for a class that is not in `classes`; None for those that the
            probabilities give.

    Returns:
        The shape of `eval --json`: `{"all": {...}, "old": {...}, "new": {...}, "classes": {NAME: {...}}}`. Subsets have
        loss, accuracy and F1; classes have recall, precision and F1. A subset's F1 is the mean over the classes that
        occur in it.
    """
    if answers is None:
        answers = task.answers(probabilities) if len(labels) else np.zeros(0, np.int64)
    old = origins < generation
    result: dict[str, Any] = {}
    for name, mask in (("all", np.ones(len(labels), bool)), ("old", old), ("new", ~old)):
        result[name] = task.scores(probabilities[mask], answers[mask], labels[mask])
    result["classes"] = task.class_scores(answers, labels, classes)
    return result


def flatten(scores: Mapping[str, Any]) -> dict[str, float]:
    """Flattens scores to the metric names of gates and monitors.

    For example `{"old.accuracy": 0.93, "classes.rose.recall": 0.8, "classes.min.recall": ...}`. `val_accuracy` and
    `val_loss` are added for `all.accuracy` and `all.loss`. Metrics without a value are omitted.
    """
    flat = {
        f"{subset}.{metric}": value
        for subset in SUBSETS
        for metric, value in (scores.get(subset) or {}).items()
        if isinstance(value, int | float) and metric != "images"
    }
    classes: Mapping[str, Mapping[str, Any]] = scores.get("classes") or {}
    metrics = dict.fromkeys(metric for facts in classes.values() for metric in facts if metric != "images")
    for metric in metrics:
        values = {name: facts[metric] for name, facts in classes.items() if isinstance(facts.get(metric), int | float)}
        flat |= {f"classes.{name}.{metric}": value for name, value in values.items()}
        if values:
            flat[f"classes.min.{metric}"] = min(values.values())
    for old, new in (("all.accuracy", "val_accuracy"), ("all.loss", "val_loss")):
        if old in flat:
            flat[new] = flat[old]
    return flat
