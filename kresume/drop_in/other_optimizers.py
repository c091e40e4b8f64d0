"""Saves and restores a model's optimizers besides the compiled one, such as a GAN's two.

    facts, arrays = capture(model)
    restore(model, facts, arrays)

Keras's own files hold those of the model as well; a layer that is a compiled model has one, too. The user's code creates
them, and their first step builds them on variables of its choice. The indices of these variables are saved, so that a new
process can build the optimizers before restoring them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.errors import CheckpointError


def capture(model: keras.Model) -> tuple[list[Any], list[np.ndarray]]:
    """Reads every optimizer except the compiled one.

    Returns:
        `(facts, arrays)`: facts has an entry per optimizer: the indices of its variables among the model's (None for a
        variable that is not the model's) and the number of its arrays; the entry is None if the optimizer has made no
        step. arrays holds the arrays of all of them.
    """
    indices = {id(variable): index for index, variable in enumerate(model.variables)}
    facts: list[Any] = []
    arrays: list[np.ndarray] = []
    for optimizer in _others(model):
        if not optimizer.built:
            facts.append(None)
            continue
        trained = live_state.inner(optimizer)._trainable_variables
        mine = [live_state.host_array(variable.value).copy() for variable in optimizer.variables]
        facts.append({"trained": [indices.get(id(variable)) for variable in trained], "arrays": len(mine)})
        arrays += mine
    return facts, arrays


def restore(model: keras.Model, facts: Sequence[Any] | None, arrays: Sequence[np.ndarray]) -> list[str]:
    """Assigns the arrays that `capture` read; builds each optimizer on the variables that it trained.

    Args:
        model: the built model.
        facts: the facts of `capture`; None for a backup of an earlier version, which has none.
        arrays: the arrays of `capture`.

    Returns:
        Notes for the user.

    Raises:
        CheckpointError: the model holds other optimizers now, or one that cannot be built before its first step.
    """
    optimizers, left = list(_others(model)), list(arrays)
    if facts is None:
        return ["optimizers beside the compiled one are not in this backup and start fresh"] if optimizers else []
    if len(facts) not in {len(optimizers), _own_count(model)}:
        raise CheckpointError(
            f"the backup holds {len(facts)} optimizers beside the compiled one, this model has {len(optimizers)}: the code of "
            "the model changed since; restore that code, or give another folder to start again"
        )
    variables = model.variables
    for optimizer, fact in zip(optimizers, facts, strict=False):
        if fact is None:
            continue
        mine, left = left[: fact["arrays"]], left[fact["arrays"] :]
        if not optimizer.built and None in fact["trained"]:
            raise CheckpointError(
                f"{optimizer.name} trains variables that do not belong to the model: call its build(variables) before fit, so "
                "that its state can be restored"
            )
        if not optimizer.built:
            optimizer.build([variables[index] for index in fact["trained"]])
        if [tuple(variable.shape) for variable in optimizer.variables] != [array.shape for array in mine]:
            raise CheckpointError(
                f"the variables of {optimizer.name} are not those of the backup: the code of the model changed since; restore "
                "that code, or give another folder to start again"
            )
        live_state.assign(optimizer.variables, mine)
    fresh = ", ".join(optimizer.name for optimizer in optimizers[len(facts) :])
    return [f"the optimizers of its layers are not in this backup and start fresh: {fresh}"] if fresh else []


def _own_count(model: keras.Model) -> int:
    """Counts the optimizers that a backup of an earlier version holds: not those of the model's layers."""
    return sum(1 for _ in _others(model, layers=False))


def _others(model: keras.Model, *, layers: bool = True) -> Iterator[Any]:
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

    # Those of the model first: backups of earlier versions hold no others. Only a step of the user's own can train by the
    # optimizer of a part; that of a pretrained part would make every backup larger for nothing.
    parts = layers and type(model).train_step is not keras.Model.train_step
    for owner in (model, *(model._flatten_layers(include_self=False) if parts else ())):
        for name, value in sorted(vars(owner).items()):
            if not name.startswith("_tracker"):
                yield from found(value)
