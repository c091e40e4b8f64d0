"""Reads a model's pixel convention from its first layers.

    read_convention(model)               # "0-255" if the model rescales or normalises by itself, else None

If the layers do not show it, `kresume.evaluation.probe` finds it by scoring the model on images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from kresume.values.first_layers import pixels_of


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yields the class of each layer and its scale.

    A class of the user's own counts as the class of Keras below it.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            own = type(layer).__name__
            above = (kind.__name__ for kind in type(layer).__mro__ if kind.__module__.startswith("keras."))
            yield own if own.startswith("Random") else next(above, own), getattr(layer, "scale", None)


def read_convention(model: keras.Model) -> str | None:
    """Returns `"0-255"` if the model's first layers rescale or normalise, else None.

    Args:
        model: built. Layers that keep the values in prediction (inputs, augmentation, axis permutations) are skipped.
    """
    return pixels_of(_layers(model))
