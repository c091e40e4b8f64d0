"""Optimizers that a model holds beside the one it was compiled with, as a GAN's two: their state belongs into a backup.

    facts, arrays = capture(model)
    restore(model, facts, arrays)

Keras's own files hold them as well. They are made by the user's code and built at their first step, on variables of their
choice: which ones is kept, so that a new process can build them before it restores them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kresume import devices
from kresume.errors import CheckpointError


def capture(model: keras.Model) -> tuple[list[Any], list[np.ndarray]]:
    """Reads every optimizer but the compiled one.

    Returns:
        `(facts, arrays)`: for each optimizer in its order the numbers of its variables among the model's trainable ones, or
        None where it has made no step; and the arrays of all of them.
    """
    places = {id(variable): place for place, variable in enumerate(model.trainable_variables)}
    facts: list[Any] = []
    arrays: list[np.ndarray] = []
    for optimizer in _others(model):
        if not optimizer.built:
            facts.append(None)
            continue
        trained = devices.inner(optimizer)._trainable_variables
        facts.append([places[id(variable)] for variable in trained if id(variable) in places])
        arrays += [np.array(variable.value, copy=True) for variable in optimizer.variables]
    return facts, arrays


def restore(model: keras.Model, facts: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    """Assigns what `capture` read, building each optimizer on the variables that it trained.

    Raises:
        CheckpointError: the model holds other optimizers now.
    """
    optimizers, left = list(_others(model)), list(arrays)
    if len(facts) != len(optimizers):
        raise CheckpointError(
            f"the backup holds {len(facts)} optimizers beside the compiled one, this model has {len(optimizers)}: the code of "
            "the model changed since; restore that code, or give another folder to begin again"
        )
    trainable = model.trainable_variables
    for optimizer, trained in zip(optimizers, facts, strict=True):
        if trained is None:
            continue
        if not optimizer.built:
            optimizer.build([trainable[place] for place in trained])
        variables = optimizer.variables
        mine, left = left[: len(variables)], left[len(variables) :]
        if [tuple(variable.shape) for variable in variables] != [array.shape for array in mine]:
            raise CheckpointError(
                f"the variables of {optimizer.name} are not those of the backup: the code of the model changed since; restore "
                "that code, or give another folder to begin again"
            )
        devices.assign(variables, mine)


def _others(model: keras.Model) -> Iterator[Any]:
    seen = {id(getattr(model, "optimizer", None))}

    def found(value: Any) -> Iterator[Any]:
        if isinstance(value, keras.optimizers.Optimizer):
            if id(value) not in seen:
                seen.add(id(value))
                yield value
        elif isinstance(value, Mapping):
            for item in value.values():
                yield from found(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from found(item)

    for name, value in sorted(vars(model).items()):
        if not name.startswith("_tracker"):
            yield from found(value)
