"""Matches weights and seed states with the arrays of snapshots and Keras files.

    names, notes = match(model, state)        # id(variable) -> name of the array

Snapshots record where each variable is in its model (`kresume.models.structure`). Snapshots of earlier versions do not:
there the recorded names of variables decide. Without names, the shapes decide if only one choice of frozen layers fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kresume.checkpoints.choices import Item, choose
from kresume.models import match_layers, structure
from kresume.models.keras_2_names import keras_2_names
from kresume.models.made_up_names import by_new_number
from kresume.values.state import TrainState


def match(model: Any, state: TrainState) -> tuple[dict[int, str], list[str]]:
    """Finds the array of each weight.

    Args:
        model: built.
        state: of the layout `"groups"`, `"mapped"`, `"keras"` or `"layers"`.

    Returns:
        `id(variable)` -> name of its array, and notes for the user on how they were matched.

    Raises:
        RestoreError: layers cannot be matched.
    """
    if state.layout == "keras":
        return _by_keras(model, state), []
    if state.layout == "layers":
        return match_layers.match(model, state)
    if state.layout == "mapped":
        return by_index(model, state), []
    if structure.RECORD in state.records:
        saved = structure.recorded(state.records[structure.RECORD])
        arrays = {f"{group}/{index}": entry for group, listed in saved.items() for index, entry in enumerate(listed)}
        arrays = {name: entry for name, entry in arrays.items() if name in state.arrays}
        return structure.pair(structure.address_of(model), arrays), []
    return _without_record(model, state), []


def _by_keras(model: Any, state: TrainState) -> dict[int, str]:
    """Matches by Keras 3's names, or Keras 2's if only those cover every weight."""
    names = {id(variable): name for variable, name in keras_names(model) if name in state.arrays}
    weights = [variable for variable in model.variables if structure.SEED not in variable.path]
    if all(id(variable) in names for variable in weights):
        return names
    older = {id(variable): name for variable, name in keras_2_names(model) if name in state.arrays}
    return older if all(id(variable) in older for variable in weights) else names


def by_index(model: Any, state: TrainState) -> dict[int, str]:
    """Matches by group and index, for arrays of exactly this model."""
    names = {
        id(variable): f"{group}/{index}"
        for group in structure.GROUPS
        for index, variable in enumerate(getattr(model, f"{group}_variables"))
    }
    return {key: name for key, name in names.items() if name in state.arrays}


def arrays_of(state: TrainState, group: str) -> list[str]:
    """Returns the names of a group's arrays in order."""
    names = (name for name in state.arrays if name.startswith(f"{group}/"))
    return sorted(names, key=lambda name: int(name.rpartition("/")[2]))


def _without_record(model: Any, state: TrainState) -> dict[int, str]:
    """Matches a snapshot of an earlier version, which does not record the structure."""
    listed = {
        group: sorted(
            (name for name in state.arrays if name.startswith(f"{group}/")),
            key=lambda name: int(name.rpartition("/")[2]),
        )
        for group in structure.GROUPS
    }
    paths: Mapping[str, Any] = state.records.get("paths") or {}
    if all(len(paths.get(group, ())) == len(names) for group, names in listed.items()):
        entries = [
            (name, tuple(str(path).split("/")))
            for group, names in listed.items()
            for name, path in zip(names, paths[group], strict=True)
        ]
        theirs = by_new_number(entries)
        mine = by_new_number([(id(variable), tuple(str(variable.path).split("/"))) for variable in model.variables])
        if theirs.keys() == mine.keys() and len(theirs) == len(entries) == len(model.variables):
            return {key: theirs[path] for path, key in mine.items()}
    return split_by_shape(model.variables, model, state, listed["trainable"], listed["non_trainable"])


