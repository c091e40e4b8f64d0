"""Freezes layers and lets them train again, with the slots of their weights kept.

    addresses = matching(model, ["conv*", "backbone"])
    held = held_slots(model, optimizer, addresses)      # of the optimizer before freezing
    set_frozen(model, freezing, epochs=0)
    give_back(model, optimizer, held, addresses, 1000)  # to the optimizer that trains all of them again

A frozen layer of batch normalisation predicts with its moving averages also in training, as in Keras.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np

from kresume.backend import live_state
from kresume.errors import UsageError
from kresume.models import architecture, own_counts, slots, structure
from kresume.spelling import option
from kresume.values.freezing import Freezing
from kresume.values.state import TrainState

MOST_NAMED = 12
_FROZEN_APART: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
"""By model, the addresses of weights that did not train in a layer that did. Freezing a layer forgets them."""
BEGAN = "began"


def layers_of(model: keras.Model) -> dict[str, tuple[str, Any]]:
    """Returns each layer that has weights of its own, with its name in the tree, by address."""
    return {
        position: (name, layer)
        for layer, position, name in structure.visited(model)
        if layer._trainable_variables or layer._non_trainable_variables
    }


def matching(model: keras.Model, patterns: Sequence[str]) -> tuple[str, ...]:
    """Returns the addresses of the layers that patterns match.

    A pattern is compared with a layer's name, its path and the names and paths of the models that hold it: `backbone` is
    every layer inside it, `backbone/conv*` some of them.

    Args:
        model: built.
        patterns: as `fnmatch` reads them.

    Raises:
        UsageError: a pattern matches no layer with weights; the message lists names.
    """
    found = layers_of(model)
    for pattern in patterns:
        if not any(_matches(name, pattern) for name, _ in found.values()):
            names = [name for name, _ in found.values()]
            more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
            raise UsageError(
                f"{option('freeze', pattern)} matches no layer with weights; the model has "
                f"{', '.join(names[:MOST_NAMED])}{more}"
            )
    return closed(
        model,
        [address for address, (name, _) in found.items() if any(_matches(name, pattern) for pattern in patterns)],
    )


def _matches(name: str, pattern: str) -> bool:
    parts = name.split("/")
    paths = ["/".join(parts[: size + 1]) for size in range(len(parts))]
    return any(fnmatchcase(each, pattern) for each in (*parts, *paths))


def frozen_now(model: keras.Model) -> tuple[str, ...]:
    """Returns the addresses of the layers whose weights could train, but do not."""
    now = {id(variable) for variable in model.trainable_variables}
    return tuple(
        address
        for address, (_, layer) in layers_of(model).items()
        if layer._trainable_variables and not any(id(variable) in now for variable in layer._trainable_variables)
    )


def set_frozen(model: keras.Model, freezing: Freezing, epochs: int) -> None:
    """Sets which layers train after so many whole epochs; layers without a name in `freezing` stay.

    A weight that was frozen by itself stays frozen when its layer trains.
    """
    frozen = freezing.frozen(epochs)
    apart = _FROZEN_APART.setdefault(model, set())
    apart |= set(architecture.frozen_weights(model))
    named = {*freezing.first, *freezing.always}
    for layer, position, _ in structure.visited(model):
        if position in named:
            layer.trainable = position not in frozen
        elif not layer.trainable and any(
            each.startswith(f"{position}/" if position else "") for each in named - frozen
        ):
            _open(layer)  # a layer inside a frozen model does not train whatever its own flag says
    architecture.freeze_weights(model, apart)


def freeze_as_saved(model: keras.Model, state: TrainState) -> tuple[str, ...]:
    """Freezes the layers that did not train when a snapshot was taken; returns their addresses.

    A run has one architecture, that of its end. Its best epoch may lie before layers were unfrozen, and has no slots for them.

    Args:
        model: built from the run's architecture.
        state: a checkpoint; without a record of its weights nothing happens.
    """
    frozen = _frozen_then(model, state)
    if frozen:
        set_frozen(model, Freezing(frozen, None), 0)
    return frozen


@contextmanager
def frozen_as_saved(model: keras.Model, state: TrainState) -> Iterator[None]:
    """Freezes the layers that did not train when a snapshot was taken, during a block."""
    frozen = freeze_as_saved(model, state)
    try:
        yield
    finally:
        if frozen:
            set_frozen(model, Freezing(frozen, 0), 0)


def _frozen_then(model: keras.Model, state: TrainState) -> tuple[str, ...]:
    """Returns the addresses of the layers that train now and did not when a snapshot was taken."""
    record = state.records.get(structure.RECORD)
    if not record:
        return ()
    still = {address.position for address in structure.recorded(record)["non_trainable"]}
    places = structure.address_of(model)
    found = []
    for address, (_, layer) in layers_of(model).items():
        # Weights that are adapted, or frozen by themselves, do not train although their layer does.
        trains = [each for each in layer._trainable_variables if each.trainable]
        if trains and all(places[id(each)].position in still for each in trains):
            found.append(address)
    return tuple(found)


def _open(container: Any) -> None:
    """Lets a model train without changing which of its layers do."""
    kept = [(layer, layer.trainable) for layer in container._flatten_layers(include_self=False)]
    container.trainable = True
    for layer, trainable in kept:
        layer.trainable = trainable


def closed(model: keras.Model, addresses: Sequence[str]) -> tuple[str, ...]:
    """Returns those of these layers whose inner layers are all among them.

    Freezing a layer freezes every layer inside it, so one that holds a layer that trains is left out.
    """
    chosen, every = set(addresses), layers_of(model)
    return tuple(
        each for each in addresses
        if all(other in chosen for other in every if other != each and other.startswith(f"{each}/" if each else ""))
    )  # fmt: skip


def variables_of(model: keras.Model, addresses: Collection[str]) -> frozenset[int]:
    """Returns the `id` of every variable of these layers, statistics included."""
    return frozenset(
        id(variable)
        for address, (_, layer) in layers_of(model).items()
        if address in addresses
        for variable in (*layer._trainable_variables, *layer._non_trainable_variables)
    )


def _weights_of(model: keras.Model, addresses: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yields address and variable of every weight of these layers."""
    chosen = {
        id(variable) for address, (_, layer) in layers_of(model).items() if address in addresses
        for variable in layer._trainable_variables
    }  # fmt: skip
    places = structure.address_of(model)
    for variable in model.variables:
        if id(variable) in chosen:
            yield places[id(variable)].position, variable


