"""Matches a pytree of arrays (Orbax) with the variables of a live model.

    found = match(model, optimizer, state, targets)      # found.names: id(variable) -> name of the array

A tree holds paths and no order, and paths are not stable: generated names count a process's layers, and how a nested
model was built decides whether its own name precedes a variable's. So a group is matched whole, one to one, or not at
all. Three ways are tried: the layers' names, the renumbered names, and the model that the checkpoint itself describes,
whose variables are in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kresume.backend import live_state
from kresume.checkpoints.orbax_folder import OPTIMIZER, scaling_of
from kresume.errors import ModelError
from kresume.models import match_slots, slots, structure
from kresume.models.generated_names import by_new_number, split_number
from kresume.models.match_by_shape import split_by_shape
from kresume.models.match_slots import Matched
from kresume.models.structure import SEED, Target
from kresume.values.state import TrainState

GROUPS = {"trainable": "trainable_variables", "non_trainable": "non_trainable_variables"}
METRICS = "metrics_variables"
OTHERS = frozenset({"opt_state", "optimizer", "optimizer_state", "metrics"})
"""Names under which other programs store arrays that are not weights."""

AVERAGED = frozenset({"ema", "avg", "average", "averaged", "averages", "swa", "teacher", "target"})
"""Words in the names of weights that are not those that were trained."""
USUAL = frozenset({"params", "param", "model", "weights", "variables", "net", "network", "online", "student"})
"""Words in the names of weights that were trained; a tree may hold moments and gradients of the same shapes, too."""

Path = tuple[str, ...]


def match(
    model: Any, optimizer: Any | None, state: TrainState, targets: Sequence[Target], *, same_weights: bool = False
) -> Matched:
    """Finds the array of each variable.

    Args:
        model: built.
        optimizer: built, or None to match the weights alone.
        state: of the layout `"tree"`.
        targets: every variable to restore.
        same_weights: the user states that the weights trainable now were trainable then.
    """
    others, notes = frozenset[str](), tuple[str, ...]()
    names = _weights(model, state)
    if not names and state.architecture is not None:
        names = _through_description(model, state)
    if not names and not _is_keras(state):
        names, others, notes = _one_of_several(model, state)
    names |= _seeds(targets, state)
    if optimizer is None:
        return Matched(names, notes=notes, apart=others)
    found = _match_optimizer(model, optimizer, state, names, same_weights)
    return Matched({**names, **found.names}, found.left_out, found.unsure, notes, apart=others | found.apart)


def _is_keras(state: TrainState) -> bool:
    return any(name.startswith(tuple(f"{root}/" for root in GROUPS.values())) for name in state.arrays)


def _weights(model: Any, state: TrainState) -> dict[int, str]:
    live = {id(variable): path for path, variable in _structure(model, ())}
    if not _is_keras(state):
        return {key: "/".join(path) for key, path in _match_group(model.weights, _foreign(state), live).items()}
    wanted = [variable for variable in model.variables if SEED not in variable.path]
    roots: dict[Path, list[str]] = {}
    listed = {
        root: [tuple(name.split("/")[1:]) for name in state.arrays if name.startswith(f"{root}/") and SEED not in name]
        for root in GROUPS.values()
    }
    numbered = {root: _list(paths) if paths else [] for root, paths in listed.items()}
    if all(paths is not None for paths in numbered.values()):
        lists = [["/".join((root, *path)) for path in paths or ()] for root, paths in numbered.items()]
        return split_by_shape(wanted, model, state, lists[0], lists[1])
    for root, paths in listed.items():
        for path in paths:
            roots.setdefault(path, []).append(root)
    if any(len(found) > 1 for found in roots.values()):
        return {}
    # Both groups together: a weight frozen since is in the other group, and generated names are numbered across both.
    found = _match_group(wanted, list(roots), live)
    return {key: "/".join((roots[path][0], *path)) for key, path in found.items()}


def _foreign(state: TrainState) -> list[Path]:
    """Returns the paths of the weights in a tree that another program wrote."""
    paths = [tuple(name.split("/")) for name in state.arrays if not set(name.split("/")) & OTHERS]
    return [path for path in paths if state.arrays["/".join(path)].shape or len(path) > 1]


def _one_of_several(model: Any, state: TrainState) -> tuple[dict[int, str], frozenset[str], tuple[str, ...]]:
    """Matches one of several sets of weights, such as `params` beside `ema_params`.

    Returns:
        `(id(variable) -> name of its array, names of the arrays of the others, notes for the user)`; empty if none fits, or
        several do and no usual name decides.
    """
    live = {id(variable): path for path, variable in _structure(model, ())}
    roots: dict[str, list[Path]] = {}
    for path in _foreign(state):
        roots.setdefault(path[0], []).append(path)
    words = {root: set(re.split(r"[_\W]+", root.lower())) for root in roots}
    plain = tuple(root for root in roots if not words[root] & AVERAGED)
    for choices in ([plain], [(root,) for root in roots]):
        fitting = {
            choice: found
            for choice in choices
            if len(roots) > 1
            and (found := _match_group(model.weights, [path for root in choice for path in roots[root]], live))
        }
        usual = [
            choice for choice in fitting if any(words[root] & USUAL and not words[root] & AVERAGED for root in choice)
        ]
        if len(usual) != 1:
            continue
        chosen = usual[0]
        rest = [root for root in roots if root not in chosen]
        note = (
            f"the file also holds {', '.join(rest)}, which {'is' if len(rest) == 1 else 'are'} ignored: "
            f"{' and '.join(chosen)} is used (a tree of {rest[0]} alone: c = orbax.checkpoint.PyTreeCheckpointer(); "
            f"c.save(OTHER, c.restore(PATH)[{rest[0]!r}]))"
        )
        names = {key: "/".join(path) for key, path in fitting[chosen].items()}
        return names, frozenset("/".join(path) for root in rest for path in roots[root]), (note,)
    return {}, frozenset(), ()


def _structure(layer: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yields each variable with the names of the layers that lead to it.

    That path is longer than the variable's own, and always the same.
    """
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
        yield (*path, str(variable.name)), variable
    for child in layer._flatten_layers(include_self=False, recursive=False):
        yield from _structure(child, (*path, str(child.name)))


