"""What values a foreign model eats: read from its first layers, or found by letting it show.

    read_convention(model)                                # "0-255" if it rescales by itself, else None
    probe_conventions(model.predict_on_batch, pictures, labels).winner

A model restored bit for bit and fed the wrong values is worthless, so nothing is guessed: without a clear winner the caller
raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kresume.images import conventions

PROBE_BATCH = 32
CLEAR_POINTS = 0.05
FEW_CLASSES = 0.75
"""What an order of two classes must explain; of more, twice what guessing does."""
LARGEST_SCALE = 0.1
"""A Rescaling by more than this was made for values around 1, not for bytes."""


@dataclass(frozen=True)
class Probe:
    """How a model did under each convention.

    Attributes:
        accuracies: by convention.
        winner: the convention that is clearly right, or None.
        above_chance: whether the best one is right more often than chance explains.
        predictions: `(n,)` the classes predicted, by convention.
    """

    accuracies: Mapping[str, float]
    winner: str | None
    above_chance: bool
    predictions: Mapping[str, np.ndarray]


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def read_convention(model: keras.Model) -> str | None:
    """`"0-255"` if the model's first layers rescale or normalise by themselves; None if they do not say.

    Args:
        model: built; layers that change nothing at prediction (inputs, augmentation) are passed over.
    """
    layers = keras.layers
    passed = (layers.InputLayer, layers.Identity, layers.Resizing, layers.CenterCrop)
    for layer in _layers(model):
        if isinstance(layer, layers.Normalization):
            return "0-255"
        if isinstance(layer, layers.Rescaling):
            scale = np.max(np.abs(np.asarray(layer.scale)))
            return "0-255" if scale <= LARGEST_SCALE else None
        if not isinstance(layer, passed) and not type(layer).__name__.startswith(
            ("Random", "AutoContrast", "RandAugment")
        ):
            return None
    return None


def probe_conventions(predict: Callable[[Any], Any], pictures: np.ndarray, labels: np.ndarray) -> Probe:
    """Scores a model on labelled pictures under each convention.

    Args:
        predict: `(batch, height, width, 3) float32` -> outputs.
        pictures: `(n, height, width, 3) uint8`.
        labels: `(n,)` indices.

    Returns:
        The winner is the best convention if it beats chance and every other one by more than chance explains.
    """
    predictions = {name: _classes(predict, conventions.to_model_function(name), pictures) for name in conventions.NAMES}
    accuracies = {name: float((classes == labels).mean()) for name, classes in predictions.items()}
    ranked = sorted(accuracies, key=lambda name: -accuracies[name])
    best, second = ranked[0], ranked[1]
    chance = max(np.bincount(labels).max() / len(labels), 1 / max(len(np.unique(labels)), 2))
    margin = max(CLEAR_POINTS, 2 * float(np.sqrt(accuracies[best] * (1 - accuracies[best]) / len(labels))))
    above_chance = accuracies[best] > chance + margin
    clear = accuracies[best] - accuracies[second] > margin
    winner = best if above_chance and clear else None
    return Probe({name: accuracies[name] for name in ranked}, winner, above_chance, predictions)


def score_convention(
    predict: Callable[[Any], Any], pictures: np.ndarray, labels: np.ndarray, convention: str
) -> tuple[float, float, float]:
    """How a model does on labelled pictures under one convention, against guessing.

    Args:
        predict: `(batch, height, width, 3) float32` -> outputs.
        pictures: `(n, height, width, 3) uint8`.
        labels: `(n,)` indices.
        convention: as `--pixels` takes it.

    Returns:
        `(accuracy, what guessing reaches, the probability of doing so well by guessing)`.
    """
    from scipy.stats import binom

    right = int((_classes(predict, conventions.to_model_function(convention), pictures) == labels).sum())
    chance = max(np.bincount(labels).max() / len(labels), 1 / max(len(np.unique(labels)), 2))
    return right / len(labels), float(chance), float(binom.sf(right - 1, len(labels), chance))


def _classes(predict: Callable[[Any], Any], to_model: Callable[[Any], Any], pictures: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(pictures), PROBE_BATCH):
        part = pictures[start : start + PROBE_BATCH]
        padded = np.concatenate([part, np.repeat(part[-1:], PROBE_BATCH - len(part), axis=0)])
        outputs = np.asarray(predict(np.asarray(to_model(padded))))[: len(part)]
        if outputs.shape[-1] == 1:
            outputs = np.concatenate([1.0 - outputs, outputs], axis=-1)
        parts.append(outputs.argmax(axis=-1))
    return np.concatenate(parts)


def explain_any(probe: Probe, labels: np.ndarray, classes: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The convention and the order of classes that together explain most; None if no order explains anything.

    With every output moved, the right convention is the one that is never right, and a wrong one may win.
    """
    found = []
    for name, predicted in probe.predictions.items():
        order = explain_labels(predicted, labels, classes)
        if order is not None:
            meant = np.array([order.index(name) for name in classes])
            found.append((float((predicted == meant[labels]).mean()), name, order))
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
