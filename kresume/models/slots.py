"""What an optimizer remembers, variable by variable: its slots by the attribute that holds them, and what they mean.

    describe(optimizer)                # every variable: its kind, and the weight that it follows
    carry(old, new)                    # what means the same, from one optimizer to another

Keras gives an optimizer's variables as a list whose order follows from its class and config, with loss scaling
(mixed_float16) wrapped around it. Paths are of no use: they hold auto-generated names. So a slot is named here by its attribute
and its weight: the `_velocities` of the third trainable variable.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kresume import devices
from kresume.devices import inner
from kresume.errors import RestoreError
from kresume.models import own_counts

GRADIENT, SQUARE, STEP = "averages of gradients", "averages of squared gradients", "steps"
AVERAGES, ACCUMULATED = "_model_variables_moving_average", "_accumulated_gradients"
KEPT_APART = frozenset({AVERAGES, ACCUMULATED, "_velocity_hats"})
"""Slots that need no count of steps: weights, gradients, and largest values of moments that have one."""
MEANINGS: Mapping[str, Mapping[str, str]] = {
    "Adam": {"_momentums": GRADIENT, "_velocities": SQUARE, "_velocity_hats": "largest averages of squared gradients"},
    "AdamW": {"_momentums": GRADIENT, "_velocities": SQUARE, "_velocity_hats": "largest averages of squared gradients"},
    "Nadam": {"_momentums": GRADIENT, "_velocities": SQUARE},
    "Lamb": {"_momentums": GRADIENT, "_velocities": SQUARE},
    "Adamax": {"_m": GRADIENT, "_u": "largest gradients"},
    "Lion": {"_momentums": GRADIENT},
    "RMSprop": {"_velocities": SQUARE, "_average_gradients": GRADIENT, "_momentums": "scaled steps"},
    "SGD": {"momentums": STEP},
    "Adagrad": {"_accumulators": "sums of squared gradients"},
}
"""What a slot of a class is. SGD's momentum holds steps, the rate already in them; Adam's holds gradients: they are not
each other."""


def scale_variables(optimizer: Any) -> list[Any]:
    """Loss scaling's own: an unused count and rate, the steps since the scale last changed, and the scale. Empty without it."""
    return list(optimizer._variables) if inner(optimizer) is not optimizer else []


def rate_variable(optimizer: Any) -> Any | None:
    """The variable of the rate; None where it is a schedule."""
    rate = inner(optimizer)._learning_rate
    return rate if isinstance(rate, keras.Variable) else None


def slot_lists(optimizer: Any) -> dict[str, list[Any]]:
    """The slots by attribute, one per trainable variable in their order; None where a class leaves one out."""
    optimizer = inner(optimizer)
    count = len(optimizer._trainable_variables)
    lists = {}
    for name, value in vars(optimizer).items():
        if (
            name in {"_variables", "_trainable_variables"}
            or not isinstance(value, (list, tuple))
            or len(value) != count
        ):
            continue
        if any(isinstance(item, keras.Variable) for item in value) and all(
            item is None or isinstance(item, keras.Variable) for item in value
        ):
            lists[name] = list(value)
    return lists


@dataclass(frozen=True)
class Slot:
    """A variable of an optimizer.

    Attributes:
        variable: the Keras variable.
        kind: the attribute that holds it (`"_momentums"`, `"_iterations"`); `"scale_2"` for loss scaling's own, `"other_0"` for
            what no attribute holds.
        weight: the weight that it follows, None for a number of the whole optimizer.
    """

    variable: Any
    kind: str
    weight: Any | None


def placeholders(optimizer: Any) -> set[int]:
    """`id` of the variables that Adafactor makes for weights of one axis, and neither reads nor writes."""
    listed = slot_lists(optimizer)
    return {
        id(slot)
        for slots in listed.values()
        for slot, weight in zip(slots, inner(optimizer)._trainable_variables, strict=True)
        if slot is not None and tuple(slot.shape) == () and len(weight.shape) == 1
    }


def describe(optimizer: Any) -> list[Slot]:
    """Every variable of an optimizer in the order of `devices.optimizer_variables`, with what it is."""
    inside = inner(optimizer)
    held = {id(value): name for name, value in vars(inside).items() if isinstance(value, keras.Variable)}
    held |= {id(variable): f"scale_{index}" for index, variable in enumerate(scale_variables(optimizer))}
    weights: dict[int, Any] = {}
    for name, listed in slot_lists(optimizer).items():
        for slot, weight in zip(listed, inside._trainable_variables, strict=True):
            if slot is not None:
                held[id(slot)], weights[id(slot)] = name, weight
    found = []
    others = 0
    for variable in devices.optimizer_variables(optimizer):
        kind = held.get(id(variable))
        if kind is None:
            kind, others = f"other_{others}", others + 1
        found.append(Slot(variable, kind, weights.get(id(variable))))
    return found


