"""What an optimizer remembers, variable by variable: its slots by the attribute that holds them, and what they mean.

    match(optimizer, state)            # which array of a file belongs to which of its variables
    carry(old, new)                    # what means the same, from one optimizer to another

Keras gives an optimizer's variables as a list whose order follows from its class and config, with loss scaling
(mixed_float16) wrapped around it. Paths are of no use: they hold auto-generated names. So slots are named here by attribute
and place: the `_velocities` of the third trainable variable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kresume import devices
from kresume.checkpoints.keras_arrays import INNER, OPTIMIZER
from kresume.checkpoints.state import TrainState
from kresume.devices import inner
from kresume.errors import RestoreError

GRADIENT, SQUARE, STEP = "averages of gradients", "averages of squared gradients", "steps"
AVERAGES, ACCUMULATED = "_model_variables_moving_average", "_accumulated_gradients"
OWN = 4
"""How many variables of its own loss scaling has in front of the optimizer's."""
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


def match(optimizer: Any, state: TrainState) -> dict[int, str]:
    """Which array of a file belongs to which variable of an optimizer of the class and config that wrote it.

    Args:
        optimizer: built.
        state: of the layouts `"groups"`, `"keras"` or `"layers"`.

    Returns:
        `id(variable)` -> name of its array.
    """
    if "slots" in state.records:
        return _match_slots(optimizer, state)
    scale, names = _ordered(state)
    found = {id(variable): name for variable, name in zip(scale_variables(optimizer), scale, strict=False)}
    return found | _match_ordered(inner(optimizer), names, state)


def superfluous(optimizer: Any | None, state: TrainState) -> set[str]:
    """Arrays of the optimizer that rightly find no variable.

    The second copy of a loss-scaled optimizer's variables, its scale where the precision needs none, a rate where a schedule
    took its place, and everything where no optimizer is restored.
    """
    scale, names = _ordered(state)
    if optimizer is None:
        slots = [array for _, _, array in state.records.get("slots", ())]
        return {*scale, *names, *slots, *(name for name in state.arrays if name.startswith("optimizer/"))}
    extra = set() if scale_variables(optimizer) else set(scale)
    if any(name.startswith(INNER) for name in state.arrays):
        extra |= {name for name in state.arrays if name.startswith(INNER)}
    if rate_variable(optimizer) is None and len(names) > 1 and _is_rate(state.arrays[names[1]]):
        extra.add(names[1])
    return extra


def _ordered(state: TrainState) -> tuple[list[str], list[str]]:
    """The names of loss scaling's own arrays, and of the optimizer's, in their order."""
    if "optimizer_order" in state.records:
        names = list(state.records["optimizer_order"])
    else:
        prefix = "optimizer/" if state.layout != "keras" else OPTIMIZER
        indices = sorted(int(name.removeprefix(prefix)) for name in state.arrays if _is_indexed(name, prefix))
        names = [f"{prefix}{index}" for index in indices]
    scaled = state.optimizer is not None and state.optimizer.loss_scale
    return (names[:OWN], names[OWN:]) if scaled else ([], names)


def _is_indexed(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.removeprefix(prefix).isdigit()


def _is_rate(array: np.ndarray) -> bool:
    return array.shape == () and array.dtype.kind == "f"


def _match_ordered(optimizer: Any, names: Sequence[str], state: TrainState) -> dict[int, str]:
    """By place. The rate stands second or, where it was a schedule or Keras 2 wrote the file, not at all."""
    rate = rate_variable(optimizer)
    variables = [variable for variable in optimizer.variables if variable is not rate]
    has_rate = len(names) > 1 and _is_rate(state.arrays[names[1]])
    if has_rate and (rate is not None or len(names) == len(variables) + 1):
        found = {} if rate is None else {id(rate): names[1]}
        names = [*names[:1], *names[2:]]
    else:
        found = {}
    return found | {id(variable): name for variable, name in zip(variables, names, strict=False)}


def _match_slots(optimizer: Any, state: TrainState) -> dict[int, str]:
    """Keras 2's: by slot, and within one by the order of the trainable variables."""
    found: dict[int, str] = {}
    lists = slot_lists(optimizer)
    places = dict.fromkeys(lists, 0)
    for attribute, _, name in state.records["slots"]:
        if isinstance(getattr(inner(optimizer), attribute, None), keras.Variable):
            found[id(getattr(inner(optimizer), attribute))] = name
        elif attribute in lists and places[attribute] < len(lists[attribute]):
            slot = lists[attribute][places[attribute]]
            places[attribute] += 1
            if slot is not None:
                found[id(slot)] = name
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
    return kept, fresh


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
    return found | {name: name for name in (AVERAGES, ACCUMULATED) if name in before}


def _copy(source: Any, target: Any) -> None:
    # Through the host and a copy of its own: on a CPU JAX may keep a buffer as the variable itself, and give it away later.
    target.assign(np.asarray(source.value).copy())
