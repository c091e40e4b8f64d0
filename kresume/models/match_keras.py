"""Matches the arrays of Keras's saving library (`.keras`, `.weights.h5`) with a live model.

    found = match(model, optimizer, state, targets)      # found.names: id(variable) -> name of the array

The HDF5 paths follow from the tree of layers: `layers/dense_1/vars/0`. The optimizer's variables are a plain list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from kresume.checkpoints.keras_arrays import INNER, OPTIMIZER
from kresume.models import adapters, match_slots, structure
from kresume.models.keras_2_names import keras_2_names
from kresume.models.match_by_shape import pair_leftovers
from kresume.models.match_slots import Matched
from kresume.models.slot_forms import keras_classes
from kresume.models.structure import Target
from kresume.values.state import TrainState

INNER_MODEL = re.compile(rf"(.+)/(?:{OPTIMIZER}|{INNER})\d+")
METRICS = ("metrics/", "compile_metrics/")
"""Prefixes of the state of metrics in files of Keras 2; metrics start fresh."""


def match(
    model: Any, optimizer: Any | None, state: TrainState, targets: Sequence[Target], *, same_weights: bool = False
) -> Matched:
    """Finds the array of each variable.

    Args:
        model: built.
        optimizer: built, or None to match the weights alone.
        state: of the layout `"keras"`.
        targets: every variable to restore.
        same_weights: the user states that the weights trainable now were trainable then.
    """
    names = match_weights(model, state)
    left = unused(model, optimizer, state, names)
    pairs, notes = pair_leftovers(state, targets, names, left, partial(_same_roles, model))
    names |= pairs
    if optimizer is None:
        return adapters.begin_fresh(model, None, Matched(names, notes=notes))
    saved, unsure = match_slots.by_order(
        model,
        optimizer,
        state,
        optimizer_list(state),
        names,
        weights_of=match_weights,
        same_weights=same_weights,
    )
    found = match_slots.join(optimizer, saved, names)
    return adapters.begin_fresh(model, optimizer, Matched({**names, **found.names}, found.left_out, unsure, notes))


def completed(model: Any, optimizer: Any | None, state: TrainState) -> tuple[TrainState, str]:
    """Adds the factors of adapters, which Keras merges into the weights that they adapt."""
    return adapters.completed(model, keras_names(model), state)


def match_weights(model: Any, state: TrainState) -> dict[int, str]:
    """Matches weights by Keras 3's names, or Keras 2's if only those cover every weight."""
    names = {id(variable): name for variable, name in keras_names(model) if name in state.arrays}
    weights = [variable for variable in model.variables if structure.SEED not in variable.path]
    if all(id(variable) in names for variable in weights):
        return names
    older = {id(variable): name for variable, name in keras_2_names(model) if name in state.arrays}
    return older if all(id(variable) in older for variable in weights) else names


def optimizer_list(state: TrainState) -> list[str]:
    """Returns the names of the optimizer's arrays in order, those of loss scaling first."""
    names = (name for name in state.arrays if name.startswith(OPTIMIZER))
    return match_slots.in_order(name for name in names if name.removeprefix(OPTIMIZER).isdigit())


def unused(model: Any, optimizer: Any | None, state: TrainState, names: Mapping[int, str]) -> list[str]:
    """Returns the unmatched arrays that should have a variable.

    A loss-scaled optimizer is stored twice, and a variable that two layers share may be. The second copy needs none. Neither
    do the optimizers of inner models, which a compiled model keeps when it becomes a layer of another one: they train nothing.
    """
    extra = match_slots.superfluous(optimizer, state, optimizer_list(state))
    prefix = "optimizer/" if optimizer is None else INNER
    extra |= {name for name in state.arrays if name.startswith(prefix)}
    extra |= _second_names(model, state, names) | _of_inner_models(state)
    left = match_slots.unmatched(state, names)
    return [name for name in left if name not in extra and "/vars/" in f"/{name}" and not name.startswith(METRICS)]


def trained_weights(model: keras.Model, state: TrainState) -> list[np.ndarray]:
    """Returns the weights whose slots the file holds.

    They are the weights trainable now, or all of them if layers were frozen since.
    """
    names = match_weights(model, state)
    now, every = (
        [
            state.arrays.get(names.get(id(variable), ""), np.zeros(tuple(variable.shape), "float32"))
            for variable in variables
        ]
        for variables in (model.trainable_variables, structure.can_train(model))
    )
    return every if keras_classes(state, every) and not keras_classes(state, now) else now


def _of_inner_models(state: TrainState) -> set[str]:
    """Returns the arrays of the optimizers of inner models; the first of each is its count of iterations."""
    found = {name: match[1] for name in state.arrays if (match := INNER_MODEL.fullmatch(name))}
    counts = {
        model for model in found.values()
        if (count := state.arrays.get(f"{model}/{OPTIMIZER}0")) is not None and count.shape == () and count.dtype.kind in "iu"
    }  # fmt: skip
    return {name for name, model in found.items() if model in counts}


def _second_names(model: keras.Model, state: TrainState, names: Mapping[int, str]) -> set[str]:
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

    with adapters.switched_off(model):
        saving_lib._save_state(model, Recorder(), None, inner_path="", visited_saveables=set())
    held = [(value, path) for value, path in found if isinstance(value, keras.Variable)]
    return held + adapters.names(model, held)


def _same_roles(model: Any, pairs: Sequence[tuple[Any, str]]) -> bool:
    """Returns True if each pair has one role: a kernel and a kernel, a statistic and a statistic."""
    own = {id(variable): name for variable, name in keras_names(model)}
    return all(_role(own.get(id(variable), "")) == _role(name) for variable, name in pairs)


def _role(name: str) -> tuple[str, str]:
    """Splits `layers/dense_3/vars/0` into layer class and index: `("dense", "0")`."""
    layer, _, index = name.rpartition("/vars/")
    return re.sub(r"_\d+$", "", layer.rpartition("/")[2]), index
