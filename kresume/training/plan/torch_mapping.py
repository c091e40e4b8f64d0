"""Verifies a mapping between frameworks by the model's predictions, because shapes prove nothing.

verify_mapping("resnet18.pth", predicted, labels)     # "mapping verified: 94.1 % of 256 old images"
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kresume.checkpoints.skeleton import FILL_IN
from kresume.errors import CheckpointError, UsageError
from kresume.spelling import option

WEAK_SHARE = 0.25
"""A share of the way from guessing to perfect: below it on its own training images, a model is probably wrong."""
CONVINCING = 1e-3
"""The significance level: a result less probable than this by guessing is no guess."""


def check_filled_in(spec: str | None) -> None:
    """Raises if a skeleton still has parts to fill in.

    Its shapes fit the checkpoint, but it is another network.

    Args:
        spec: `--model`.

    Raises:
        UsageError: lines of the file still say `fill in`.
    """
    place = Path((spec or "").rpartition(":")[0])
    if place.suffix != ".py" or not place.is_file():
        return
    lines = place.read_text(encoding="utf-8", errors="replace").split("\n")
    marked = [number for number, line in enumerate(lines, 1) if FILL_IN in line.partition("#")[2]]
    if marked:
        raise UsageError(
            f"{place} still says `{FILL_IN}` in {len(marked)} lines ({', '.join(map(str, marked[:8]))}"
            f"{', ...' if len(marked) > 8 else ''}): strides, padding, activations and sums are not in the checkpoint. Write "
            "what the network has there, and remove the marks that need no change"
        )


def verify_mapping(source: str, predicted: np.ndarray, labels: np.ndarray) -> str:
    """Judges a model filled from another framework's arrays by its predictions on labelled old images.

    Args:
        source: the checkpoint, for messages.
        predicted: `(n,)` the predicted class indices.
        labels: `(n,)` the true class indices.

    Returns:
        The finding, for the plan.

    Raises:
        CheckpointError: the model is not better than guessing.
    """
    from scipy.stats import binom

    right, count = int((predicted == labels).sum()), len(labels)
    chance = float(max(np.bincount(labels).max() / count, 1 / max(len(np.unique(labels)), 2)))
    accuracy = right / count
    if binom.sf(right - 1, count, chance) >= CONVINCING:
        raise CheckpointError(
            f"{source} fits the model's shapes but is right on {100 * accuracy:.1f} % of {count} old images, and "
            f"guessing reaches {100 * chance:.1f} %: the mapping is not verified. Another function of equal shapes (strides, "
            f"padding, activations, epsilon), another order of layers ({option('map-out', 'FILE')} shows the mapping), another "
            f"order of {option('classes')}, other {option('pixels')}, or too few old images ({option('data')})?"
        )
    found = f"{100 * accuracy:.1f} % of {count} old images"
    if accuracy < chance + WEAK_SHARE * (1.0 - chance):
        return (
            f"WEAK mapping: better than guessing ({100 * chance:.1f} %) and no more, {found}: if the training was good, "
            "something of --model is still to be filled in (strides, padding, activations, sums)"
        )
    return f"mapping verified: {found}"
