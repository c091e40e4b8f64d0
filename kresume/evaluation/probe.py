"""What a foreign model was trained on, found by letting it show on images that it knows.

    probe = probe_feedings(model.predict_on_batch, {"0-1": pictures_0_1, "-1-1": ...}, labels, "probabilities")
    probe.winner                                  # "0-1", or None
    explain_labels(probe.predictions["0-1"], labels, classes)

A model restored bit for bit and fed the wrong values is worthless, so nothing is guessed: without a clear winner the caller
raises. Two conventions can be right equally often and still be told apart, because the loss falls with every image that
the model is surer of: ways of feeding are compared image by image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.evaluation.score import OutputKind, image_losses, predict_all

PROBE_BATCH = 32
CLEAR_ERRORS = 2.0
"""How many standard errors of the mean difference in loss make a winner: once in 40 probes chance does as much."""
CLEAR_POINTS = 0.05
FEW_CLASSES = 0.75
"""What an order of two classes must explain; of more, twice what guessing does."""


@dataclass(frozen=True)
class Probe:
    """How a model did under each way of feeding it, best first.

    Attributes:
        accuracies: share of right answers, by way.
        losses: mean cross-entropy in nats, by way.
        winner: the way that is clearly right, or None.
        above_chance: whether the best one is right more often than chance explains.
        predictions: `(n,)` the classes predicted, by way.
    """

    accuracies: Mapping[str, float]
    losses: Mapping[str, float]
    winner: str | None
    above_chance: bool
    predictions: Mapping[str, np.ndarray]

    @property
    def best(self) -> str:
        """The way with the lowest loss."""
        return next(iter(self.losses))

    @property
    def table(self) -> str:
        """`"0-1 gives 80.9 % (loss 0.61); torch gives 80.5 % (loss 0.74)"`."""
        return "; ".join(
            f"{name} gives {100 * accuracy:.1f} % (loss {self.losses[name]:.2f})"
            for name, accuracy in self.accuracies.items()
        )


def probe_feedings(
    predict: Callable[[Any], Any],
    feedings: Mapping[str, Callable[[], Any]],
    labels: np.ndarray,
    kind: OutputKind,
) -> Probe:
    """Scores a model on the same labelled images, fed in several ways.

    Args:
        predict: `(batch, height, width, 3) float32` -> outputs.
        feedings: by name, what gives the images as the model would eat them, `(n, height, width, 3) float32`.
        labels: `(n,)` indices of classes.
        kind: what the outputs are.

    Returns:
        The winner beats chance, and its loss is below that of every other by more than chance explains.
    """
    predictions: dict[str, np.ndarray] = {}
    losses: dict[str, np.ndarray] = {}
    for name, feeding in feedings.items():
        probabilities = predict_all(predict, _batches(np.asarray(feeding())), kind)
        predictions[name] = probabilities.argmax(axis=-1)
        losses[name] = image_losses(probabilities, labels)
    accuracies = {name: float((predicted == labels).mean()) for name, predicted in predictions.items()}
    ranked = sorted(feedings, key=lambda name: float(losses[name].mean()))
    best = ranked[0]
    above_chance = accuracies[best] > _chance(accuracies[best], labels)
    clear = all(is_clearly_lower(losses[best], losses[other]) for other in ranked[1:])
    return Probe(
        accuracies={name: accuracies[name] for name in ranked},
        losses={name: float(losses[name].mean()) for name in ranked},
        winner=best if above_chance and clear else None,
        above_chance=above_chance,
        predictions=predictions,
    )


def _batches(images: np.ndarray) -> Iterable[tuple[np.ndarray, int]]:
    for start in range(0, len(images), PROBE_BATCH):
        part = images[start : start + PROBE_BATCH]
        yield np.concatenate([part, np.repeat(part[-1:], PROBE_BATCH - len(part), axis=0)]), len(part)


def _chance(accuracy: float, labels: np.ndarray) -> float:
    """What always answering the commonest class reaches, and what luck adds to it."""
    commonest = max(np.bincount(labels).max() / len(labels), 1 / max(len(np.unique(labels)), 2))
    return float(commonest + max(CLEAR_POINTS, 2 * np.sqrt(accuracy * (1 - accuracy) / len(labels))))


def is_clearly_lower(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the mean of `one` is below that of `other` by more than chance explains, compared pair by pair."""
    difference = other - one
    error = float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return bool(difference.mean() > CLEAR_ERRORS * error)


def explain_any(probe: Probe, labels: np.ndarray, classes: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The way of feeding and the order of classes that together explain most; None if no order explains anything.

    With every output moved, the right way is the one that is never right, and a wrong one may win.
    """
    found = []
    for way, predicted in probe.predictions.items():
        order = explain_labels(predicted, labels, classes)
        if order is not None:
            meant = np.array([order.index(name) for name in classes])
            found.append((float((predicted == meant[labels]).mean()), way, order))
    return max(found)[1:] if found else None


def explain_labels(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> tuple[str, ...] | None:
    """The order of classes under which the predictions would be right, if one explains them; else None.

    Args:
        predicted: `(n,)` indices of outputs.
        labels: `(n,)` indices into `classes`.
        classes: the order that was assumed.
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (predicted, labels), 1)
    outputs, meanings = linear_sum_assignment(-counts)
    explained = counts[outputs, meanings].sum() / len(labels)
    if explained < min(2 / len(classes), FEW_CLASSES) or explained - (predicted == labels).mean() < 0.2:
        return None
    return tuple(classes[int(meaning)] for meaning in meanings)
