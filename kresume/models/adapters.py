"""Handles adapters (LoRA, Hu et al. 2021), which `layer.enable_lora(rank)` adds to a layer.

    with switched_off(model): ...              # every layer shows the weight that its adapter adapts
    state, note = completed(model, named, state)
    matched = begin_fresh(model, optimizer, matched)
    start(model, matched.fresh)
    merge(model)                       # as Keras's files hold them

Such a layer keeps its kernel frozen and trains the product of two small weights beside it. Keras's saving library writes
the sum of both as the kernel, and no adapter. So one that is loaded starts anew: its product is zero, and its slots are
fresh, because those in the file belong to other weights. Keras loads both factors as zeros; then no gradient reaches them,
and the adapter would never train.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.models import slots
from kresume.models.match_slots import Matched
from kresume.values.state import TrainState

FACTORS = (("lora_kernel_a", "lora_kernel_b"), ("lora_embeddings_a", "lora_embeddings_b"))
"""Attributes of a layer: the factor that starts with random numbers, and the one that starts with zeros."""


def adapted(model: Any) -> list[Any]:
    """Returns the layers that have an adapter."""
    return [layer for layer in model._flatten_layers() if getattr(layer, "lora_enabled", False)]


def factors(layer: Any) -> tuple[Any, Any]:
    """Returns the two weights of a layer's adapter: the one that starts with random numbers first."""
    first, second = next(names for names in FACTORS if hasattr(layer, names[0]))
    return getattr(layer, first), getattr(layer, second)


def _all_factors(model: Any) -> set[int]:
    return {id(factor) for layer in adapted(model) for factor in factors(layer)}


def base(layer: Any) -> Any:
    """Returns the variable that a layer's adapter adapts; `layer.kernel` would be a sum."""
    return layer._embeddings if hasattr(layer, "_embeddings") else layer._kernel


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Makes every adapted layer a plain one, for walks that ask it for its variables."""
    layers = adapted(model)
    try:
        for layer in layers:
            layer.lora_enabled = False
        yield
    finally:
        for layer in layers:
            layer.lora_enabled = True


def names(model: Any, of_weights: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """Returns each factor with a name beside that of its weight: `layers/dense/vars/lora_kernel_a`.

    Args:
        model: built.
        of_weights: the variables that the format holds, with their names.
    """
    folders = {id(variable): name.rpartition("/")[0] for variable, name in of_weights}
    return [
        (factor, f"{folders[id(base(layer))]}/{factor.name}")
        for layer in adapted(model)
        if id(base(layer)) in folders
        for factor in factors(layer)
    ]


def completed(model: Any, named: list[tuple[Any, str]], state: TrainState) -> tuple[TrainState, str]:
    """Adds the factors to a file that does not hold them, so that slots can be counted.

    Args:
        model: built.
        named: the model's variables with their names, factors included.
        state: of Keras's saving library.

    Returns:
        The state, and a note for the user; the note is empty if there are none.
    """
    own = _all_factors(model)
    lacking = {name: np.zeros(tuple(factor.shape), "float32") for factor, name in named if id(factor) in own}
    if not lacking:
        return state, ""
    count = len(lacking) // 2
    layers = f"{count:,} layer{'s' * (count > 1)}"
    said = f"the LoRA of {layers} is part of the weights, as Keras saves it, and a new one starts at zero"
    return replace(state, arrays={**state.arrays, **lacking}), said


def begin_fresh(model: Any, optimizer: Any | None, matched: Matched) -> Matched:
    """Takes the factors and their slots out of what is restored.

    Args:
        model: built.
        optimizer: built; None if only the weights are restored.
        matched: with the factors and their slots among its names.
    """
    own = _all_factors(model)
    if not own:
        return matched
    slots_of = slots.describe(optimizer) if optimizer is not None else []
    fresh = own | {id(slot.variable) for slot in slots_of if slot.weight is not None and id(slot.weight) in own}
    given = {name for key, name in matched.names.items() if key in fresh}
    kept = {key: name for key, name in matched.names.items() if key not in fresh}
    return replace(matched, names=kept, fresh=frozenset(fresh), replaced=frozenset(given))


def merge(model: Any) -> str:
    """Adds each adapter's product to its weight, and sets its factors to zero.

    Plain Keras reads a file that it has saved in the same way. Weights of whole numbers (quantized) stay as they are.

    Returns:
        A line for the user; empty if the model has no adapters.
    """
    layers = [layer for layer in adapted(model) if "int" not in str(base(layer).dtype)]
    for layer in layers:
        whole = layer.embeddings if hasattr(layer, "_embeddings") else layer.kernel
        base(layer).assign(whole)
        for factor in factors(layer):
            factor.assign(np.zeros(tuple(factor.shape), "float32"))
    return f"the LoRA of {len(layers):,} layer{'s' * (len(layers) > 1)} is part of the weights" if layers else ""


def start(model: Any, fresh: Set[int]) -> None:
    """Gives adapters the product zero, and their first factor random numbers if it has none.

    Args:
        model: built.
        fresh: `id` of every factor that was not restored.
    """
    for index, layer in enumerate(adapted(model)):
        first, second = factors(layer)
        if id(second) not in fresh:
            continue
        second.assign(np.zeros(tuple(second.shape), "float32"))
        if not np.any(live_state.host_array(first.value)):
            first.assign(keras.initializers.HeUniform(seed=index)(tuple(first.shape)))
