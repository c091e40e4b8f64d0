"""Reads a model's pixel convention from its first layers.

    read_convention(model)               # "0-255" if the model rescales or normalises by itself, else None

If the layers do not show it, `kresume.evaluation.probe` finds it by scoring the model on images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from kresume.values.first_layers import SCALES, SHIFTS, constant_of, pixels_of


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yields the class of each layer and operation, and its number.

    A class of the user's own counts as the class of Keras below it.
    """
    for layer in getattr(model, "operations", None) or model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        elif isinstance(layer, keras.Layer) or type(layer).__name__ in SCALES | SHIFTS:
            own = type(layer).__name__
            above = (kind.__name__ for kind in type(layer).__mro__ if kind.__module__.startswith("keras."))
            number = getattr(layer, "scale", None) if isinstance(layer, keras.Layer) else _number(layer)
            yield own if own.startswith("Random") else next(above, own), number


def _number(operation: Any) -> Any:
    """Returns the number that an operation of a functional model computes with; None without one."""
    node = next(iter(operation._inbound_nodes), None)
    found = constant_of(
        node.arguments.args if node is not None else (), lambda value: isinstance(value, keras.KerasTensor)
    )
    return found if found is None or isinstance(found, (int, float)) else keras.ops.convert_to_numpy(found)


def read_convention(model: keras.Model) -> str | None:
    """Returns `"0-255"` if the model's first layers or operations rescale or normalise, else None.

    Args:
        model: built. Layers that keep the values in prediction (inputs, augmentation, axis permutations) are skipped.
    """
    return pixels_of(_layers(model))