def split_by_shape(
    variables: Sequence[Any], model: Any, state: TrainState, trained: Sequence[str], others: Sequence[str]
) -> dict[int, str]:
    """Pairs variables with two lists of arrays, if only one choice of layers fits.

    Args:
        variables: in the model's order.
        model: built.
        state: the checkpoint.
        trained: names of the arrays that were trainable, in order.
        others: names of the other arrays, in order.

    Returns:
        `id(variable)` -> name of its array; empty if no choice of layers fits, or several do.
    """
    groups = structure.layers_that_train(model)
    first = {id(group[0]): group for group in groups}
    inside = {id(variable) for group in groups for variable in group}
    items: list[list[Any]] = []
    for variable in variables:
        if id(variable) in first:
            items.append(first[id(variable)])
        elif id(variable) not in inside:
            items.append([variable])
    chosen = choose(
        [Item(tuple(tuple(v.shape) for v in item), id(item[0]) in inside) for item in items],
        *([tuple(state.arrays[name].shape) for name in names] for names in (trained, others)),
    )
    if chosen is None:
        return {}
    one, other = iter(trained), iter(others)
    return {
        id(variable): next(one if taken else other)
        for item, taken in zip(items, chosen, strict=True)
        for variable in item
    }


def saved_weights(model: keras.Model, state: TrainState, variables: Sequence[Any]) -> list[np.ndarray]:
    """Returns the arrays of variables in a `"keras"` layout file; zeros if missing."""
    names = _by_keras(model, state)
    return [
        state.arrays.get(names.get(id(variable), ""), np.zeros(tuple(variable.shape), "float32"))
        for variable in variables
    ]


def second_names(model: keras.Model, state: TrainState, names: Mapping[int, str]) -> set[str]:
    """Returns arrays that repeat another one, for a variable that two layers share.

    `SpectralNormalization`, for example, shares a variable with the layer inside it.

    Args:
        model: built.
        state: of the layout `"keras"`.
        names: `id(variable)` -> name of the array that it is restored from.
    """
    pairs = [(names.get(id(variable)), name) for variable, name in keras_names(model) if name in state.arrays]
    return {
        name
        for first, name in pairs
        if first is not None and first != name and np.array_equal(state.arrays[first], state.arrays[name])
    }


def keras_names(model: keras.Model) -> list[tuple[Any, str]]:
    """Returns each variable of a model with its HDF5 path in Keras's saving library.

    Runs Keras's own walk with a store that records instead of writing, so that its rules (class names in order,
    containers, shared layers once) are not repeated here. The walk is a private function of Keras, used only here and
    pinned by a test.
    """
    from keras.src.saving import saving_lib

    found: list[tuple[Any, str]] = []

    class Entry(dict[str, Any]):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        def __setitem__(self, key: str, value: Any) -> None:
            found.append((value, f"{self.path}/vars/{key}".lstrip("/")))

    class Recorder(saving_lib.H5IOStore):  # type: ignore[misc]  # keras is untyped
        def __init__(self) -> None:
            """Opens no file."""

        def make(self, path: str, metadata: Any = None) -> Entry:
            return Entry(path)

        def __bool__(self) -> bool:
            return True

    saving_lib._save_state(model, Recorder(), None, inner_path="", visited_saveables=set())
    return [(value, path) for value, path in found if isinstance(value, keras.Variable)]


def same_roles(model: Any, pairs: Sequence[tuple[Any, str]], state: TrainState) -> bool:
    """Returns True if each variable has the role of its array.

    A kernel goes with a kernel, and a statistic with a statistic.

    Args:
        model: built.
        pairs: (variable, name of its array).
        state: of the layout `"keras"` or `"layers"`.
    """
    if state.layout == "layers":
        return all(str(variable.name) == name.partition(":")[0].rpartition("/")[2] for variable, name in pairs)
    own = {id(variable): name for variable, name in keras_names(model)}
    return all(_role(own.get(id(variable), "")) == _role(name) for variable, name in pairs)


def _role(name: str) -> tuple[str, str]:
    """Splits `layers/dense_3/vars/0` into layer class and index: `("dense", "0")`."""
    layer, _, index = name.rpartition("/vars/")
    return re.sub(r"_\d+$", "", layer.rpartition("/")[2]), index
