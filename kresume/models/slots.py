"""Describes an optimizer's variables, and copies slots between optimizers by their meaning.

    describe(optimizer)                # every variable, with its kind and its weight
    carry(old, new)                    # copies the slots that mean the same in both

Keras gives an optimizer's variables as a list. Its order follows from the class and config, and loss scaling
(mixed_float16) adds a wrapper. Paths hold auto-generated names and cannot identify a slot. So a slot is identified by
its attribute and its weight: the `_velocities` of the third trainable variable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.backend.live_state import inner
from kresume.errors import RestoreError
from kresume.models import own_counts

GRADIENT, SQUARE, STEP = "averages of gradients", "averages of squared gradients", "steps"
SCALED = "scaled steps"
DIVISORS = frozenset({SQUARE, "largest gradients"})
"""Meanings of the sizes by which an average of gradients is divided."""
SIZES = frozenset({SQUARE, "largest averages of squared gradients", "largest gradients", "sums of squared gradients"})
"""Meanings that do not depend on the sign of a gradient."""
AVERAGES, ACCUMULATED = "_model_variables_moving_average", "_accumulated_gradients"
SIGNED = frozenset({GRADIENT, STEP, SCALED, AVERAGES, ACCUMULATED})
"""Meanings that change their sign with a gradient or a weight."""
KEPT_APART = frozenset({AVERAGES, ACCUMULATED, "_velocity_hats"})
"""Slots that need no step count: weights, gradients, and maxima of moments that have one."""
MEANINGS: Mapping[str, Mapping[str, str]] = {
    "Adam": {"_momentums": GRADIENT, "_velocities": SQUARE, "_velocity_hats": "largest averages of squared gradients"},
    "AdamW": {"_momentums": GRADIENT, "_velocities": SQUARE, "_velocity_hats": "largest averages of squared gradients"},
    "Nadam": {"_momentums": GRADIENT, "_velocities": SQUARE},
    "Lamb": {"_momentums": GRADIENT, "_velocities": SQUARE},
    "Adamax": {"_m": GRADIENT, "_u": "largest gradients"},
    "Lion": {"_momentums": GRADIENT},
    "RMSprop": {"_velocities": SQUARE, "_average_gradients": GRADIENT, "_momentums": SCALED},
    "SGD": {"momentums": STEP},
    "Adagrad": {"_accumulators": "sums of squared gradients"},
}
"""Meaning of each slot, by class.

SGD's momentum holds steps that already contain the rate; Adam's holds gradients. One cannot replace the other.
"""


def scale_variables(optimizer: Any) -> list[Any]:
    """Returns the variables of loss scaling; empty without it.

    They are an unused count, an unused rate, the steps since the scale last changed, and the scale.
    """
    return list(optimizer._variables) if inner(optimizer) is not optimizer else []


def rate_variable(optimizer: Any) -> Any | None:
    """Returns the variable of the rate; None if the rate is a schedule."""
    rate = inner(optimizer)._learning_rate
    return rate if isinstance(rate, keras.Variable) else None


def slot_lists(optimizer: Any) -> dict[str, list[Any]]:
    """Returns the slots by attribute, one per trainable variable in order.

    An entry is None if the class keeps no slot for that variable.
    """
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
        kind: the attribute that holds it (`"_momentums"`, `"_iterations"`); `"scale_2"` for one of loss scaling,
            `"other_0"` for one that no attribute holds.
        weight: the weight that it belongs to; None for a variable of the whole optimizer.
    """

    variable: Any
    kind: str
    weight: Any | None


def placeholders(optimizer: Any) -> set[int]:
    """Returns the `id` of each variable that Adafactor creates and never uses.

    It creates them for weights with one axis.
    """
    listed = slot_lists(optimizer)
    return {
        id(slot)
        for slots in listed.values()
        for slot, weight in zip(slots, inner(optimizer)._trainable_variables, strict=True)
        if slot is not None and tuple(slot.shape) == () and len(weight.shape) == 1
    }


def describe(optimizer: Any) -> list[Slot]:
    """Describes every variable of an optimizer, in the order of `devices.optimizer_variables`."""
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
    for variable in live_state.optimizer_variables(optimizer):
        kind = held.get(id(variable))
        if kind is None:
            kind, others = f"other_{others}", others + 1
        found.append(Slot(variable, kind, weights.get(id(variable))))
    return found


Fit = Callable[[str, np.ndarray, np.ndarray], np.ndarray | None]
"""Fits a slot to another shape: `(meaning, value, fresh value) -> value`, None to start fresh."""


