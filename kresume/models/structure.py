"""Computes addresses of a model's variables, independent of freezing and generated names.

    address_of(model)                 # id(variable) -> Address("dense/kernel", "head/kernel")
    describe(model)                   # the same by group, as a snapshot records it

`model.trainable_variables` and `model.non_trainable_variables` change with `layer.trainable`, and an auto-generated
name changes with what a process built before. The tree of layers changes with neither. An address is the path through
that tree and the role of the variable in its layer. A layer is identified by its index among its siblings of the same
class (`dense_1`), or by its own name if the user gave it one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from kresume.backend import live_state
from kresume.models import own_counts, slots

GROUPS = ("trainable", "non_trainable")
RECORD = "structure"
"""Key of the snapshot record that holds the addresses."""
COUNTS = "own_counts"
SEED = "seed_generator_state"


class Target(Protocol):
    """A live variable to restore, as `restore` lists them."""

    @property
    def variable(self) -> Any:
        """Returns the Keras variable."""

    @property
    def group(self) -> str:
        """Returns `"trainable"`, `"non_trainable"` or `"optimizer"`."""

    @property
    def is_seed(self) -> bool:
        """Returns True if the variable is the state of a seed generator."""


@dataclass(frozen=True)
class Address:
    """The location of a variable in its model.

    Attributes:
        position: every layer by its class and its index among siblings of that class: `functional/dense_1/kernel`.
        name: the same, with the user's own names of layers if given: `backbone/head/kernel`.
    """

    position: str
    name: str


def can_train(model: Any) -> list[Any]:
    """Returns the weights that training changes if nothing is frozen, in order."""
    return [variable for layer in layers_that_train(model) for variable in layer]


def layers_that_train(model: Any) -> list[list[Any]]:
    """Groups the weights that training changes if nothing is frozen by layer.

    A layer that the user froze in part is split into single variables.
    """
    owner: dict[int, int] = {}
    for index, layer in enumerate(_tree(model)):
        for variable in layer._trainable_variables:
            owner.setdefault(id(variable), index)
    now = {id(variable) for variable in model.trainable_variables}
    layers: dict[int, list[Any]] = {}
    for variable in model.variables:
        if id(variable) in owner:
            layers.setdefault(owner[id(variable)], []).append(variable)
    found: list[list[Any]] = []
    for variables in layers.values():
        whole = len({id(variable) in now for variable in variables}) == 1
        found += [variables] if whole else [[variable] for variable in variables]
    return found


def address_of(model: Any) -> dict[int, Address]:
    """Returns the address of every variable, by `id(variable)`.

    A variable that several layers share has the address in the first of them.
    """
    found: dict[int, Address] = {}
    for layer, position, name in visited(model):
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        own += [generator.state for generator in layer._seed_generators]
        prefixes = [f"{each}/" if each else "" for each in (position, name)]
        for role, variable in zip(_roles(own), own, strict=True):
            found.setdefault(id(variable), Address(f"{prefixes[0]}{role}", f"{prefixes[1]}{role}"))
    for index, variable in enumerate(model.variables):  # of layers that list variables they do not hold
        found.setdefault(id(variable), Address(f"#{index}", f"#{index}"))
    return found


def visited(model: Any) -> Iterator[tuple[Any, str, str]]:
    """Yields every layer once, parents first, with its position and name in the tree; empty for the model."""
    seen: set[int] = set()

    def visit(layer: Any, position: str, name: str) -> Iterator[tuple[Any, str, str]]:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        yield layer, position, name
        for child, (at, called) in zip(layer._layers, _keys(layer._layers), strict=True):
            yield from visit(child, f"{position}/{at}" if position else at, f"{name}/{called}" if name else called)

    yield from visit(model, "", "")


def _tree(layer: Any) -> Iterator[Any]:
    yield layer
    yield from layer._flatten_layers(include_self=False)  # each once, parents first


def _roles(variables: Sequence[Any]) -> list[str]:
    """Returns the name of each variable in its layer, with generated numbers recounted."""
    counts: dict[str, int] = {}
    roles = []
    for variable in variables:
        base = re.sub(r"_\d+$", "", str(variable.name))
        roles.append(f"{base}_{counts[base]}" if counts.get(base) else base)
        counts[base] = counts.get(base, 0) + 1
    return roles


def _keys(layers: Sequence[Any]) -> list[tuple[str, str]]:
    """Returns two keys per sibling: by index, and by the user's name if given."""
    every: dict[str, int] = {}
    unnamed: dict[str, int] = {}
    keys = []
    for layer in layers:
        base = keras.src.utils.naming.to_snake_case(type(layer).__name__)
        position = f"{base}_{every[base]}" if every.get(base) else base
        every[base] = every.get(base, 0) + 1
        if re.fullmatch(rf"{re.escape(base)}(_\d+)?", str(layer.name)):
            name = f"{base}_{unnamed[base]}" if unnamed.get(base) else base
            unnamed[base] = unnamed.get(base, 0) + 1
        else:
            name = str(layer.name)
        keys.append((position, name))
    return keys


