"""Reads and assigns the arrays of a live model under either backend.

groups = read_state(model, buffers)        # {"trainable": [...], "optimizer": [...], ...}
assign(model.trainable_variables, groups["trainable"])
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from kresume.backend import hosts

RANDOM, GLOBAL_SEED = "random", "global_seed_generator"
CLOCK = "kresume_clock"
"""Name of the variable from which a schedule reads its time. It is among the optimizer's variables, so that both backends pass
it to a compiled step."""


def live_arrays(model: Any) -> dict[str, list[Any]]:
    """The backend's own arrays of a model in training, by group, in the order of `TrainState`.

    Under JAX the values live in the trainer's loop between steps; reading them through the variables would force a
    synchronisation that triples the cost of a step, so they are taken where they are. They are valid until the next
    step only (it donates their memory): copy before returning from the callback.
    """
    state = getattr(model, "_jax_state", None)
    if state and not model._jax_state_synced:
        return {
            "trainable": list(state["trainable_variables"]),
            "non_trainable": list(state["non_trainable_variables"]),
            "optimizer": [
                value
                for variable, value in zip(model.optimizer.variables, state["optimizer_variables"], strict=True)
                if variable.name != CLOCK
            ],
            "metrics": list(state["metrics_variables"]),
            **{group: [variable.value for variable in found] for group, found in _outside().items()},
        }
    return {group: [variable.value for variable in variables] for group, variables in variables_of(model).items()}


def variables_of(model: Any) -> dict[str, list[Any]]:
    """A compiled model's Keras variables by group, in the order of `TrainState`."""
    return {
        "trainable": list(model.trainable_variables),
        "non_trainable": list(model.non_trainable_variables),
        "optimizer": optimizer_variables(model.optimizer) if model.optimizer is not None else [],
        "metrics": list(model.metrics_variables),
        **_outside(),
    }


def names_of(model: Any, arrays: Sequence[str]) -> list[str]:
    """Names the variables behind arrays of a snapshot: `"optimizer/3"` -> `"adamw/dense_kernel_velocity"`."""
    variables = variables_of(model)
    found = []
    for array in arrays:
        group, _, index = array.rpartition("/")
        held = variables.get(group, ())
        found.append(held[int(index)].path if int(index) < len(held) else f"the {group} of batch normalisation")
    return found


def _outside() -> dict[str, list[Any]]:
    """Returns state outside the model: Keras's own seed generator, once it was used."""
    generator = _global_state().get_global_attribute(GLOBAL_SEED)
    return {RANDOM: [generator.state]} if generator is not None else {}


def _global_state() -> Any:
    """Returns the module where Keras keeps its seed generator. Private to Keras: a test pins it."""
    from keras.src.backend.common import global_state

    return global_state


def inner(optimizer: Any) -> Any:
    """Returns the optimizer inside loss scaling (mixed_float16), or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def optimizer_variables(optimizer: Any) -> list[Any]:
    """Returns an optimizer's variables without the clock of a schedule, which follows from the step."""
    return [variable for variable in optimizer.variables if variable.name != CLOCK]


def read_state(model: Any, buffers: dict[str, list[np.ndarray]] | None = None) -> dict[str, list[np.ndarray]]:
    """Copies every array of a live model to the host.

    Args:
        model: a compiled and built model; may be in the middle of `fit`, between two steps.
        buffers: arrays of an earlier call to copy into: fresh pages cost more than the copy itself.

    Returns:
        Arrays by group, owned by the caller.
    """
    arrays = live_arrays(model)
    if buffers is not None and _fits(buffers, arrays):
        for group, values in arrays.items():
            for buffer, value in zip(buffers[group], values, strict=True):
                np.copyto(buffer, host_array(value))
        return buffers
    return {group: [host_array(value).copy() for value in values] for group, values in arrays.items()}


