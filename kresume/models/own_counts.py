"""Keeps own step counts for slots that began at another count than their optimizer.

    begin(optimizer, {2: 4_000})       # the slots of the third weight began at iteration 4,000
    scale_to_one_count(optimizer)      # at the end: plain Keras has one count, so the moments are scaled to fit it

Keras corrects the bias of Adam's zero moments by the optimizer's one count of iterations. Moments that start fresh at a
high count are hardly corrected, and their first steps are three to six times the rate. So the update of such a weight
sees the count since its slots began. The schedule, clipping and decay still see the optimizer's count.

That count is one of batches. With another number of batches per update (gradient accumulation) the updates that it stands for
are others, so the slots continue at their own, as if they had begun at a count that may be negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.backend.live_state import inner

UNCOUNTED = frozenset({"SGD", "RMSprop", "Adagrad", "Adadelta", "Ftrl", "Lion"})
"""Classes that use their slots without a step count."""
CORRECTED: Mapping[str, Mapping[str, str]] = {
    "Adam": {"_momentums": "beta_1", "_velocities": "beta_2", "_velocity_hats": "beta_2"},
    "AdamW": {"_momentums": "beta_1", "_velocities": "beta_2", "_velocity_hats": "beta_2"},
    "Lamb": {"_momentums": "beta_1", "_velocities": "beta_2"},
    "Nadam": {"_velocities": "beta_2"},
    "Adamax": {"_m": "beta_1"},
}
"""Slots that are divided by `1 - setting ** steps`, with the name of that setting."""
ENOUGH = 4096
"""Number of steps after which a product of Nadam's momentums is zero."""


def counts_of(optimizer: Any) -> dict[int, int]:
    """Returns the iterations at which the slots of single weights began.

    Returns:
        Index of a weight -> iteration count; empty if all slots began with the optimizer, or there is none.
    """
    return {} if optimizer is None else dict(vars(inner(optimizer)).get("_own_counts", {}))


def batches_of(optimizer: Any) -> int:
    """Returns the number of batches whose gradients make one update."""
    return inner(optimizer).gradient_accumulation_steps or 1


def count_of(optimizer: Any) -> int:
    """Returns the optimizer's count of batches, rounded down to the last whole update."""
    count = int(live_state.host_array(inner(optimizer)._iterations.value))
    return count - count % batches_of(optimizer)


def begin(optimizer: Any, counts: Mapping[int, int]) -> None:
    """Lets the slots of some weights count from later iterations; replaces earlier counts.

    Args:
        optimizer: built.
        counts: index of a weight -> iteration count at which its slots began.
    """
    inside = inner(optimizer)
    attributes = vars(inside)  # bypasses Keras's and TensorFlow's attribute tracking: this is not state to save
    attributes.pop("update_step", None)
    attributes.pop("_own_counts", None)
    counts = {index: since for index, since in counts.items() if since}
    if not counts or type(inside).__name__ in UNCOUNTED:
        return
    attributes["_own_counts"] = counts
    plain = inside.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> Any:
        since = counts.get(inside._get_variable_index(variable))
        if since is None:
            return plain(gradient, variable, learning_rate)
        with _counting_from(inside, since):
            return plain(gradient, variable, learning_rate)

    attributes["update_step"] = update_step


def carried(old: Any, new: Any, places: Sequence[int | None]) -> dict[int, int]:
    """Returns the counts that slots need in another optimizer, so that each continues at its update.

    Args:
        old: the optimizer that has the slots.
        new: built, with the same count of iterations; it may add up the gradients of another number of batches.
        places: index in `old` of each weight of `new`; None for one that `old` does not have.

    Returns:
        Index of a weight of `new` -> iteration count at which its slots began.
    """
    counted = counts_of(old)
    one, other = batches_of(old), batches_of(new)
    if one == other:
        return {index: counted[place] for index, place in enumerate(places) if place in counted}
    now, then = count_of(old), count_of(new)
    return {
        index: then - (now - counted.get(place, 0)) // one * other
        for index, place in enumerate(places)
        if place is not None
    }


@contextmanager
def _counting_from(optimizer: Any, since: int) -> Iterator[None]:
    """Shows the optimizer a smaller count during one weight's update."""
    attributes = vars(optimizer)
    before = {name: attributes[name] for name in ("_iterations", "_u_product") if name in attributes}
    attributes["_iterations"] = before["_iterations"] - since
    if "_u_product" in before:
        attributes["_u_product"] = _product(optimizer, optimizer.iterations)
    try:
        yield
    finally:
        attributes.update(before)


def _product(optimizer: Any, done: Any) -> Any:
    """Returns Nadam's product of momentums after `done + 1` steps."""
    steps = np.arange(1, ENOUGH + 1)
    momentums = (optimizer.beta_1 * (1.0 - 0.5 * np.power(0.96, steps))).astype("float32")
    products = keras.ops.convert_to_tensor(np.cumprod(momentums, dtype="float32"))
    return keras.ops.take(products, keras.ops.minimum(keras.ops.cast(done, "int32"), ENOUGH - 1))


def scale_to_one_count(optimizer: Any) -> None:
    """Scales late moments to fit the optimizer's one count, and removes their own counts."""
    inside, counts = inner(optimizer), counts_of(optimizer)
    now, steps = count_of(optimizer), batches_of(optimizer)
    for attribute, setting in CORRECTED.get(type(inside).__name__, {}).items():
        beta, listed = float(getattr(inside, setting)), getattr(inside, attribute, None) or ()
        for index, since in counts.items():
            done = (now - since) // steps
            if done > 0 and index < len(listed) and listed[index] is not None:
                factor = (1.0 - beta ** (now // steps)) / (1.0 - beta**done)
                value = live_state.host_array(listed[index].value)
                listed[index].assign((value * factor).astype(value.dtype))
    begin(optimizer, {})
