"""Computes scores as functions of sums over images, so that resampling the images is a matrix product.

    sums = ImageSums.of(answers)
    sums.scores(np.ones((1, len(answers))))["ece"][0]       # of these images
    bootstrap(sums)["f1"]                                   # (low, high)
    bootstrap(sums)["class_f1"]                             # (low, high), each (classes,)

Calibration is measured by the expected calibration error of Guo, Pleiss, Sun and Weinberger ("On Calibration of Modern
Neural Networks", 2017): the confidence of the answer falls into one of 15 bins of equal width, and the error is the mean
distance of confidence and accuracy over the bins, weighted by their images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.evaluation.answers import NO_CLASS, Answers
from kresume.evaluation.intervals import LEVEL

BINS = 15
RESAMPLES = 1000
SEED = 0
CELLS = 4_000_000
"""Numbers that one part of the resamples holds in memory."""


def bins_of(confidences: np.ndarray) -> np.ndarray:
    """Returns the bin of each confidence, from 0 to 14: a bin contains its upper edge, as in Guo et al."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences)


@dataclass(frozen=True, eq=False)
class ImageSums:
    """The numbers of each image whose sums give every score.

    Attributes:
        columns: sparse `(images, k)`: the loss; for each bin of confidence count, confidence and right answers; for each
            class right answers, images and answers.
        classes: the number of classes.
        has_loss: False if the model gives labels without probabilities.
    """

    columns: Any
    classes: int
    has_loss: bool

    @classmethod
    def of(cls, answers: Answers) -> ImageSums:
        """Returns the numbers of answers."""
        from scipy.sparse import csr_matrix

        count, classes = len(answers), len(answers.classes)
        rows = np.arange(count)
        has_loss = not np.isnan(answers.losses).any()
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # rows, columns, values
        confidences, right = answers.top_scores[:, 0].astype(np.float64), answers.right
        if has_loss:
            bins = 1 + bins_of(confidences)
            parts += [
                (rows, np.zeros(count, int), answers.losses),
                (rows, bins, np.ones(count)),
                (rows, bins + BINS, confidences),
                (rows[right], bins[right] + 2 * BINS, np.ones(right.sum())),
            ]
        start, named = 1 + 3 * BINS, answers.chosen != NO_CLASS
        parts += [
            (rows[right], start + answers.labels[right], np.ones(right.sum())),
            (rows, start + classes + answers.labels, np.ones(count)),
            (rows[named], start + 2 * classes + answers.chosen[named], np.ones(named.sum())),
        ]
        where = [np.concatenate([part[axis] for part in parts]) for axis in (0, 1)]
        values = np.concatenate([part[2] for part in parts]).astype(np.float64)
        shape = (count, start + 3 * classes)
        return cls(csr_matrix((values, (where[0], where[1])), shape=shape), classes, has_loss)

    def scores(self, times: np.ndarray) -> dict[str, np.ndarray]:
        """Computes the scores of resampled images.

        Args:
            times: `(n, images)`, how often each image is drawn.

        Returns:
            `loss` and `ece` (only with probabilities) and `f1` (the mean over the classes that occur) of shape `(n,)`, and
            `class_f1` of shape `(n, classes)`, NaN for a class that does not occur.
        """
        sums, count = (self.columns.T @ times.T.astype(np.float64)).T, times.sum(axis=1)
        found: dict[str, np.ndarray] = {}
        if self.has_loss:
            found["loss"] = sums[:, 0] / count
            _, confidence, right = (sums[:, 1 + part * BINS :][:, :BINS] for part in range(3))
            found["ece"] = np.abs(confidence - right).sum(axis=1) / count
        right, occurs, chosen = np.split(sums[:, 1 + 3 * BINS :], 3, axis=1)
        found["class_f1"] = np.where(occurs > 0, 2 * right / np.maximum(occurs + chosen, 1), np.nan)
        found["f1"] = np.nansum(found["class_f1"], axis=1) / np.maximum((occurs > 0).sum(axis=1), 1)
        return found

    def bins(self) -> list[dict[str, Any]]:
        """Returns the bins of confidence that have images: edges, images, mean confidence and accuracy."""
        sums = np.asarray(self.columns.sum(axis=0)).reshape(-1)
        count, confidence, right = np.split(sums[1 : 1 + 3 * BINS], 3)
        edges = np.linspace(0, 1, BINS + 1)
        return [
            {
                "from": float(edges[each]),
                "to": float(edges[each + 1]),
                "images": int(count[each]),
                "confidence": float(confidence[each] / count[each]),
                "accuracy": float(right[each] / count[each]),
            }
            for each in np.nonzero(count)[0].tolist()
        ]


def bootstrap(
    sums: ImageSums, advance: Callable[[int], None] = lambda count: None, resamples: int = RESAMPLES
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the percentile interval of every score under resampling of the images, the same each time.

    Args:
        sums: of the images.
        advance: called with the number of resamples computed.
        resamples: how many.

    Returns:
        `(low, high)` of each score; a class that no resample contains has NaN.
    """
    images, rng = sums.columns.shape[0], np.random.default_rng(SEED)
    parts: list[dict[str, np.ndarray]] = []
    at_once = max(1, min(resamples, CELLS // max(images, sums.columns.shape[1])))
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = rng.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
        times = np.bincount(drawn.reshape(-1), minlength=count * images).reshape(count, images)
        parts.append(sums.scores(times))
        advance(count)
    tail = (1 - LEVEL) / 2
    found = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        never = np.isnan(values).all(axis=0)
        low, high = np.nanquantile(np.where(never, 0.0, values), [tail, 1 - tail], axis=0)
        found[name] = (np.where(never, np.nan, low), np.where(never, np.nan, high))
    return found
