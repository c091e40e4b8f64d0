"""Serializes the architecture of a model with what Keras leaves out of it.

    config = serialize(model)        # for JSON
    complete(model, config)          # a model that Keras built from it

Keras records whether a layer trains, but not whether a weight of a layer that trains does (`layer.kernel.trainable =
False`), and `Dense` and `Embedding` take another scale for their LoRA than the one recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from kresume.models import adapters, structure

FROZEN = "frozen_weights"
"""Key beside Keras's own: the addresses of weights that do not train although their layer does."""


def serialize(model: keras.Model) -> dict[str, Any]:
    """Returns the architecture, without what compiled it."""
    config = {**keras.saving.serialize_keras_object(model), "compile_config": None}
    frozen = frozen_weights(model)
    return {**config, FROZEN: frozen} if frozen else config


def complete(model: keras.Model, config: Mapping[str, Any]) -> None:
    """Sets what Keras does not restore from an architecture.

    Args:
        model: built from `config`.
        config: result of `serialize`, or of Keras's own function.
    """
    alphas = _alphas(config)
    for layer in adapters.adapted(model):
        found = alphas.get(layer.name, set())
        if len(found) == 1:
            layer.lora_alpha = next(iter(found))
    freeze_weights(model, config.get(FROZEN, ()))


def frozen_weights(model: keras.Model) -> list[str]:
    """Returns the addresses of the weights that do not train although their layer does.

    Those that adapters adapt are left out: they never train.
    """
    bases = {id(adapters.base(layer)) for layer in adapters.adapted(model)}
    frozen = [
        id(variable)
        for layer, _, _ in structure.visited(model)
        if layer.trainable
        for variable in layer._trainable_variables
        if not variable.trainable and id(variable) not in bases
    ]
    addresses = structure.address_of(model) if frozen else {}
    return [addresses[each].position for each in frozen]


def freeze_weights(model: keras.Model, positions: Any) -> None:
    """Freezes the weights at these addresses, and those that adapters adapt in layers that train."""
    for layer in adapters.adapted(model):
        adapters.base(layer).trainable = False
    wanted = set(positions)
    addresses = structure.address_of(model) if wanted else {}
    for variable in model.variables if wanted else ():
        if addresses[id(variable)].position in wanted:
            variable.trainable = False


def _alphas(config: Any) -> dict[str, set[Any]]:
    """Returns the scales of LoRA in an architecture, by the names of the layers."""
    found: dict[str, set[Any]] = {}
    for each in _configs(config):
        if each.get("lora_rank") and each.get("lora_alpha") is not None:
            found.setdefault(str(each.get("name")), set()).add(each["lora_alpha"])
    return found


def _configs(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for each in value.values():
            yield from _configs(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _configs(each)
