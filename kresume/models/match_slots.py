"""Matches a file's optimizer arrays with a live optimizer, whatever was or is frozen.

    saved, unsure = by_order(model, optimizer, state, names, weights)
    found = join(optimizer, saved, weights)      # found.names: id(variable) -> name of the array

An optimizer has slots for the weights that were trainable when it was built. Some formats name the weight of each slot.
Others list slots by order alone; then the weights that were trainable are found from the file's own architecture, or
from the shapes if only one choice of layers fits. If several fit, nothing is matched, unless the user states that the
weights trainable now were trainable then.

The modules of the layouts (`kresume.models.layouts`) share these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import keras
import numpy as np

from kresume.backend.live_state import inner
from kresume.checkpoints.keras_arrays import SCALE_VARIABLES
from kresume.models import slots, structure
from kresume.models.match_by_shape import trained_by_shape
from kresume.values.state import TrainState

COUNT, RATE = "_iterations", "_learning_rate"

WeightsOf = Callable[[Any, TrainState], Mapping[int, str]]
"""Returns `id(variable)` -> name of its array, for the weights of a model."""


@dataclass(frozen=True)
class Saved:
    """An optimizer's array in a file.

    Attributes:
        name: of the array.
        kind: as in `slots.Slot`.
        weight: name of the array of the weight that it belongs to; None for a variable of the whole optimizer.
    """

    name: str
    kind: str
    weight: str | None = None


@dataclass(frozen=True)
class Matched:
    """The result of matching a file's arrays with live variables.

    Attributes:
        names: `id(variable)` -> name of its array.
        left_out: names of slots whose weights are frozen now.
        unsure: True if slots were not matched because several choices of weights fit.
        fresh: `id` of each variable that starts anew although the file may hold arrays for it.
        replaced: names of those arrays.
        apart: names of the arrays of other models in the file.
        notes: for the user, on how arrays were matched.
    """

    names: Mapping[int, str]
    left_out: frozenset[str] = frozenset()
    unsure: bool = False
    notes: tuple[str, ...] = ()
    fresh: frozenset[int] = frozenset()
    replaced: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()


def join(optimizer: Any, saved: Sequence[Saved], weights: Mapping[int, str]) -> Matched:
    """Pairs a file's arrays with an optimizer's variables, by kind and weight.

    Args:
        optimizer: built.
        saved: the file's arrays.
        weights: `id(variable)` -> name of its array.
    """
    theirs = {(entry.kind, entry.weight): entry.name for entry in saved}
    trained = {id(variable) for variable in inner(optimizer)._trainable_variables}
    frozen = {name for key, name in weights.items() if key not in trained}
    names = {}
    for slot in slots.describe(optimizer):
        weight = weights.get(id(slot.weight)) if slot.weight is not None else None
        if slot.weight is not None and weight is None:
            continue
        name = theirs.get((slot.kind, weight))
        if name is not None:
            names[id(slot.variable)] = name
    return Matched(names, frozenset(entry.name for entry in saved if entry.weight in frozen))


def counts(optimizer: Any, state: TrainState, names: Mapping[int, str]) -> dict[int, int]:
    """Returns the iterations at which the slots of single weights began, from a snapshot.

    Args:
        optimizer: built.
        state: the checkpoint.
        names: `id(variable)` -> name of its array.

    Returns:
        Index of a weight in the optimizer -> iteration count; only weights whose slots began later than the optimizer.
    """
    entries = state.records.get(structure.RECORD, {}).get(structure.COUNTS, ())
    since = {f"trainable/{index}": int(count) for index, count in entries}
    found = {index: names.get(id(weight)) for index, weight in enumerate(inner(optimizer)._trainable_variables)}
    return {index: since[name] for index, name in found.items() if name in since}


def unmatched(state: TrainState, names: Mapping[int, str]) -> list[str]:
    """Returns the names of a checkpoint's arrays that no variable is matched with."""
    taken = set(names.values())
    return [name for name in state.arrays if name not in taken]


def named_optimizer(state: TrainState) -> set[str]:
    """Returns the names of arrays that begin with `optimizer`."""
    return {name for name in state.arrays if name.startswith("optimizer")}


