"""Matches an HDF5 file of layers by name (Keras 2's) with a live model.

    names, notes = match(model, state)

The file lists its layers in the model's order, and each layer's weights, trainable ones first. Layers with weights meet by
name where all names agree, else by order; within a layer weights meet by name where those agree (a frozen layer lists them
in another order), else by order. Every pair is checked for its shape by `restore`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kresume.checkpoints.keras_2 import without_slashes
from kresume.checkpoints.state import TrainState
from kresume.errors import RestoreError


def match(model: Any, state: TrainState) -> tuple[dict[int, str], list[str]]:
    """The array of each weight, and what a person should know about how they met.

    Args:
        model: built.
        state: of the layout `"layers"`.

    Raises:
        RestoreError: layers cannot be told apart: their counts differ and their names do not decide.
    """
    live = [(layer.name, _weights(layer)) for layer in model.layers]
    live = [(name, weights) for name, weights in live if weights]
    tops = [weight for weight in model._trainable_variables + model._non_trainable_variables if weight in model.weights]
    saved = [(without_slashes(name), arrays) for name, arrays in state.records["layers"] if name]
    top_arrays: list[str] = next((arrays for name, arrays in state.records["layers"] if not name), [])
    pairs, notes = _pair_layers(live, saved, state.source)
    names: dict[int, str] = {}
    for weights, arrays in [*pairs, (tops, top_arrays)]:
        names |= _pair_weights(weights, arrays)
    return names, notes


def _weights(layer: Any) -> list[Any]:
    """As the file orders them: trainable ones first. Seed generators' states are not in it."""
    return [*layer.trainable_weights, *layer.non_trainable_weights]


def _pair_layers(
    live: Sequence[tuple[str, list[Any]]], saved: Sequence[tuple[str, list[str]]], source: str
) -> tuple[list[tuple[list[Any], list[str]]], list[str]]:
    one, other = [name for name, _ in live], [name for name, _ in saved]
    if set(one) == set(other) and len(set(one)) == len(one) == len(other):
        arrays = dict(saved)
        return [(weights, arrays[name]) for name, weights in live], []
    if len(one) == len(other):
        by_order = [(weights, arrays) for (_, weights), (_, arrays) in zip(live, saved, strict=True)]
        if [_without_number(name) for name in one] == [_without_number(name) for name in other]:
            return by_order, []  # the numbers count the models that a process had built before
        return by_order, [f"layers matched by their order, their names differ ({other[0]} is {one[0]}, ...)"]
    shared = set(one) & set(other)
    if shared and len(set(one)) == len(one) and len(set(other)) == len(other):
        arrays = dict(saved)
        return [(weights, arrays.get(name, [])) for name, weights in live], []
    raise RestoreError(
        f"{source} holds {len(other)} layers with weights ({', '.join(other[:5])}, ...), the model has {len(one)} "
        f"({', '.join(one[:5])}, ...), and their names do not say which is which: give the --model that it was made with"
    )


def _without_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _pair_weights(weights: Sequence[Any], arrays: Sequence[str]) -> dict[int, str]:
    for key in (_full, _last):
        one = [key(variable.path) for variable in weights]
        other = [key(name.partition(":")[0]) for name in arrays]
        if len(set(one)) == len(one) and set(one) == set(other) and len(one) == len(other):
            place = dict(zip(other, arrays, strict=True))
            return {id(variable): place[name] for variable, name in zip(weights, one, strict=True)}
    return {id(variable): name for variable, name in zip(weights, arrays, strict=False)}


def _full(path: str) -> tuple[str, ...]:
    """A weight and the layer that holds it: `("conv2d", "kernel")`."""
    return tuple(path.split("/")[-2:])


def _last(path: str) -> str:
    return path.rpartition("/")[2]