def carry(old: Any, new: Any, fit: Fit | None = None) -> tuple[list[str], list[str]]:
    """Copies the slots that mean the same from one optimizer to another.

    The iteration count and loss scaling are copied too; the new optimizer keeps its own rate.

    Args:
        old: built on the model's trainable variables.
        new: of any class, built on the same variables, on some of them or on more, or on those of another model in the same
            order. Slots of a weight that `old` does not have start fresh.
        fit: fits the slots of a weight that has another shape now; None if no weight has.

    Returns:
        The attributes that were copied and those that start fresh.

    Raises:
        RestoreError: a slot has another shape, so the two were not built on the same variables.
    """
    kept, fresh = compare(old, new)
    before, after = slot_lists(old), slot_lists(new)
    sources = _sources(old, new)
    places = _places(old, new)
    for attribute in kept:
        for place, target in zip(places, after[attribute], strict=True):
            source = None if place is None else before[sources[attribute]][place]
            if source is None or target is None:
                continue
            if tuple(source.shape) != tuple(target.shape) and fit is not None:
                fitted = fit(
                    meaning_of(new, attribute),
                    *(np.array(live_state.host_array(each.value)) for each in (source, target)),
                )
                if fitted is not None:
                    target.assign(fitted)
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
    counts = own_counts.carried(old, new, places)
    if not set(kept) - KEPT_APART:  # every moment starts fresh and counts from here; the schedule continues
        counts = dict.fromkeys(range(len(inner(new)._trainable_variables)), own_counts.count_of(new))
    own_counts.begin(new, counts)
    return kept, fresh


def _places(old: Any, new: Any) -> list[int | None]:
    """Returns the index in `old` of each weight of `new`; None for one that `old` does not have."""
    before, after = inner(old)._trainable_variables, inner(new)._trainable_variables
    index = {id(weight): place for place, weight in enumerate(before)}
    if any(id(weight) in index for weight in after):
        return [index.get(id(weight)) for weight in after]
    if not before:  # it was never built
        return [None] * len(after)
    if len(before) != len(after):
        raise RestoreError(f"the optimizers have {len(before)} and {len(after)} weights")
    return list(range(len(after)))


def begin_fresh(optimizer: Any, restored: Set[int], counts: Mapping[int, int]) -> list[str]:
    """Starts the slots that were not restored, with own step counts.

    Averages that were not restored start at their weight.

    Args:
        optimizer: built, with its iteration count restored.
        restored: `id` of every restored variable.
        counts: index of a weight -> iteration count at which its slots began, if the checkpoint records it.

    Returns:
        The paths of the weights whose slots start here.
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
            average.assign(live_state.host_array(weight.value).copy())
    own_counts.begin(optimizer, counts)
    return paths


def _carry_rest(old: Any, new: Any) -> None:
    """Copies variables outside the lists of slots (a counter, a scalar), by their order."""

    def rest(optimizer: Any) -> list[Any]:
        known = {id(slot) for slots in slot_lists(optimizer).values() for slot in slots}
        known |= {id(optimizer._iterations), id(rate_variable(optimizer))}
        return [variable for variable in live_state.optimizer_variables(optimizer) if id(variable) not in known]

    one, other = rest(old), rest(new)
    if [tuple(variable.shape) for variable in one] == [tuple(variable.shape) for variable in other]:
        for source, target in zip(one, other, strict=True):
            _copy(source, target)


def compare(old: Any, new: Any) -> tuple[list[str], list[str]]:
    """Returns the new optimizer's slots that can be copied, and those that start fresh."""
    sources = _sources(old, new)
    after = slot_lists(new)
    return [name for name in after if name in sources], [name for name in after if name not in sources]


def _sources(old: Any, new: Any) -> dict[str, str]:
    """Maps the new optimizer's attributes to the old one's of the same meaning."""
    before = slot_lists(old)
    one, other = type(inner(old)), type(inner(new))
    return {name: name for name in before} if one is other else counterparts(one.__name__, other.__name__, before)


def counterparts(before: str, now: str, attributes: Collection[str]) -> dict[str, str]:
    """Maps the attributes of an optimizer's slots to those of the same meaning in another class.

    Args:
        before: the other class.
        now: the class of the optimizer.
        attributes: those of the other one that have values.
    """
    by_meaning = {meaning: name for name, meaning in MEANINGS.get(before, {}).items() if name in attributes}
    wanted = MEANINGS.get(now, {})
    found = {name: by_meaning[meaning] for name, meaning in wanted.items() if meaning in by_meaning}
    if any(meaning in DIVISORS and meaning not in by_meaning for meaning in wanted.values()):
        found = {}  # a full momentum divided by sizes that start at zero makes steps of many times the rate
    return found | {name: name for name in (AVERAGES, ACCUMULATED) if name in attributes}


def meaning_of(optimizer: Any, attribute: str) -> str:
    """Returns what a slot means; the attribute itself if no class says it."""
    return MEANINGS.get(type(inner(optimizer)).__name__, {}).get(attribute, attribute)


def _copy(source: Any, target: Any) -> None:
    # Through a copy on the host: on a CPU, JAX may alias a buffer as the variable itself and donate it later.
    target.assign(live_state.host_array(source.value).copy())