def held_slots(model: keras.Model, optimizer: Any, addresses: Collection[str]) -> dict[str, np.ndarray]:
    """Returns the slots of the weights of these layers.

    Args:
        model: built.
        optimizer: built while they trained.
        addresses: of the layers.

    Returns:
        Arrays by `ATTRIBUTE|ADDRESS OF THE WEIGHT`, and for slots that began later than the optimizer the iteration at
        which they did, as `began|ADDRESS`.
    """
    owners = {id(variable): address for address, variable in _weights_of(model, addresses)}
    held = {
        f"{slot.kind}|{owners[id(slot.weight)]}": np.array(live_state.host_array(slot.variable.value))
        for slot in slots.describe(optimizer)
        if slot.weight is not None and id(slot.weight) in owners
    }
    weights = live_state.inner(optimizer)._trainable_variables
    began = own_counts.counts_of(optimizer)
    later = {owners[id(weights[index])]: since for index, since in began.items() if id(weights[index]) in owners}
    return held | {f"{BEGAN}|{address}": np.array(since, np.int64) for address, since in later.items()}


def held_for(held: Mapping[str, np.ndarray], before: str, now: str) -> dict[str, np.ndarray]:
    """Returns held slots as another class of optimizer has them, those with a counterpart.

    Args:
        held: what `held_slots` returned.
        before: the class of the optimizer that it was called with.
        now: the class of the one that will train.
    """
    one, other = (name.rpartition(">")[2] for name in (before, now))
    if one == other:
        return dict(held)
    split = [(*name.partition("|")[::2], array) for name, array in held.items()]
    sources = slots.counterparts(one, other, {kind for kind, _, _ in split})
    found = {f"{new}|{place}": array for new, old in sources.items() for kind, place, array in split if kind == old}
    moments = {name.partition("|")[2] for name in found if name.partition("|")[0] not in slots.KEPT_APART}
    return found | {f"{kind}|{place}": array for kind, place, array in split if kind == BEGAN and place in moments}


