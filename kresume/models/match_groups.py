"""Matches the arrays of a snapshot with a live model: `trainable/0`, `optimizer/7`.

    found = match(model, optimizer, state, targets)      # found.names: id(variable) -> name of the array

Snapshots record where each variable is in its model (`kresume.models.structure`) and what each variable of the
optimizer is. Snapshots of earlier versions do not: there the recorded names of variables decide. Without names, the
shapes decide if only one choice of frozen layers fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kresume.models import match_slots, structure
from kresume.models.generated_names import by_new_number
from kresume.models.match_by_shape import split_by_shape
from kresume.models.match_slots import Matched, Saved
from kresume.models.structure import Target
from kresume.values.state import TrainState


def match(
    model: Any, optimizer: Any | None, state: TrainState, targets: Sequence[Target], *, same_weights: bool = False
) -> Matched:
    """Finds the array of each variable.

    Args:
        model: built.
        optimizer: built, or None to match the weights alone.
        state: of the layout `"groups"`.
        targets: every variable to restore; not needed here.
        same_weights: the user states that the weights trainable now were trainable then.
    """
    names = match_weights(model, state)
    if optimizer is None:
        return Matched(names)
    found = match_optimizer(model, optimizer, state, names, same_weights=same_weights)
    return replace(found, names={**names, **found.names})


def match_weights(model: Any, state: TrainState) -> dict[int, str]:
    """Returns `id(variable)` -> name of its array, for weights and seed states."""
    if structure.RECORD not in state.records:
        return _without_record(model, state)
    saved = structure.recorded(state.records[structure.RECORD])
    arrays = {f"{group}/{index}": entry for group, listed in saved.items() for index, entry in enumerate(listed)}
    arrays = {name: entry for name, entry in arrays.items() if name in state.arrays}
    return structure.pair(structure.address_of(model), arrays)


def match_optimizer(
    model: Any, optimizer: Any, state: TrainState, weights: Mapping[int, str], *, same_weights: bool = False
) -> Matched:
    """Finds the array of each variable of an optimizer.

    Args:
        model: built.
        optimizer: built on the model's trainable variables, of the class and config that wrote the file.
        state: of the layout `"groups"`.
        weights: `id(variable)` -> name of its array, as `match_weights` found them.
        same_weights: the user states that the weights trainable now were trainable then.
    """
    if structure.RECORD in state.records:
        return match_slots.join(optimizer, _recorded(state), weights)
    saved, unsure = match_slots.by_order(
        model,
        optimizer,
        state,
        arrays_of(state, "optimizer"),
        weights,
        arrays_of(state, "trainable"),
        same_weights=same_weights,
    )
    return replace(match_slots.join(optimizer, saved, weights), unsure=unsure)


def unused(model: Any, optimizer: Any | None, state: TrainState, names: Mapping[int, str]) -> list[str]:
    """Returns the unmatched arrays that should have a variable.

    A snapshot also holds metrics and random states, which need none.
    """
    left = match_slots.unmatched(state, names)
    if optimizer is not None and state.optimizer is not None and state.optimizer.loss_scale:
        superfluous = match_slots.superfluous(optimizer, state, arrays_of(state, "optimizer"))
        left = [name for name in left if name not in superfluous]
    groups = {*structure.GROUPS, *(("optimizer",) if optimizer is not None else ())}
    return [name for name in left if name.partition("/")[0] in groups]


def arrays_of(state: TrainState, group: str) -> list[str]:
    """Returns the names of a group's arrays in order."""
    return match_slots.in_order(name for name in state.arrays if name.startswith(f"{group}/"))


def _recorded(state: TrainState) -> list[Saved]:
    """Returns the optimizer's arrays as a kresume snapshot records them."""

    def weight_of(trained: int | None, frozen: int | None = None) -> str | None:
        if frozen is not None:
            return f"non_trainable/{frozen}"
        return None if trained is None else f"trainable/{trained}"

    entries = state.records[structure.RECORD].get("optimizer", ())
    return [Saved(f"optimizer/{index}", str(kind), weight_of(*of)) for index, (kind, *of) in enumerate(entries)]


def _without_record(model: Any, state: TrainState) -> dict[int, str]:
    """Matches a snapshot of an earlier version, which does not record the structure."""
    listed = {group: arrays_of(state, group) for group in structure.GROUPS}
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
