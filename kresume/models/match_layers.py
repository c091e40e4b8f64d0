"""Matches an HDF5 file of named layers (Keras 2) with a live model.

    names, notes = match(model, state)

The file lists its layers in the model's order, and each layer's weights with trainable ones first. Layers with weights
are matched by name if all names agree, else by order. Within a layer, weights are matched by name if those agree (a
frozen layer lists them in another order), else by order. `restore` checks the shape of every pair.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kresume.checkpoints.keras_2 import without_slashes
from kresume.errors import RestoreError
from kresume.models.made_up_names import by_new_number
from kresume.values.state import TrainState

DEPTHS = (5, 4, 3, 2, 1)
"""Numbers of trailing name parts to compare.

How a model was built decides whether the names of the enclosing layers precede a weight's name.
"""
RENAMED = {"depthwise_kernel": "kernel"}
"""Keras 2's names of weights that have another name in Keras 3."""
ROLES = frozenset(
    {"kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "embeddings", "recurrent_kernel"}
    | {"pointwise_kernel", "mean", "variance", "count"}
)


def match(model: Any, state: TrainState) -> tuple[dict[int, str], list[str]]:
    """Finds the array of each weight.

    Args:
        model: built.
        state: of the layout `"layers"`.

    Returns:
        `id(variable)` -> name of its array, and notes for the user on how layers were matched.

    Raises:
        RestoreError: layers cannot be matched: their counts differ and their names do not decide.
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
    """Returns a layer's weights in the file's order: trainable first, without seed states."""
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
            return by_order, []  # the numbers only count what each process built before
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
    """Pairs weights with arrays by their renumbered names, else by order.

    Names come first because the order of the weights depends on what was frozen. By order, a weight never gets an array
    whose name states another role.
    """
    paths = [_parts(str(variable.path)) for variable in weights]
    names = [_parts(name.partition(":")[0]) for name in arrays]
    for count in DEPTHS:
        one = by_new_number([(id(variable), path[-count:]) for variable, path in zip(weights, paths, strict=True)])
        other = by_new_number([(name, path[-count:]) for name, path in zip(arrays, names, strict=True)])
        if one.keys() == other.keys() and len(one) == len(weights) == len(arrays):
            return {key: other[path] for path, key in one.items()}
    return {
        id(variable): array
        for variable, path, array, name in zip(weights, paths, arrays, names, strict=False)
        if path[-1] == name[-1] or not {path[-1], name[-1]} <= ROLES
    }


def _parts(path: str) -> tuple[str, ...]:
    *layers, role = path.split("/")
    return (*layers, RENAMED.get(role, role))