def regrouped(held: Mapping[str, np.ndarray], before: int, now: int, frozen_at: int) -> dict[str, np.ndarray]:
    """Returns held slots that continue at their update with another number of batches per update.

    Args:
        held: what `held_slots` or `held_for` returned.
        before: batches per update while their weights trained.
        now: those of the optimizer that will train.
        frozen_at: the optimizer's iterations when they were frozen.
    """
    if before == now:
        return dict(held)
    places = {name.partition("|")[2] for name in held}
    updates = {place: (frozen_at - int(held.get(f"{BEGAN}|{place}", 0))) // before for place in places}
    return dict(held) | {
        f"{BEGAN}|{place}": np.array(frozen_at - done * now, np.int64) for place, done in updates.items()
    }


def held_longer(
    waiting: Mapping[str, np.ndarray],
    held: Mapping[str, np.ndarray],
    addresses: Collection[str],
    model: keras.Model,
    passed: int,
) -> dict[str, np.ndarray]:
    """Returns the slots of layers that a run freezes, or that stay frozen as in its parent.

    Args:
        waiting: what the parent holds.
        held: what `held_slots` returns for this run.
        addresses: of the layers that are frozen at first.
        model: built.
        passed: iterations since the parent froze them.
    """
    found, own = dict(held), {name.partition("|")[2] for name in held}
    for place, _ in _weights_of(model, addresses):
        mine = {name: array for name, array in waiting.items() if name.partition("|")[2] == place}
        if mine and place not in own:
            found |= mine | {f"{BEGAN}|{place}": np.array(passed + int(mine.get(f"{BEGAN}|{place}", 0)), np.int64)}
    return found


def give_back(
    model: keras.Model, optimizer: Any, held: Mapping[str, np.ndarray], fresh: Collection[str], frozen_at: int
) -> None:
    """Assigns held slots to an optimizer that trains their weights again.

    Their step count goes on where it was when they were frozen. Slots of weights that have none, because they were frozen
    before, start here; averages start at the weights.

    Args:
        model: built.
        optimizer: built on its trainable variables.
        held: what `held_slots` returned.
        fresh: addresses of the layers that train again.
        frozen_at: the optimizer's iterations when they were frozen.
    """
    owners = {id(variable): address for address, variable in _weights_of(model, fresh)}
    given: set[int] = set()
    for slot in slots.describe(optimizer):
        place = owners.get(id(slot.weight)) if slot.weight is not None else None
        if place is None:
            given.add(id(slot.variable))
        elif (array := held.get(f"{slot.kind}|{place}")) is not None and array.shape == tuple(slot.variable.shape):
            live_state.assign([slot.variable], [array])
            given.add(id(slot.variable))
    counts = own_counts.counts_of(optimizer)
    passed = own_counts.count_of(optimizer) - frozen_at
    for index, weight in enumerate(live_state.inner(optimizer)._trainable_variables):
        place = owners.get(id(weight))
        if place is not None and any(name.endswith(f"|{place}") for name in held):
            counts[index] = passed + int(held.get(f"{BEGAN}|{place}", 0))
    slots.begin_fresh(optimizer, given, counts)