def _match_group(variables: Sequence[Any], paths: Sequence[Path], live: Mapping[int, Path]) -> dict[int, Path]:
    """Maps each variable to its path, one to one; empty if that is impossible."""
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
    for cut in (0, 1):  # the model's own name may come first
        theirs = by_new_number([(path, path[cut:]) for path in paths])
        for ours in ({key: live[key] for key in map(id, variables)}, _own_paths(variables)):
            mine = by_new_number(list(ours.items()))
            if theirs.keys() == mine.keys() and len(mine) == len(variables):
                return {key: theirs[path] for path, key in mine.items()}
    return {}


def _own_paths(variables: Sequence[Any]) -> dict[int, Path]:
    return {id(variable): tuple(str(variable.path).split("/")) for variable in variables}


def _is_end(short: Path, whole: Path) -> bool:
    return len(short) > 1 and whole[-len(short) :] == short


def _through_description(model: Any, state: TrainState) -> dict[int, str]:
    """Matches by position, through a model that is built from the checkpoint's architecture.

    The layers of that model have the names in the tree.
    """
    from kresume.models.build import from_architecture

    try:
        described = from_architecture(state.architecture or {})
    except ModelError:
        return {}  # its classes are not known here; `restore` lists what is missing
    names = _weights(described, state)
    theirs = structure.address_of(described)
    saved = {names[id(variable)]: theirs[id(variable)] for variable in described.variables if id(variable) in names}
    live = {key: address for key, address in structure.address_of(model).items() if SEED not in address.position}
    return structure.pair(live, saved)