def carry(old: Any, new: Any) -> tuple[list[str], list[str]]:
    """Copies what means the same from one optimizer to another; the rate is the new one's own.

    Args:
        old: built on the model's trainable variables.
        new: built on the same variables, of any class.

    Returns:
        What was carried and what starts fresh, by attribute; empty lists where there is nothing to say.

    Raises:
        RestoreError: a slot has another shape: the two were not built on the same variables.
    """
    kept, fresh = compare(old, new)
    before, after = slot_lists(old), slot_lists(new)
    sources = _sources(old, new)
    for attribute in kept:
        for source, target in zip(before[sources[attribute]], after[attribute], strict=True):
            if source is None or target is None:
                continue
            if tuple(source.shape) != tuple(target.shape):
                raise RestoreError(
                    f"{target.path} has the shape {tuple(target.shape)}, its source {tuple(source.shape)}"
                )
            _copy(source, target)
    _copy(inner(old)._iterations, inner(new)._iterations)
    for source, target in zip(scale_variables(old), scale_variables(new), strict=False):
        _copy(source, target)
    if type(inner(old)) is type(inner(new)):
        _carry_rest(inner(old), inner(new))
    counts = own_counts.counts_of(old)
    if not set(kept) - KEPT_APART:  # every moment starts fresh: it counts from here, the schedule goes on
        counts = dict.fromkeys(range(len(inner(new)._trainable_variables)), own_counts.count_of(new))
    own_counts.begin(new, counts)
    return kept, fresh


def begin_fresh(optimizer: Any, restored: Set[int], counts: Mapping[int, int]) -> list[str]:
    """Lets slots that were not restored begin here: with a count of their own, averages at their weight.

    Args:
        optimizer: built, its count of iterations restored.
        restored: `id` of every variable that was restored.
        counts: index of a weight -> the count at which its slots began, where the checkpoint says one.

    Returns:
        The paths of the weights whose slots begin here.
    """
    weights, counts, paths = inner(optimizer)._trainable_variables, dict(counts), []
    now = own_counts.count_of(optimizer)
    moments = {name: listed for name, listed in slot_lists(optimizer).items() if name not in KEPT_APART}
    for index, weight in enumerate(weights):
        own = [listed[index] for listed in moments.values() if listed[index] is not None]
        if own and not any(id(slot) in restored for slot in own):
            counts[index] = now
            paths.append(str(weight.path))
    for weight, average in zip(weights, slot_lists(optimizer).get(AVERAGES, ()), strict=False):
        if average is not None and id(average) not in restored:
            average.assign(np.asarray(keras.ops.convert_to_numpy(weight.value)).copy())
    own_counts.begin(optimizer, counts)
    return paths


def _carry_rest(old: Any, new: Any) -> None:
    """Variables of a class that are in no list of slots (a counter, a scalar), by their order among themselves."""

    def rest(optimizer: Any) -> list[Any]:
        known = {id(slot) for slots in slot_lists(optimizer).values() for slot in slots}
        known |= {id(optimizer._iterations), id(rate_variable(optimizer))}
        return [variable for variable in devices.optimizer_variables(optimizer) if id(variable) not in known]

    one, other = rest(old), rest(new)
    if [tuple(variable.shape) for variable in one] == [tuple(variable.shape) for variable in other]:
        for source, target in zip(one, other, strict=True):
            _copy(source, target)


def compare(old: Any, new: Any) -> tuple[list[str], list[str]]:
    """The new optimizer's slots that the old one's can fill, and those that start fresh; by attribute."""
    sources = _sources(old, new)
    after = slot_lists(new)
    return [name for name in after if name in sources], [name for name in after if name not in sources]


def _sources(old: Any, new: Any) -> dict[str, str]:
    """Attribute of the new optimizer -> attribute of the old one that means the same."""
    before = slot_lists(old)
    one, other = type(inner(old)), type(inner(new))
    if one is other:
        return {name: name for name in before}
    by_meaning = {meaning: name for name, meaning in MEANINGS.get(one.__name__, {}).items() if name in before}
    wanted = MEANINGS.get(other.__name__, {})
    found = {name: by_meaning[meaning] for name, meaning in wanted.items() if meaning in by_meaning}
    if SQUARE in wanted.values() and SQUARE not in by_meaning:
        found = {}  # a full momentum over squares that begin at zero makes steps of many times the rate
    return found | {name: name for name in (AVERAGES, ACCUMULATED) if name in before}


def _copy(source: Any, target: Any) -> None:
    # Through the host and a copy of its own: on a CPU JAX may keep a buffer as the variable itself, and give it away later.
    target.assign(np.asarray(source.value).copy())
