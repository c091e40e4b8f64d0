"""Matches a pytree of arrays (Orbax) with a live model: which array belongs to which variable.

    names = match(model, optimizer, state, targets)      # id(variable) -> name of the array

A tree holds paths and no order, and paths shift: names that Keras makes up count a process's layers, and a nested model's own
name is in front of a variable or not, by how it was built. So a group is matched whole, one to one, or not at all: by the
layers' names; by the names counted anew; else through the model that the checkpoint itself describes, whose variables stand in
the same order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kresume import devices
from kresume.checkpoints.orbax_folder import OPTIMIZER
from kresume.checkpoints.state import TrainState
from kresume.errors import ModelError
from kresume.models import slots
from kresume.models.match_graph import SEED, Target

GROUPS = {"trainable": "trainable_variables", "non_trainable": "non_trainable_variables"}
METRICS = "metrics_variables"
OTHERS = frozenset({"opt_state", "optimizer", "optimizer_state", "metrics"})
"""What trees of other programs call what is no weight."""

Path = tuple[str, ...]


def match(model: Any, optimizer: Any | None, state: TrainState, targets: Sequence[Target]) -> dict[int, str]:
    """The array of each variable.

    Args:
        model: built.
        optimizer: built, or None to match the weights alone.
        state: of the layout `"tree"`.
        targets: every variable that wants a value.
    """
    names = _weights(model, state)
    if not names and state.architecture is not None:
        names = _through_description(model, state)
    names |= _seeds(targets, state)
    return names if optimizer is None else {**names, **_match_optimizer(optimizer, state, names)}


def _is_keras(state: TrainState) -> bool:
    return any(name.startswith(tuple(f"{root}/" for root in GROUPS.values())) for name in state.arrays)


def _weights(model: Any, state: TrainState) -> dict[int, str]:
    live = {id(variable): path for path, variable in _structure(model, ())}
    if not _is_keras(state):
        paths = [tuple(name.split("/")) for name in state.arrays if not set(name.split("/")) & OTHERS]
        paths = [path for path in paths if state.arrays["/".join(path)].shape or len(path) > 1]
        return {key: "/".join(path) for key, path in _match_group(model.weights, paths, live).items()}
    names: dict[int, str] = {}
    for variables, root in zip(
        (model.trainable_variables, model.non_trainable_variables), GROUPS.values(), strict=True
    ):
        paths = [
            tuple(name.split("/")[1:]) for name in state.arrays if name.startswith(f"{root}/") and SEED not in name
        ]
        wanted = [variable for variable in variables if SEED not in variable.path]
        found = _match_group(wanted, paths, live)
        if len(found) != len(wanted):
            return {}
        names |= {key: "/".join((root, *path)) for key, path in found.items()}
    return names


def _structure(layer: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every variable with the names of the layers that lead to it: a longer path than its own, and always the same."""
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
        yield (*path, str(variable.name)), variable
    for child in layer._flatten_layers(include_self=False, recursive=False):
        yield from _structure(child, (*path, str(child.name)))


def _match_group(variables: Sequence[Any], paths: Sequence[Path], live: Mapping[int, Path]) -> dict[int, Path]:
    """Every variable with its path, one to one; nothing if that cannot be."""
    if len(variables) != len(paths):
        return {}
    numbered = _list(paths)
    if numbered is not None:
        return {id(variable): path for variable, path in zip(variables, numbered, strict=True)}
    found = {}
    for variable in variables:
        ends = [path for path in paths if _is_end(path, live[id(variable)]) or _is_end(live[id(variable)], path)]
        if len(ends) == 1:
            found[id(variable)] = ends[0]
    if len(found) == len(variables) == len(set(found.values())):
        return found
    for cut in (0, 1):  # a model's own name may stand in front
        theirs = _by_new_number([(path, path[cut:]) for path in paths])
        for ours in ({key: live[key] for key in map(id, variables)}, _own_paths(variables)):
            mine = _by_new_number(list(ours.items()))
            if theirs.keys() == mine.keys() and len(mine) == len(variables):
                return {key: theirs[path] for path, key in mine.items()}
    return {}


def _own_paths(variables: Sequence[Any]) -> dict[int, Path]:
    return {id(variable): tuple(str(variable.path).split("/")) for variable in variables}


def _is_end(short: Path, whole: Path) -> bool:
    return len(short) > 1 and whole[-len(short) :] == short


