"""Swaps a model's weights for their moving averages (EMA).

    with averaged(model):
        model.predict(...)        # uses the averages; the raw weights are back afterwards, bit for bit

Keras keeps the averages among the optimizer's variables. Scores, the choice of the best snapshot and `model.keras` use
them. Training continues from the raw weights. A snapshot holds both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from kresume.backend import live_state
from kresume.backend.live_state import inner


def uses_averages(model: keras.Model, optimizer: Any = None) -> bool:
    """Returns True if the model's optimizer, or this one, keeps averages."""
    if optimizer is None:
        optimizer = getattr(model, "optimizer", None)  # a model that was never compiled has no such attribute
    return optimizer is not None and bool(inner(optimizer).use_ema)


def pairs_of(optimizer: Any) -> list[tuple[Any, Any]]:
    """Returns each weight with its average."""
    optimizer = inner(optimizer)
    averages = optimizer._model_variables_moving_average
    return list(zip(optimizer._trainable_variables, averages, strict=True))


def start_from_weights(model: keras.Model) -> None:
    """Sets every average to its weight.

    Keras does so at iteration 0 only. Averages switched on later would start at 0 and pull the model towards 0.
    """
    for weight, average in pairs_of(model.optimizer):
        average.assign(live_state.host_array(weight.value).copy())


def use_averages(optimizer: Any, chosen: Collection[int] | None = None) -> None:
    """Assigns the averages to the weights for good, for a model or for layers that only predict.

    Args:
        optimizer: keeps the averages.
        chosen: the `id` of each weight to assign; None for all.
    """
    for weight, average in pairs_of(optimizer):
        if chosen is None or id(weight) in chosen:
            weight.assign(live_state.host_array(average.value).copy())


@contextmanager
def averaged(model: keras.Model, optimizer: Any = None) -> Iterator[None]:
    """Replaces the weights with the averages during a block; does nothing without EMA.

    Args:
        model: the model.
        optimizer: keeps the averages; None for the model's own.
    """
    if not uses_averages(model, optimizer):
        yield
        return
    pairs = pairs_of(model.optimizer if optimizer is None else optimizer)
    raw = [live_state.host_array(weight.value).copy() for weight, _ in pairs]
    for weight, average in pairs:
        weight.assign(live_state.host_array(average.value).copy())
    with live_state.putting_back(lambda: live_state.assign([weight for weight, _ in pairs], raw)):
        yield
