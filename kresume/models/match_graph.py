"""Matches TensorFlow's object graph with a live model: which array of the file belongs to which variable.

    names = match(model, optimizer, state, targets)      # id(variable) -> name of the array

The keys of a checkpoint of TensorFlow depend on which objects were saved together; the edges between the objects do not. So the
graph and the live model are walked together: an edge is an attribute, a place in a list, or a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import keras

from kresume.checkpoints.state import TrainState
from kresume.checkpoints.tf_checkpoint import find_optimizer


class Target(Protocol):
    """A live variable that wants a value, as `restore` lists them."""

    @property
    def variable(self) -> Any:
        """The Keras variable."""

    @property
    def group(self) -> str:
        """`"trainable"`, `"non_trainable"` or `"optimizer"`."""


def match(model: Any, optimizer: Any, state: TrainState, targets: Sequence[Target]) -> dict[int, str]:
    """The array of each variable that the graph leads to.

    Args:
        model: built.
        optimizer: built, or None to match the weights alone.
        state: of the layout `"graph"`.
        targets: every variable that wants a value.

    Returns:
        `id(variable)` -> name of its array; variables that the graph does not lead to are left out.
    """
    optimizer_node = find_optimizer(state.graph)
    best: dict[int, str] = {}
    wanted = {id(target.variable) for target in targets}
    for node in (0, *state.graph[0].children.values()):
        if node == optimizer_node:
            continue
        names = _walk(state, node, model)
        if len(names.keys() & wanted) > len(best.keys() & wanted):
            best = names
    by_full_name = _unique_full_names(state)
    for target in targets:
        if target.group != "optimizer" and (name := by_full_name.get(target.variable.path)):
            best.setdefault(id(target.variable), name)
    if optimizer is not None and optimizer_node is not None:
        best = {**_walk(state, optimizer_node, optimizer), **best}
    return best


def unused(left: Sequence[str], optimizer: Any | None) -> list[str]:
    """Of the arrays that found no variable, those that should have found one.

    Args:
        left: names of arrays that found no variable.
        optimizer: None if only the weights were wanted.
    """
    return [name for name in left if name.partition("/")[0] != "save_counter" and not _of_optimizer(name, optimizer)]


def _of_optimizer(name: str, optimizer: Any | None) -> bool:
    parts = name.split("/")
    if "_learning_rate" in parts:
        return True  # a rate that is a schedule now
    return optimizer is None and "optimizer" in parts and "_trainable_variables" not in parts


def _unique_full_names(state: TrainState) -> dict[str, str]:
    counts: dict[str, list[str]] = {}
    for node in state.graph:
        if node.array is not None:
            counts.setdefault(node.full_name, []).append(node.array)
    return {full_name: arrays[0] for full_name, arrays in counts.items() if len(arrays) == 1}


def _walk(state: TrainState, node: int, live: Any) -> dict[int, str]:
    """Follows the graph and the live object together: an edge is an attribute, a place in a list, or a key."""
    names: dict[int, str] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [(node, live)]
    while waiting:
        index, thing = waiting.pop()
        if (index, id(thing)) in seen:
            continue
        seen.add((index, id(thing)))
        saved = state.graph[index]
        if saved.array is not None and isinstance(thing, keras.Variable):
            names[id(thing)] = saved.array
            continue
        for edge, child in saved.children.items():
            following = _follow(thing, edge)
            if following is not None:
                waiting.append((child, following))
    return names


def _follow(thing: Any, edge: str) -> Any:
    if isinstance(thing, (list, tuple)):
        return thing[int(edge)] if edge.isdigit() and int(edge) < len(thing) else None
    if isinstance(thing, dict):
        return thing.get(edge)
    try:
        return getattr(thing, edge, None)
    except (AttributeError, ValueError, RuntimeError):  # properties of Keras layers that raise before a first call
        return None
