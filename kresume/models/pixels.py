"""What values a model eats, read from its first layers.

    read_convention(model)               # "0-255" if it rescales or normalises by itself, else None

Where the layers do not say, `kresume.evaluation.probe` finds out by letting the model show.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

LARGEST_SCALE = 0.1
"""A Rescaling by more than this was made for values around 1, not for bytes."""


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def read_convention(model: keras.Model) -> str | None:
    """`"0-255"` if the model's first layers rescale or normalise by themselves; None if they do not say.

    Args:
        model: built; layers that keep the values at prediction (inputs, augmentation, other orders of axes) are ignored.
    """
    layers = keras.layers
    passed = (
        layers.InputLayer,
        layers.Identity,
        layers.Resizing,
        layers.CenterCrop,
        layers.Permute,
        layers.Reshape,
        layers.Flatten,
        layers.Concatenate,  # grey three times, for a network that takes colours
    )
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
