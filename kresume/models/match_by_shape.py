"""Matches variables with arrays by shape alone; answers only if one choice fits.

    names = split_by_shape(model.variables, model, state, trained, others)      # id(variable) -> name of the array

For files whose names do not identify a weight: two lists of arrays, slots without their weights, and single arrays that
the structure of a file left over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kresume.checkpoints.choices import Item, choose
from kresume.models import structure
from kresume.models.structure import Target
from kresume.values.state import TrainState


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


def trained_by_shape(
    model: Any, state: TrainState, shapes: Sequence[tuple[int, ...]], weights: Mapping[int, str]
) -> list[str] | None:
    """Finds the weights of slots by shape, if only one choice of layers fits.

    If none does, single weights may have been frozen (`layer.kernel.trainable = False`): then a choice of weights counts.

    Args:
        model: built.
        state: the checkpoint.
        shapes: of the slots of one kind, in order.
        weights: `id(variable)` -> name of its array.

    Returns:
        The names of the weights' arrays in order; None if no choice fits, or several do.
    """
    groups = []
    for layer in structure.layers_that_train(model):
        found = [weights.get(id(variable)) for variable in layer]
        groups.append([name for name in found if name is not None])
        if len(groups[-1]) != len(found):
            return None
    for parts in (groups, [[name] for group in groups for name in group]):
        items = [Item(tuple(tuple(state.arrays[name].shape) for name in part), True) for part in parts]
        chosen = choose(items, shapes)
        if chosen is not None:
            return [name for part, taken in zip(parts, chosen, strict=True) if taken for name in part]
    return None


def pair_leftovers(
    state: TrainState,
    targets: Sequence[Target],
    names: Mapping[int, str],
    unused: Sequence[str],
    same_roles: Callable[[Sequence[tuple[Any, str]]], bool],
) -> tuple[dict[int, str], tuple[str, ...]]:
    """Pairs weights that the structure left over by shape, if every shape is unique.

    A bias is never paired with a statistic of the same shape.

    Args:
        state: the checkpoint.
        targets: every variable to restore.
        names: `id(variable)` -> name of its array, as matched by the structure.
        unused: names of the arrays that were not matched and should have a variable.
        same_roles: returns True if the variable and the array of each pair have the same role in their layers.

    Returns:
        The pairs, and a note for the user.
    """
    left = [
        target
        for target in targets
        if target.group != "optimizer" and id(target.variable) not in names and not target.is_seed
    ]
    over = {tuple(state.arrays[name].shape): name for name in unused}
    wanted = {tuple(target.variable.shape): target for target in left}
    if not left or len(over) != len(unused) or len(wanted) != len(left) or over.keys() != wanted.keys():
        return {}, ()
    pairs = {id(target.variable): over[shape] for shape, target in wanted.items()}
    if not same_roles([(target.variable, pairs[id(target.variable)]) for target in left]):
        return {}, ()
    shown = ", ".join(f"{pairs[id(target.variable)]} is {target.variable.path}" for target in left[:3])
    return pairs, (f"{len(left)} matched only by shape ({shown}{', ...' if len(left) > 3 else ''})",)
