"""Saves and restores variables that a model's code keeps beside those that Keras tracks.

    names, arrays = capture(model)              # of GROUP in the records and among the arrays of a snapshot
    notes = restore(model, records, groups)

Keras saves `model.variables`. A `tf.Variable` on the model or on a layer (a step count, a moving threshold), and a variable
of a `keras.losses.Loss`, are not among them, but training reads and changes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import keras
import numpy as np

from kresume.backend import live_state

GROUP = "other_variables"
"""Name of the addresses in a snapshot's records, and of the group of arrays."""


def capture(model: keras.Model) -> tuple[list[str], list[np.ndarray]]:
    """Reads the variables.

    Returns:
        `(addresses, arrays)`, one to one: `"model.steps"`, `"layers[2].threshold"`, `"loss.scale"`.
    """
    found = _found(model)
    return list(found), [np.array(_array_of(variable), copy=True) for variable in found.values()]


def restore(model: keras.Model, records: Mapping[str, Any], groups: Mapping[str, Sequence[np.ndarray]]) -> list[str]:
    """Assigns the arrays that `capture` read.

    Args:
        model: the built model.
        records: of the snapshot. One of an earlier version, or of a model without such variables, has no addresses.
        groups: the snapshot's arrays.

    Returns:
        Notes for the user: of variables that only the snapshot has, or only the model.
    """
    found, saved = _found(model), dict(zip(records.get(GROUP, ()), groups.get(GROUP, ()), strict=True))
    fits = [name for name in found if name in saved and _array_of(found[name]).shape == saved[name].shape]
    for name in fits:
        found[name].assign(np.array(saved[name], copy=True))
    fresh = [name for name in found if name not in fits]
    gone = [name for name in saved if name not in found]
    notes = [("that were not saved keep their first values", fresh), ("that were saved are not in the code now", gone)]
    return [f"variables {what}: {', '.join(named)}" for what, named in notes if named]


def _array_of(variable: Any) -> np.ndarray:
    return live_state.host_array(variable.value if isinstance(variable, keras.Variable) else variable)


def _found(model: keras.Model) -> dict[str, Any]:
    """Returns the variables by address."""
    tracked = [*model.variables, *model.metrics_variables, *getattr(model.optimizer, "variables", ())]
    known = {id(each) for variable in tracked for each in (variable, _held_by(variable))}
    result: dict[str, Any] = {}
    for owner, value in _owners(model):
        for name, content in sorted(vars(value).items()):
            if name.startswith(("_tracker", "_self_")):  # the same objects once more
                continue
            for address, variable in _variables_in(f"{owner}.{name}", content):
                if not known & {id(variable), id(_held_by(variable))}:
                    known.add(id(variable))
                    result[address] = variable
    return result


def _held_by(variable: Any) -> Any:
    """Returns the backend's variable in one of Keras; None while JAX's trainer holds the values."""
    return variable._value if isinstance(variable, keras.Variable) else variable


def _owners(model: keras.Model) -> Iterator[tuple[str, Any]]:
    yield "model", model
    for index, layer in enumerate(model._flatten_layers(include_self=False)):
        yield f"layers[{index}]", layer  # names that Keras made count on in a notebook
    losses = getattr(model, "loss", None)
    parts = dict(losses) if isinstance(losses, Mapping) else dict(enumerate(losses if _is_list(losses) else [losses]))
    for key, loss in parts.items():
        if isinstance(loss, keras.losses.Loss):
            yield "loss" if loss is losses else f"loss[{key}]", loss


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))


def _variables_in(address: str, content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, keras.Variable) or _is_of_tensorflow(content):
        yield address, content
    elif isinstance(content, Mapping):
        for key, item in content.items():
            yield from _variables_in(f"{address}[{key}]", item)
    elif _is_list(content):
        for index, item in enumerate(content):
            yield from _variables_in(f"{address}[{index}]", item)


def _is_of_tensorflow(value: Any) -> bool:
    """Tests for a `tf.Variable`, without importing TensorFlow."""
    return (
        type(value).__module__.startswith("tensorflow.") and hasattr(value, "assign") and hasattr(value, "read_value")
    )
