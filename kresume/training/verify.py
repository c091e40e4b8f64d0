"""A mapping between frameworks counts once the model has been right: shapes alone prove nothing.

verify_mapping("resnet18.pth", model, reader, rows, "torch", reporter)     # "mapping verified: 94.1 % of 256 old images"
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kresume.errors import CheckpointError
from kresume.images.reader import PictureReader
from kresume.progress import Reporter

WEAK_SHARE = 0.25
"""Of the way from guessing to always right: a model that is on images it was trained on below that is hardly the model."""
CONVINCING = 1e-3
"""The probability of doing so well by guessing, below which it was no guessing."""


def verify_mapping(
    source: str, model: Any, reader: PictureReader, rows: np.ndarray, pixels: str, reporter: Reporter
) -> str:
    """Scores a model that was filled from another framework's arrays on labelled old images.

    Args:
        source: the checkpoint, for messages.
        model: restored.
        reader: gives pictures by the manifest's rows.
        rows: of old images.
        pixels: the convention that the model is fed with.
        reporter: told what takes long.

    Returns:
        What was found, for the plan.

    Raises:
        CheckpointError: it is not better than guessing.
    """
    from kresume.models.pixels import score_convention

    reporter.say(f"checking the mapping of {source} on {len(rows)} old images")
    labels = reader.manifest.labels[rows]
    accuracy, chance, luck = score_convention(model.predict_on_batch, reader(rows), labels, pixels)
    if luck >= CONVINCING:
        raise CheckpointError(
            f"{source} fits the model's shapes but is right on {100 * accuracy:.1f} % of {len(rows)} old images, and "
            f"guessing reaches {100 * chance:.1f} %: the mapping is not verified. Another function of equal shapes (strides, "
            "padding, activations, epsilon), another order of layers (--map-out FILE shows what went where), another order of "
            "--classes, other --pixels, or too few old images (--data)?"
        )
    found = f"{100 * accuracy:.1f} % of {len(rows)} old images"
    if accuracy < chance + WEAK_SHARE * (1.0 - chance):
        return (
            f"WEAK mapping: better than guessing ({100 * chance:.1f} %) and no more, {found}: if the training was good, "
            "something of --model is still to be filled in (strides, padding, activations, sums)"
        )
    return f"mapping verified: {found}"