def host_array(value: Any) -> np.ndarray:
    """Copies a backend's array, or a variable of `tf.distribute` over all its replicas, to numpy."""
    replicated = hasattr(value, "values") and hasattr(value, "read_value")
    return np.asarray(value.read_value() if replicated else value)


def wait_for(value: Any) -> None:
    """Waits until a backend's array is computed; None is no array."""
    if hasattr(value, "block_until_ready"):
        value.block_until_ready()
    elif value is not None:
        host_array(value)


def _fits(buffers: Mapping[str, Sequence[np.ndarray]], arrays: Mapping[str, Sequence[Any]]) -> bool:
    return all(
        len(buffers.get(group, ())) == len(values)
        and all(
            buffer.shape == tuple(value.shape) and buffer.dtype == np.dtype(_dtype(value))
            for buffer, value in zip(buffers[group], values, strict=True)
        )
        for group, values in arrays.items()
    )


def _dtype(value: Any) -> Any:
    dtype = value.dtype
    return getattr(dtype, "as_numpy_dtype", dtype)


def assign(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    """Assigns host arrays to variables, one to one. Shapes were checked by whoever matched them.

    Each array is copied: on a CPU JAX may keep an aligned host buffer as the variable itself.
    """
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(np.array(array, copy=True))


@contextmanager
def putting_back(undo: Callable[[], None]) -> Iterator[None]:
    """Calls `undo`, which assigns variables, after a block.

    Several processes assign together: one that fails in the block skips it, because it would wait for the others for ever.
    """
    try:
        yield
    except BaseException:
        if hosts.this().alone:
            undo()
        raise
    undo()


def put_back(model: Any, arrays: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Assigns to a model what `read_state` read from it."""
    for group, variables in variables_of(model).items():
        if group in arrays:
            assign(variables, arrays[group])


def bring_home(model: Any) -> None:
    """Moves a model that several processes trained to this process alone; the others need not take part.

    Its values are those of every process. Functions that Keras compiled for all of them are dropped.
    """
    import jax
    import keras

    keras.distribution.set_distribution(None)
    groups = (model.variables, model.optimizer.variables, model.metrics_variables, *_outside().values())
    for variable in {id(each): each for group in groups for each in group}.values():
        value = host_array(variable.value).copy()
        variable._layout = None  # private: Keras has no way to take a variable out of its distribution
        variable._value = jax.numpy.asarray(value)
    model.train_function = model.test_function = model.predict_function = None


def renew_constants(model: Any) -> None:
    """Recomputes what layers derive from their variables. Call after assigning a model's variables.

    An adapted Normalization keeps its mean and variance once more, as constants in which the graph of the model is traced.
    """
    for layer in model._flatten_layers():
        if type(layer).__name__ == "Normalization" and hasattr(layer, "finalize_state"):
            layer.finalize_state()


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy, the backend and Keras's own generator, for initial weights and seeds of layers."""
    import keras

    keras.utils.set_random_seed(seed)
    _global_state().set_global_attribute(GLOBAL_SEED, keras.random.SeedGenerator(seed))


@contextmanager
def random_kept() -> Iterator[None]:
    """Restores the random generators of Python, numpy and Keras after a block that builds a model."""
    python, numpy_state = random.getstate(), np.random.get_state()  # what Keras's layers draw from
    generator = _global_state().get_global_attribute(GLOBAL_SEED)
    kept = [host_array(variable.value).copy() for variable in _outside().get(RANDOM, ())]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        _global_state().set_global_attribute(GLOBAL_SEED, generator)
        assign_random(kept)


def assign_random(arrays: Sequence[np.ndarray]) -> None:
    """Restores Keras's own seed generator from a snapshot, `read_state(...)[RANDOM]`, if that has one."""
    import keras

    if not arrays:
        return
    if not _outside():
        _global_state().set_global_attribute(GLOBAL_SEED, keras.random.SeedGenerator(0))
    assign(_outside()[RANDOM], arrays)
