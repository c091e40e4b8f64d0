"""Saves and restores variables that a model's code keeps beside those that Keras tracks.

    names, arrays = capture(model)              # of GROUP in the records and among the arrays of a snapshot
    notes = restore(model, records, groups)

Keras saves `model.variables`. A `tf.Variable` on the model or on a layer (a step count, a moving threshold), and a variable
of a `keras.losses.Loss`, are not among them, but training reads and changes them. Nor are the states of random generators that
only a plain object, a loss or a function knows, or TensorFlow itself (`tf.random.get_global_generator`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.models import introspection, plain_generators
from kresume.models.found_variables import Walk, is_list, used_by_methods, variables_in

GROUP = "other_variables"
"""Name of the addresses in a snapshot's records, and of the group of arrays."""
OF_TENSORFLOW = "tf.random.get_global_generator().state"
"""Address of TensorFlow's global generator."""
Owners = Sequence[tuple[str, Any]]
"""Objects with their addresses."""


def capture(model: keras.Model, more: Owners = ()) -> tuple[list[str], list[np.ndarray]]:
    """Reads the variables.

    Args:
        model: the built model.
        more: other objects that have variables or use them: the optimizer, metrics, callbacks.

    Returns:
        `(addresses, arrays)`, one to one: `"model.steps"`, `"layers[2].threshold"`, `"loss.scale"`.
    """
    found = _found(model, more)
    return list(found), [np.array(_array_of(variable), copy=True) for variable in found.values()]


def restore(
    model: keras.Model, records: Mapping[str, Any], groups: Mapping[str, Sequence[np.ndarray]], more: Owners = ()
) -> list[str]:
    """Assigns the arrays that `capture` read.

    Args:
        model: the built model.
        records: of the snapshot. One of an earlier version, or of a model without such variables, has no addresses.
        groups: the snapshot's arrays.
        more: other objects, as for `capture`.

    Returns:
        Notes for the user: of variables that only the snapshot has, or only the model.
    """
    saved = dict(zip(records.get(GROUP, ()), groups.get(GROUP, ()), strict=True))
    if OF_TENSORFLOW in saved and _generator_of_tensorflow() is None:
        _make_generator_of_tensorflow()
    found = _found(model, more)
    fits = [name for name in found if name in saved and _array_of(found[name]).shape == saved[name].shape]
    for name in fits:
        found[name].assign(np.array(saved[name], copy=True))
    fresh = [name for name in found if name not in fits]
    gone = [name for name in saved if name not in found]
    notes = [("that were not saved keep their first values", fresh), ("that were saved are not in the code now", gone)]
    return [f"variables {what}: {', '.join(named)}" for what, named in notes if named]


def generators(model: keras.Model, more: Owners = (), *, alone: bool = False) -> dict[str, Any]:
    """Returns the generators of numpy and Python by address, one for each state.

    Args:
        model: the built model.
        more: other objects, as for `capture`.
        alone: True returns those of the other objects alone.
    """
    found = _reachable_from(more, Walk(model)) if alone else _reachable(model, more)
    by_state: dict[int, tuple[str, Any]] = {}
    for address, value in found:
        if plain_generators.is_generator(value):
            by_state.setdefault(plain_generators.key_of(value), (address, value))
    return dict(by_state.values())


def _array_of(variable: Any) -> np.ndarray:
    return live_state.host_array(variable.value if isinstance(variable, keras.Variable) else variable)


def _generator_of_tensorflow() -> Any:
    """Returns TensorFlow's global generator; None if nobody has asked for it yet, which would make it."""
    return getattr(sys.modules.get("tensorflow.python.ops.stateful_random_ops"), "global_generator", None)


def _make_generator_of_tensorflow() -> None:
    """Makes TensorFlow's global generator, whose state is then restored, before the first draw makes it."""
    import tensorflow as tf

    tf.random.set_global_generator(tf.random.Generator.from_seed(0))


def _found(model: keras.Model, more: Owners) -> dict[str, Any]:
    """Returns the variables by address."""
    owners = [model.optimizer, *(value for _, value in more if isinstance(value, keras.metrics.Metric))]
    tracked = [
        *model.variables,
        *model.metrics_variables,
        *(each for one in owners for each in getattr(one, "variables", ())),
    ]
    known = {id(each) for variable in tracked for each in (variable, _held_by(variable))}
    result: dict[str, Any] = {}
    for address, variable in _reachable(model, more):
        if not plain_generators.is_generator(variable) and not known & {id(variable), id(_held_by(variable))}:
            known.add(id(variable))
            result[address] = variable
    return result


def _reachable(model: keras.Model, more: Owners) -> Iterator[tuple[str, Any]]:
    """Yields the variables that the model, its layers, its losses and others hold or use, by address."""
    walk = Walk(model)
    if (generator := _generator_of_tensorflow()) is not None:
        yield OF_TENSORFLOW, generator.state
    for owner, value in _owners(model):
        if not isinstance(value, (keras.Layer, keras.losses.Loss)):
            yield from variables_in(owner, value, walk)
            continue
        for name, content in sorted(vars(value).items()):
            if not name.startswith(("_tracker", "_self_")):  # the same objects once more
                yield from variables_in(f"{owner}.{name}", content, walk)
        yield from used_by_methods(owner, value, walk)
    yield from _reachable_from(more, walk)


def _reachable_from(more: Owners, walk: Walk) -> Iterator[tuple[str, Any]]:
    """Yields what other objects hold or use."""
    for owner, value in more:
        for name, content in sorted(introspection.attributes_of(value).items()):
            if not name.startswith(("_tracker", "_self_", "_model", "params")):
                yield from variables_in(f"{owner}.{name}", content, walk, 1, True)
        yield from used_by_methods(owner, value, walk)


def _held_by(variable: Any) -> Any:
    """Returns the backend's variable in one of Keras; None while JAX's trainer holds the values."""
    return variable._value if isinstance(variable, keras.Variable) else variable


def _owners(model: keras.Model) -> Iterator[tuple[str, Any]]:
    yield "model", model
    for index, layer in enumerate(model._flatten_layers(include_self=False)):
        yield f"layers[{index}]", layer  # names that Keras made count on in a notebook
    losses = getattr(model, "loss", None)
    parts = dict(losses) if isinstance(losses, Mapping) else dict(enumerate(losses if is_list(losses) else [losses]))
    for key, loss in parts.items():
        yield "loss" if loss is losses else f"loss[{key}]", loss