def superfluous(optimizer: Any | None, state: TrainState, listed: Sequence[str]) -> set[str]:
    """Returns the optimizer arrays of a list that need no variable.

    These are a loss scale that the precision does not need, a rate that a schedule replaced, and all of them if no
    optimizer is restored.

    Args:
        optimizer: built, or None if only the weights are restored.
        state: the checkpoint.
        listed: names of the optimizer's arrays in order, those of loss scaling first.
    """
    scale, names = _split(state, listed)
    if optimizer is None:
        return {*scale, *names}
    extra = set() if slots.scale_variables(optimizer) else set(scale)
    if slots.rate_variable(optimizer) is None and len(names) > 1 and _is_rate(state.arrays[names[1]]):
        extra.add(names[1])
    return extra


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts names by the number that they end in: `optimizer/10` after `optimizer/2`."""
    return sorted(names, key=lambda name: int(name.rpartition("/")[2]))


def _split(state: TrainState, names: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    scaled = state.optimizer is not None and state.optimizer.loss_scale
    return (names[:SCALE_VARIABLES], names[SCALE_VARIABLES:]) if scaled else ([], names)


def _is_rate(array: np.ndarray) -> bool:
    return array.shape == () and array.dtype.kind == "f"


def by_order(
    model: Any,
    optimizer: Any,
    state: TrainState,
    names: Sequence[str],
    weights: Mapping[int, str],
    trained: Sequence[str] | None = None,
    *,
    weights_of: WeightsOf | None = None,
    same_weights: bool = False,
) -> tuple[list[Saved], bool]:
    """Identifies the arrays of a list: numbers first, then slots in creation order.

    Args:
        model: built.
        optimizer: built, of the class and config that wrote the list.
        state: the checkpoint.
        names: the list, arrays of loss scaling first.
        weights: `id(variable)` -> name of its array.
        trained: names of the arrays of the weights that were trainable, in order; None if the file does not say.
        weights_of: matches the weights of a model that is built from the file's architecture; None if that is not
            possible in this layout.
        same_weights: the user states that the weights trainable now were trainable then.

    Returns:
        The identified arrays, and True if others are unknown because it is not certain which weights were trainable.
    """
    scale, names = _split(state, names)
    saved = [Saved(name, f"scale_{index}") for index, name in enumerate(scale)]
    live = [slot for slot in slots.describe(optimizer) if not slot.kind.startswith("scale_")]
    has_rate = len(names) > 1 and _is_rate(state.arrays[names[1]])
    rated = slots.rate_variable(optimizer) is not None
    if has_rate and (rated or len(names) == len(live) + 1):
        saved.append(Saved(names[1], RATE))
        names = [*names[:1], *names[2:]]
    if len(names) == 1:  # an optimizer that was never built
        return [*saved, Saved(names[0], COUNT)], False
    live = [slot for slot in live if slot.kind != RATE]
    order = [(slot.kind, slot.weight) for slot in live]
    own = inner(optimizer)._trainable_variables
    if len(names) == len(live) or not any(weight is not None for _, weight in order):
        indices = {id(weight): index for index, weight in enumerate(own)}
        pattern: Sequence[tuple[str, int | None]] | None = [
            (kind, None if weight is None else indices[id(weight)]) for kind, weight in order
        ]
        count = len(own)
    else:
        count, pattern = _pattern(inner(optimizer), len(names))
    if pattern is None:
        return saved + [Saved(name, COUNT) for name in names[:1]], True
    listed = list(zip(names, pattern, strict=False))
    reduced = _reduced(live)
    kinds = [kind for kind, weight in pattern if weight is not None]
    kind = next((kind for kind in kinds if kind not in reduced), None)
    if not kinds:
        return saved + [Saved(name, kind) for name, (kind, _) in listed], False
    if trained is None:
        shapes = [tuple(state.arrays[name].shape) for name, (other, _) in listed if other == kind]
        now = [weights.get(id(variable)) for variable in own]
        if same_weights and len(now) == count and None not in now:
            trained = [name for name in now if name is not None]
        else:
            trained = _of_architecture(model, state, count, weights_of) or trained_by_shape(
                model, state, shapes, weights
            )
    numbers = [Saved(name, kind) for name, (kind, weight) in listed if weight is None]
    if trained is None or len(trained) != count:
        return saved + numbers, True
    owned = [Saved(name, kind, trained[weight]) for name, (kind, weight) in listed if weight is not None]
    return saved + numbers + owned, False


def _reduced(live: Sequence[slots.Slot]) -> set[str]:
    """Returns the kinds of slots that do not have the shapes of their weights.

    Adafactor, for example, keeps sums over rows and columns.
    """
    return {
        slot.kind for slot in live if slot.weight is not None and tuple(slot.variable.shape) != tuple(slot.weight.shape)
    }


def _pattern(optimizer: Any, count: int) -> tuple[int, Sequence[tuple[str, int | None]] | None]:
    """Finds the number of weights for which an optimizer keeps `count` variables.

    Args:
        optimizer: gives the class and config.
        count: number of variables, without the rate.

    Returns:
        The number of weights, and the kind and weight index of each variable; `(0, None)` if no number fits.
    """

    @cache
    def kinds(weights: int) -> tuple[tuple[str, int | None], ...]:
        config = {**optimizer.get_config(), "learning_rate": 1e-3}
        config.pop("name", None)
        other = type(optimizer).from_config(config)
        variables = [keras.Variable(np.zeros((2, 2), "float32"), name=f"weight_{index}") for index in range(weights)]
        other.build(variables)
        indices = {id(variable): index for index, variable in enumerate(variables)}
        return tuple(
            (slot.kind, None if slot.weight is None else indices[id(slot.weight)])
            for slot in slots.describe(other)
            if slot.kind != RATE
        )

    try:
        one, two = len(kinds(1)), len(kinds(2))
        weights, rest = divmod(count - 2 * one + two, two - one) if two > one else (0, 1)
        return (weights, kinds(weights)) if not rest and weights > 0 and len(kinds(weights)) == count else (0, None)
    except (TypeError, ValueError, AttributeError):  # a user's class that cannot be built on such weights
        return 0, None


def _of_architecture(model: Any, state: TrainState, count: int, weights_of: WeightsOf | None) -> list[str] | None:
    """Returns the weights that were trainable according to the file's architecture.

    None if all weights were trainable, or the file has no usable architecture, or it has another count of them.
    """
    from kresume.errors import KresumeError
    from kresume.models import build

    if weights_of is None or state.architecture is None or len(structure.can_train(model)) == count:
        return None
    try:
        described = build.from_architecture(dict(state.architecture))
    except KresumeError:
        return None  # its classes are not known here
    names = weights_of(described, state)
    found = [names.get(id(variable)) for variable in described.trainable_variables]
    trained = [name for name in found if name is not None]
    return trained if len(trained) == len(found) == count else None