def _seeds(targets: Sequence[Target], state: TrainState) -> dict[int, str]:
    """Matches the states of seed generators by number, if there are equally many."""
    names = sorted(
        (name for name in state.arrays if SEED in name), key=lambda name: split_number(name.split("/")[-2])[1]
    )
    seeds = [target.variable for target in targets if target.is_seed]
    seeds.sort(key=lambda variable: split_number(str(variable.path).split("/")[-2])[1])
    return {id(seed): name for seed, name in zip(seeds, names, strict=True)} if len(seeds) == len(names) else {}


def _list(paths: Sequence[Path]) -> list[Path] | None:
    """Returns the paths in order if they index one list, else None."""
    if not paths or len({path[:-1] for path in paths}) != 1 or not all(path[-1].isdigit() for path in paths):
        return None
    return sorted(paths, key=lambda path: int(path[-1]))


def _match_optimizer(
    model: Any, optimizer: Any, state: TrainState, weights: Mapping[int, str], same_weights: bool
) -> Matched:
    """Matches slots, which are named by their variable's path in the writing process."""
    inner = live_state.inner(optimizer)
    by_last: dict[str, list[str]] = {}
    for name in state.arrays:
        if name.startswith(f"{OPTIMIZER}/"):
            by_last.setdefault(name.rpartition("/")[2], []).append(name)
    numbered = _list([tuple(name.split("/")) for names in by_last.values() for name in names])
    if numbered is not None:
        names = ["/".join(path) for path in numbered]
        saved, unsure = match_slots.by_order(model, optimizer, state, names, weights, same_weights=same_weights)
        return replace(match_slots.join(optimizer, saved, weights), unsure=unsure)
    kinds: set[str] = set()
    found: dict[int, str] = {}
    for listed in slots.slot_lists(optimizer).values():
        for slot, variable in zip(listed, inner._trainable_variables, strict=True):
            weight = weights.get(id(variable))
            if slot is None or weight is None:
                continue
            own = f"{str(variable.path).replace('/', '_')}_"
            kind = str(slot.path).rpartition("/")[2].removeprefix(own)
            kinds.add(kind)
            named = by_last.get(f"{'_'.join(weight.split('/')[1:])}_{kind}", [])
            if len(named) == 1:
                found[id(slot)] = named[0]
    scaling, live_scaling = scaling_of(state.arrays), set(map(id, slots.scale_variables(optimizer)))
    for variable in optimizer.variables:
        named = by_last.get(str(variable.path).rpartition("/")[2], [])
        named = [name for name in named if (name in scaling) == (id(variable) in live_scaling)]
        if id(variable) not in found and len(named) == 1 and state.arrays[named[0]].shape == ():
            found[id(variable)] = named[0]
    trained = {id(variable) for variable in inner._trainable_variables}
    frozen = {"_".join(name.split("/")[1:]) for key, name in weights.items() if key not in trained}
    left_out = {name for path in frozen for kind in kinds for name in by_last.get(f"{path}_{kind}", ())}
    return Matched(found, frozenset(left_out), apart=frozenset() if live_scaling else scaling)


def unused(model: Any, optimizer: Any | None, state: TrainState, names: Mapping[int, str]) -> list[str]:
    """Returns the unmatched arrays that should have a variable.

    Args:
        model: built; not needed here.
        optimizer: None if only the weights are restored.
        state: the checkpoint.
        names: `id(variable)` -> name of its array, as matched.
    """
    passed = {METRICS, *(() if optimizer is not None else (OPTIMIZER,))}
    own = _is_keras(state)
    return [
        name
        for name in match_slots.unmatched(state, names)
        if name.partition("/")[0] not in passed
        and SEED not in name
        and not (name.startswith(OPTIMIZER) and name.endswith("/learning_rate"))  # a rate that is a schedule now
        and not (not own and (set(name.split("/")) & OTHERS or not state.arrays[name].shape))
    ]