def describe(model: Any) -> dict[str, Any]:
    """Returns the addresses of a compiled model's variables, as a snapshot records them.

    Returns:
        JSON values in the order of a snapshot's arrays: `trainable` and `non_trainable` as lists of `[position, name]`
        (`[position]` if both are equal), `optimizer` as a list of `[slot, index of its weight among the trainable ones,
        or None]`, followed by the index among the non-trainable ones for a weight that was frozen meanwhile, and
        `own_counts` as a list of `[index of a weight, iteration count]` for weights whose slots began later than the
        optimizer.
    """
    addresses = address_of(model)
    groups = {group: getattr(model, f"{group}_variables") for group in GROUPS}
    record: dict[str, Any] = {
        group: [_as_list(addresses[id(variable)]) for variable in variables] for group, variables in groups.items()
    }
    if model.optimizer is not None:
        index_of, frozen = ({id(variable): index for index, variable in enumerate(groups[group])} for group in GROUPS)
        record["optimizer"] = [
            [
                slot.kind,
                index_of.get(id(slot.weight)),
                *([frozen[id(slot.weight)]] if id(slot.weight) in frozen else []),
            ]
            if slot.weight is not None
            else [slot.kind, None]
            for slot in slots.describe(model.optimizer)
        ]
        trained = live_state.inner(model.optimizer)._trainable_variables if model.optimizer.built else []
        record[COUNTS] = [
            [index_of[id(trained[index])], since]
            for index, since in own_counts.counts_of(model.optimizer).items()
            if id(trained[index]) in index_of
        ]
    return record


def _as_list(address: Address) -> list[str]:
    return [address.position] if address.position == address.name else [address.position, address.name]


def recorded(record: Mapping[str, Any]) -> dict[str, list[Address]]:
    """Reads the addresses that `describe` wrote, by group."""
    return {group: [Address(entry[0], entry[-1]) for entry in record[group]] for group in GROUPS}


def pair(live: Mapping[int, Address], saved: Mapping[str, Address]) -> dict[int, str]:
    """Pairs live variables with arrays by their addresses.

    The user's names decide if both have the same ones, else positions (a layer was renamed). If some names exist in
    both and positions would pair them differently, layers were moved, and positions are not used.

    Args:
        live: `id(variable)` -> address.
        saved: name of an array -> address.

    Returns:
        `id(variable)` -> name of its array, for all variables that have one.
    """
    by_name = _joined(live, saved, lambda address: address.name)
    if len(by_name) == len(live) == len(saved):
        return by_name
    by_position = _joined(live, saved, lambda address: address.position)
    whole = len(by_position) == len(live) == len(saved)
    if whole and all(by_position[key] == name for key, name in by_name.items() if _is_named(live[key])):
        return by_position
    return by_name


def _is_named(address: Address) -> bool:
    return address.position != address.name


def _joined(live: Mapping[int, Address], saved: Mapping[str, Address], key: Any) -> dict[int, str]:
    """Pairs variables and arrays whose key occurs exactly once among each."""
    theirs: dict[str, list[str]] = {}
    for name, address in saved.items():
        theirs.setdefault(key(address), []).append(name)
    mine: dict[str, list[int]] = {}
    for identity, address in live.items():
        mine.setdefault(key(address), []).append(identity)
    return {found[0]: theirs[at][0] for at, found in mine.items() if len(found) == 1 and len(theirs.get(at, ())) == 1}
