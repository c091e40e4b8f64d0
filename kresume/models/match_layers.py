"""Matches an HDF5 file of named layers (Keras 2) with a live model.

    found = match(model, optimizer, state, targets)      # found.names: id(variable) -> name of the array

The file lists its layers in the model's order, and each layer's weights with trainable ones first. Layers with weights
are matched by name if all names agree, else by order. Within a layer, weights are matched by name if those agree (a
frozen layer lists them in another order), else by order. `restore` checks the shape of every pair. Keras 2 lists the
optimizer's slots by kind and weight, Keras 3's legacy form by order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from kresume.backend.live_state import inner
from kresume.checkpoints.keras_2 import without_slashes
from kresume.errors import RestoreError
from kresume.models import match_slots
from kresume.models.generated_names import by_new_number
from kresume.models.match_by_shape import pair_leftovers, trained_by_shape
from kresume.models.match_slots import Matched, Saved
from kresume.models.structure import Target
from kresume.spelling import option
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


def match(
    model: Any, optimizer: Any | None, state: TrainState, targets: Sequence[Target], *, same_weights: bool = False
) -> Matched:
    """Finds the array of each variable.

    Args:
        model: built.
        optimizer: built, or None to match the weights alone.
        state: of the layout `"layers"`.
        targets: every variable to restore.
        same_weights: the user states that the weights trainable now were trainable then.

    Raises:
        RestoreError: layers cannot be matched: their counts differ and their names do not decide.
    """
    names, notes = match_weights(model, state)
    left = unused(model, optimizer, state, names)
    pairs, more = pair_leftovers(state, targets, names, left, _same_roles)
    names |= pairs
    notes = (*notes, *more)
    if optimizer is None:
        return Matched(names, notes=notes)
    if "slots" in state.records:
        saved, unsure = _named(model, optimizer, state, names)
    else:
        saved, unsure = match_slots.by_order(
            model,
            optimizer,
            state,
            _optimizer_list(state),
            names,
            weights_of=lambda described, file: match_weights(described, file)[0],
            same_weights=same_weights,
        )
    found = match_slots.join(optimizer, saved, names)
    return Matched({**names, **found.names}, found.left_out, unsure, notes)


def unused(model: Any, optimizer: Any | None, state: TrainState, names: Mapping[int, str]) -> list[str]:
    """Returns the unmatched arrays that should have a variable."""
    extra = match_slots.superfluous(optimizer, state, _optimizer_list(state))
    if optimizer is None:
        extra |= {array for _, _, array in state.records.get("slots", ())}
    return [name for name in match_slots.unmatched(state, names) if name not in extra]


def _optimizer_list(state: TrainState) -> list[str]:
    """Returns the optimizer's arrays in order.

    Empty for a file of Keras 2, which lists them by kind and weight.
    """
    return list(state.records.get("optimizer_order", ()))


def match_weights(model: Any, state: TrainState) -> tuple[dict[int, str], tuple[str, ...]]:
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
    return names, tuple(notes)


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
        return by_order, [f"layers matched by order, because their names differ ({other[0]} is {one[0]}, ...)"]
    shared = set(one) & set(other)
    if shared and len(set(one)) == len(one) and len(set(other)) == len(other):
        arrays = dict(saved)
        return [(weights, arrays.get(name, [])) for name, weights in live], []
    raise RestoreError(
        f"{source} holds {len(other)} layers with weights ({', '.join(other[:5])}, ...), the model has {len(one)} "
        f"({', '.join(one[:5])}, ...), and their names do not show which correspond: give the model that wrote it "
        f"with {option('model')}"
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


def _named(model: Any, optimizer: Any, state: TrainState, weights: Mapping[int, str]) -> tuple[list[Saved], bool]:
    """Identifies Keras 2's slots, which are stored with their kind and their weight's name.

    The weight's name is part of the name of that weight's array. If names do not decide (their numbers count what a
    process built), the slots of a kind are in the order of the weights that were trainable, which `trained_by_shape`
    finds.

    Returns:
        The identified arrays, and True if others could not be identified.
    """
    numbers = {name for name, value in vars(inner(optimizer)).items() if isinstance(value, keras.Variable)}
    by_kind: dict[str, list[tuple[str, str]]] = {}
    saved, unsure = [], False
    for kind, weight, name in state.records["slots"]:
        if kind in numbers:
            saved.append(Saved(name, kind))
        else:
            by_kind.setdefault(kind, []).append((weight, name))
    for kind, listed in by_kind.items():
        owners = [_ending(weight, weights.values()) for weight, _ in listed]
        if None in owners or len(set(owners)) != len(owners):
            shapes = [tuple(state.arrays[name].shape) for _, name in listed]
            chosen = trained_by_shape(model, state, shapes, weights)
            if chosen is None:
                unsure = True
                continue
            owners = list(chosen)
        saved += [Saved(name, kind, owner) for owner, (_, name) in zip(owners, listed, strict=True)]
    return saved, unsure


def _ending(weight: str, names: Iterable[str]) -> str | None:
    found = [name for name in set(names) if weight and name.partition(":")[0].endswith(f"/{weight}")]
    return found[0] if len(found) == 1 else None


def _same_roles(pairs: Sequence[tuple[Any, str]]) -> bool:
    """Returns True if variable and array have the same name in their layers, in each pair."""
    return all(str(variable.name) == name.partition(":")[0].rpartition("/")[2] for variable, name in pairs)
