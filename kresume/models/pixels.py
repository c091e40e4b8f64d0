"""Reads a model's pixel convention from its first layers.

    read_convention(model)               # "0-255" if the model rescales or normalises by itself, else None

If the layers do not show it, `kresume.evaluation.probe` finds it by scoring the model on images.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import keras

from kresume.backend import live_state
from kresume.values.first_layers import (
    SCALES,
    SHIFTS,
    Layer,
    chained,
    constant_of,
    normalization_of,
    pixels_of,
    root_of,
)


def _layers(model: Any) -> tuple[Layer, ...]:
    """Returns the layers and the operations of a model.

    A class of the user's own counts as the class of Keras below it. Of a model that is no graph, each layer counts as
    computing from the one before.
    """
    operations = getattr(model, "operations", None)
    # A layer may have been called elsewhere, too: private to Keras, as it writes a graph into a configuration.
    nodes = {id(node) for level in getattr(model, "_nodes_by_depth", {}).values() for node in level}
    found = tuple(_layer(operation, nodes) for operation in operations or model.layers)
    return found if operations and not isinstance(model, keras.Sequential) else chained(found)


def _layer(operation: Any, nodes: Set[int]) -> Layer:
    sources = frozenset(
        tensor._keras_history.operation.name
        for node in operation._inbound_nodes
        if id(node) in nodes
        for tensor in node.input_tensors
    )
    if isinstance(operation, keras.Model):
        return Layer(operation.name, type(operation).__name__, None, sources, _layers(operation))
    own = type(operation).__name__
    if not isinstance(operation, keras.Layer):
        kind = own if own in SCALES | SHIFTS else "Identity"
        return Layer(operation.name, kind, _number(operation), sources)
    above = (kind.__name__ for kind in type(operation).__mro__ if kind.__module__.startswith("keras."))
    kind = own if own.startswith("Random") else next(above, own)
    if kind == "Normalization":
        known = not getattr(operation, "invert", False)  # else it takes what another one gave
        mean, variance = (_adapted(operation, name) if known else None for name in ("mean", "variance"))
        return Layer(operation.name, kind, mean, sources, spread=root_of(variance))
    return Layer(operation.name, kind, getattr(operation, "scale", None), sources)


def _adapted(layer: Any, name: str) -> Any:
    """Returns the mean or the variance of a Normalization; None for an adapted one before it is built."""
    given = getattr(layer, f"input_{name}", None)
    if given is not None:
        return given
    variable = getattr(layer, f"adapt_{name}", None)
    return None if variable is None else live_state.host_array(variable.value)


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


def adapted(model: keras.Model) -> tuple[tuple[float, ...], float] | None:
    """Returns means and deviation to which a Normalization at the model's start was adapted, else None."""
    return normalization_of(_layers(model))


def say_adapted(model: keras.Model) -> str:
    """Returns for messages to which values a Normalization at the model's start was adapted, if it was."""
    found = adapted(model)
    if found is None:
        return ""
    mean = sum(found[0]) / len(found[0])
    return f" (its Normalization is for a mean of {mean:.3g} and a deviation of {found[1]:.3g})"
