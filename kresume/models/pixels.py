"""Reads a model's pixel convention from its first layers.

    read_convention(model)               # "0-255" if the model rescales or normalises by itself, else None

If the layers do not show it, `kresume.evaluation.probe` finds it by scoring the model on images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kresume.runtimes.operations import LARGEST_SCALE


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def read_convention(model: keras.Model) -> str | None:
    """Returns `"0-255"` if the model's first layers rescale or normalise, else None.

    Args:
        model: built. Layers that keep the values in prediction (inputs, augmentation, axis permutations) are skipped.
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
        layers.Concatenate,  # repeats grey three times, for a network that expects colours
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