def _through_description(model: Any, state: TrainState) -> dict[int, str]:
    """By place, through a model built as the checkpoint says: its layers bear the names that the tree has."""
    from kresume.models.build import from_architecture

    try:
        described = from_architecture(state.architecture or {})
    except ModelError:
        return {}  # of classes that are not known here: restore lists what is missing
    names = _weights(described, state)
    found: dict[int, str] = {}
    for group in GROUPS.values():
        ours, theirs = ([v for v in getattr(one, group) if SEED not in v.path] for one in (model, described))
        if [tuple(variable.shape) for variable in ours] != [tuple(variable.shape) for variable in theirs]:
            return {}
        pairs = zip(ours, theirs, strict=True)
        found |= {id(own): names[id(other)] for own, other in pairs if id(other) in names}
    return found


def _seeds(targets: Sequence[Target], state: TrainState) -> dict[int, str]:
    """States of seed generators by their number, if there are as many."""
    names = sorted((name for name in state.arrays if SEED in name), key=lambda name: _split(name.split("/")[-2])[1])
    seeds = [target.variable for target in targets if target.is_seed]
    seeds.sort(key=lambda variable: _split(str(variable.path).split("/")[-2])[1])
    return {id(seed): name for seed, name in zip(seeds, names, strict=True)} if len(seeds) == len(names) else {}


def _list(paths: Sequence[Path]) -> list[Path] | None:
    """The paths in their order, if they are the places of one list."""
    if not paths or len({path[:-1] for path in paths}) != 1 or not all(path[-1].isdigit() for path in paths):
        return None
    return sorted(paths, key=lambda path: int(path[-1]))


def _by_new_number(entries: Sequence[tuple[Any, Path]]) -> dict[Path, Any]:
    """Entries by their path with each made-up name (`dense_4`) counted anew; what is there twice is left out."""
    siblings: dict[tuple[Path, str], set[tuple[int, str]]] = {}
    for _, path in entries:
        for depth, name in enumerate(path[:-1]):
            base, number = _split(name)
            siblings.setdefault((path[:depth], base), set()).add((number, name))
    places = {
        (parent, name): f"{base}#{place}"
        for (parent, base), names in siblings.items()
        for place, (_, name) in enumerate(sorted(names))
    }
    found: dict[Path, Any] = {}
    twice = set()
    for entry, path in entries:
        key = (*(places[path[:depth], name] for depth, name in enumerate(path[:-1])), *path[-1:])
        if key in found:
            twice.add(key)
        found[key] = entry
    return {key: entry for key, entry in found.items() if key not in twice}


def _split(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.*?)_(\d+)", name)
    return (found.group(1), int(found.group(2))) if found else (name, 0)


def _match_optimizer(optimizer: Any, state: TrainState, weights: Mapping[int, str]) -> dict[int, str]:
    """Slots are called after their variable's whole path, in the process that wrote them."""
    inner = devices.inner(optimizer)
    by_last: dict[str, list[str]] = {}
    for name in state.arrays:
        if name.startswith(f"{OPTIMIZER}/"):
            by_last.setdefault(name.rpartition("/")[2], []).append(name)
    numbered = _list([tuple(name.split("/")) for names in by_last.values() for name in names])
    if numbered is not None:
        variables = list(optimizer.variables)
        same = len(numbered) == len(variables)
        return (
            {id(variable): "/".join(path) for variable, path in zip(variables, numbered, strict=True)} if same else {}
        )
    found: dict[int, str] = {}
    for listed in slots.slot_lists(optimizer).values():
        for slot, variable in zip(listed, inner._trainable_variables, strict=True):
            weight = weights.get(id(variable))
            if slot is None or weight is None:
                continue
            own = f"{str(variable.path).replace('/', '_')}_"
            kind = str(slot.path).rpartition("/")[2].removeprefix(own)
            named = by_last.get(f"{'_'.join(weight.split('/')[1:])}_{kind}", [])
            if len(named) == 1:
                found[id(slot)] = named[0]
    for variable in optimizer.variables:
        named = by_last.get(str(variable.path).rpartition("/")[2], [])
        if id(variable) not in found and len(named) == 1 and state.arrays[named[0]].shape == ():
            found[id(variable)] = named[0]
    return found


def unused(state: TrainState, left: Sequence[str], optimizer: Any | None) -> list[str]:
    """Of the arrays that found no variable, those that should have found one.

    Args:
        state: what was read.
        left: names of arrays that found no variable.
        optimizer: None if only the weights were wanted.
    """
    passed = {METRICS, *(() if optimizer is not None else (OPTIMIZER,))}
    own = _is_keras(state)
    return [
        name
        for name in left
        if name.partition("/")[0] not in passed
        and SEED not in name
        and not (name.startswith(OPTIMIZER) and name.endswith("/learning_rate"))  # a rate that is a schedule now
        and not (not own and (set(name.split("/")) & OTHERS or not state.arrays[name].shape))
    ]
