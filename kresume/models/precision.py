"""Changes the precision in which a model's layers compute.

    config = with_precision(config, "mixed_float16")      # a serialized architecture
    needs_loss_scale(model)
    describe(model)                                       # "compute in float16, weights stay float32; ..."

Under a mixed policy, layers compute in 16 bits and keep float32 variables, so a checkpoint restores under any policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras


def needs_loss_scale(model: keras.Model) -> bool:
    """Returns True if a layer computes in float16, whose gradients vanish without loss scaling."""
    return any(layer.compute_dtype == "float16" for layer in model._flatten_layers())


def describe(model: keras.Model) -> str:
    """Returns in words what a model's layers compute in; empty for float32."""
    computed = {layer.compute_dtype for layer in model._flatten_layers(include_self=False)}
    short = [name for name in ("float16", "bfloat16") if name in computed]
    if not short:
        return ""
    scaled = "; the loss is scaled, and a step whose gradients overflow changes nothing" if "float16" in short else ""
    return f"compute in {' and '.join(short)}, weights stay float32{scaled}"


def with_precision(config: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Returns an architecture with its layers' dtype policies replaced.

    A float32 layer among mixed ones stays float32. If all were float32, the last layer stays float32, because the loss
    is computed from its outputs.

    Args:
        config: result of `keras.saving.serialize_keras_object(model)`.
        precision: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`.
    """
    policies = set(_policies(config))
    mixed = {name for name in policies if name.startswith("mixed_")}
    changed: dict[str, Any] = _replaced(config, mixed or {"float32"}, precision)
    if not mixed and precision != "float32":
        layer = changed
        while layer.get("config", {}).get("layers"):
            layer = layer["config"]["layers"][-1]
        if "dtype" in layer.get("config", {}):
            layer["config"]["dtype"] = "float32"
    return changed


def _policy(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return (
        value["config"].get("name") if isinstance(value, Mapping) and isinstance(value.get("config"), Mapping) else None
    )


def _policies(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in _policies(item)]
    if not isinstance(value, Mapping):
        return []
    found = [name for key, item in value.items() if key == "dtype" and (name := _policy(item))]
    return found + [name for item in value.values() for name in _policies(item)]


def _replaced(value: Any, before: set[str], after: str) -> Any:
    """Returns a copy with some dtype policies replaced.

    The dtypes of tensors (`__keras_tensor__`) and input layers are no policies.
    """
    if isinstance(value, (list, tuple)):
        return [_replaced(item, before, after) for item in value]
    if not isinstance(value, Mapping):
        return value
    if value.get("class_name") in {"__keras_tensor__", "InputLayer"}:
        return dict(value)
    return {
        key: after if key == "dtype" and _policy(item) in before else _replaced(item, before, after)
        for key, item in value.items()
    }
