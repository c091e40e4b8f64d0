"""Addresses of a model's variables: where each is in the object graph, whatever is frozen and whatever names were made up.

    address_of(model)                 # id(variable) -> Address("dense/kernel", "head/kernel")
    describe(model)                   # the same by group, as a snapshot records it

`model.trainable_variables` and `model.non_trainable_variables` change with `layer.trainable`, and an auto-generated name
changes with what a process built before. The tree of layers changes with neither. An address is the way through that tree and
the role of the variable in its layer. A layer is called by its position among its siblings of the same class (`dense_1`), or by
its own name where the user gave it one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from kresume import devices
from kresume.models import own_counts, slots

GROUPS = ("trainable", "non_trainable")
RECORD = "structure"
"""The record of a snapshot that holds the addresses."""
COUNTS = "own_counts"
SEED = "seed_generator_state"


class Target(Protocol):
    """A live variable that wants a value, as `restore` lists them."""

    @property
    def variable(self) -> Any:
        """The Keras variable."""

    @property
    def group(self) -> str:
        """`"trainable"`, `"non_trainable"` or `"optimizer"`."""

    @property
    def is_seed(self) -> bool:
        """Tells whether it is the state of a seed generator."""


@dataclass(frozen=True)
class Address:
    """Where a variable is in its model.

    Attributes:
        position: every layer by its class and its position among siblings of that class: `functional/dense_1/kernel`.
        name: the same, with the user's own names of layers where they were given: `backbone/head/kernel`.
    """

    position: str
    name: str


def can_train(model: Any) -> list[Any]:
    """The weights that training changes when nothing is frozen, in their order."""
    return [variable for layer in layers_that_train(model) for variable in layer]


def layers_that_train(model: Any) -> list[list[Any]]:
    """The same, layer by layer; a layer that the user froze in part counts variable by variable."""
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
    """The address of every variable, by `id(variable)`; a variable that several layers share has its first one."""
    found: dict[int, Address] = {}
    seen: set[int] = set()

    def visit(layer: Any, position: str, name: str) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        own += [generator.state for generator in layer._seed_generators]
        for role, variable in zip(_roles(own), own, strict=True):
            found.setdefault(id(variable), Address(f"{position}{role}", f"{name}{role}"))
        for child, (at, called) in zip(layer._layers, _keys(layer._layers), strict=True):
            visit(child, f"{position}{at}/", f"{name}{called}/")

    visit(model, "", "")
    for index, variable in enumerate(model.variables):  # of a layer that lists variables which it does not hold
        found.setdefault(id(variable), Address(f"#{index}", f"#{index}"))
    return found


def _tree(layer: Any) -> Iterator[Any]:
    yield layer
    yield from layer._flatten_layers(include_self=False)  # each once, parents first


def _roles(variables: Sequence[Any]) -> list[str]:
    """The name of each variable in its layer; a number that Keras made up is counted anew."""
    counts: dict[str, int] = {}
    roles = []
    for variable in variables:
        base = re.sub(r"_\d+$", "", str(variable.name))
        roles.append(f"{base}_{counts[base]}" if counts.get(base) else base)
        counts[base] = counts.get(base, 0) + 1
    return roles


def _keys(layers: Sequence[Any]) -> list[tuple[str, str]]:
    """How each of some siblings is called: by position, and by the user's name where there is one."""
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
    """The addresses of a compiled model's variables in the order of a snapshot's arrays.

    Returns:
        JSON values: `trainable` and `non_trainable` as lists of `[position, name]` (`[position]` where both are equal),
        `optimizer` as a list of `[slot, index of its weight among the trainable ones, or None]`, and `own_counts` where
        slots of some weights began later than the optimizer.
    """
    addresses = address_of(model)
    groups = {group: getattr(model, f"{group}_variables") for group in GROUPS}
    record: dict[str, Any] = {
        group: [_as_list(addresses[id(variable)]) for variable in variables] for group, variables in groups.items()
    }
    if model.optimizer is not None:
        index_of = {id(variable): index for index, variable in enumerate(groups["trainable"])}
        record["optimizer"] = [
            [slot.kind, index_of.get(id(slot.weight)) if slot.weight is not None else None]
            for slot in slots.describe(model.optimizer)
        ]
        trained = devices.inner(model.optimizer)._trainable_variables if model.optimizer.built else []
        record[COUNTS] = [
            [index_of[id(trained[index])], since]
            for index, since in own_counts.counts_of(model.optimizer).items()
            if id(trained[index]) in index_of
        ]
    return record


def _as_list(address: Address) -> list[str]:
    return [address.position] if address.position == address.name else [address.position, address.name]


def recorded(record: Mapping[str, Any]) -> dict[str, list[Address]]:
    """The addresses that `describe` wrote, by group."""
    return {group: [Address(entry[0], entry[-1]) for entry in record[group]] for group in GROUPS}


def pair(live: Mapping[int, Address], saved: Mapping[str, Address]) -> dict[int, str]:
    """Pairs live variables with arrays by their addresses.

    The user's names decide where both sides have the same ones, positions where they do not (a layer was renamed). Where
    some names are on both sides and positions pair them otherwise, positions are not believed: layers were moved.

    Args:
        live: `id(variable)` -> address.
        saved: name of an array -> address.

    Returns:
        `id(variable)` -> name of its array, for all that have one.
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
    """What has the same key on both sides, once on each."""
    theirs: dict[str, list[str]] = {}
    for name, address in saved.items():
        theirs.setdefault(key(address), []).append(name)
    mine: dict[str, list[int]] = {}
    for identity, address in live.items():
        mine.setdefault(key(address), []).append(identity)
    return {found[0]: theirs[at][0] for at, found in mine.items() if len(found) == 1 and len(theirs.get(at, ())) == 1}
