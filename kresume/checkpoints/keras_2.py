"""Keras 2's words in Keras 3's: architectures, optimizers' configs and slots. Dictionaries only; nothing is built or run here.

    architecture(json.loads(file.attrs["model_config"]))
    optimizer(training_config["optimizer_config"])        # ("Adam", {"learning_rate": 0.01, ...})
    slot("Adam/m/dense/kernel:0")                         # ("m", "dense/kernel")

What is mechanical is translated: where a class lives, what an argument is called, what is gone without a trace. Anything
else stays as it is, and Keras says what it does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from kresume.checkpoints import keras_arrays

FUNCTIONAL = {"Functional", "Model"}
GONE: Mapping[str, tuple[str, ...]] = {
    "InputLayer": ("ragged",),
    "DepthwiseConv2D": ("groups",),
    "SeparableConv2D": ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint"),
    "MultiHeadAttention": ("query_shape", "key_shape", "value_shape", "softmax_robust_masking"),
    "Conv2DTranspose": ("groups",),
}
"""Arguments that Keras 2 wrote at their only possible value, and Keras 3 does not take."""
RENAMED = {"BatchNormalizationV1": "BatchNormalization", "LayerNormalizationV1": "LayerNormalization"}

OPTIMIZER_GONE = ("decay", "jit_compile", "is_legacy_optimizer", "name")
SLOTS: Mapping[str, Mapping[str, str]] = {
    "Adam": {"m": "_momentums", "v": "_velocities", "vhat": "_velocity_hats"},
    "AdamW": {"m": "_momentums", "v": "_velocities", "vhat": "_velocity_hats"},
    "Nadam": {"m": "_momentums", "v": "_velocities"},
    "Adamax": {"m": "_m", "v": "_u", "u": "_u"},
    "SGD": {"m": "momentums", "momentum": "momentums"},
    "RMSprop": {
        "velocity": "_velocities",
        "rms": "_velocities",
        "momentum": "_momentums",
        "average_gradient": "_average_gradients",
        "mg": "_average_gradients",
    },
    "Adagrad": {"accumulator": "_accumulators"},
    "Adadelta": {
        "accumulated_grad": "_accumulated_grads",
        "accumulated_delta_var": "_accumulated_delta_vars",
        "accum_grad": "_accumulated_grads",
        "accum_var": "_accumulated_delta_vars",
    },
    "Ftrl": {"accumulator": "_accumulators", "linear": "_linears"},
    "Lion": {"m": "_momentums"},
}
"""Keras 2's names of slots, of its new-style and its legacy optimizers, and the attribute that holds them in Keras 3."""
AVERAGES = {"average": "_model_variables_moving_average"}


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """A serialized model of Keras 2 as Keras 3 serializes it.

    Args:
        config: `{"class_name", "config"}`, from an HDF5 file's `model_config`, `to_json` or a `.keras` archive of Keras 2.
    """
    translated: dict[str, Any] = _translated(dict(config), layer=True)
    return translated


def nadam_product(beta_1: float, updates: int) -> np.ndarray:
    """Keras 3's `_u_product` after so many updates.

    Keras 2's new-style Nadam does not store its own, the legacy one's follows another pace of the momentum. Both are soon 0.
    Source: `keras/src/optimizers/nadam.py`, after Dozat 2016, "Incorporating Nesterov Momentum into Adam".
    """
    product = np.float32(1.0)
    for update in range(1, min(updates, 2000) + 1):
        product *= np.float32(beta_1 * (1.0 - 0.5 * 0.96**update))
    return np.asarray(product)


def without_slashes(name: str) -> str:
    """A layer's name as Keras 3 allows it; some of Keras 2's applications are called `conv1/bn`."""
    return name.replace("/", "_")


def is_keras_2(version: Any) -> bool:
    """Whether a version that a file names is one of Keras 2 (or 1)."""
    return str(version).split(".")[0] in {"1", "2"}


def _translated(value: Any, *, layer: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return [_translated(item, layer=layer) for item in value]
    if not isinstance(value, Mapping):
        return value
    if not (isinstance(value.get("class_name"), str) and isinstance(value.get("config"), Mapping)):
        return {key: _translated(item, layer=layer) for key, item in value.items()}
    name = str(RENAMED.get(value["class_name"], value["class_name"]))
    if name in {"Policy", "PolicyV1"}:
        return value["config"].get("name")
    inside = {key: item for key, item in value["config"].items() if key not in GONE.get(name, ())}
    if isinstance(inside.get("name"), str):
        inside["name"] = without_slashes(inside["name"])
    shape = inside.pop("batch_input_shape", None)
    if shape is not None and name == "InputLayer":
        inside["batch_shape"] = shape
    axis = inside.get("axis")
    if isinstance(axis, (list, tuple)) and len(axis) == 1:
        inside["axis"] = axis[0]
    module = str(value.get("module") or "")
    is_layer = layer and (not module or module.startswith(("keras.layers", "keras.src.engine", "tf_keras")))
    result = {**value, "class_name": name, "config": {key: _child(key, item) for key, item in inside.items()}}
    if isinstance(result.get("name"), str):
        result["name"] = without_slashes(result["name"])
    result.pop("build_config", None)  # of shapes as Keras 2 writes them; Keras 3 builds by calling
    result.setdefault("registered_name", name if ">" in name else None)
    if name in FUNCTIONAL:
        result |= {"module": "keras.src.models.functional", "class_name": "Functional", "registered_name": "Functional"}
        result["config"] = _without_own_calls(result["config"])
    elif name == "Sequential":
        result |= {"module": "keras", "registered_name": None}
        first = next((item for item in value["config"].get("layers", ()) if isinstance(item, Mapping)), {})
        shape = shape or first.get("config", {}).get("batch_input_shape")
        layers = result["config"].get("layers", [])
        if shape is not None and not any(_is_input(item) for item in layers):
            result["config"]["layers"] = [_input(shape), *layers]
    elif is_layer:
        result["module"] = None if ">" in name else "keras.layers"
    return result


def _without_own_calls(config: dict[str, Any]) -> dict[str, Any]:
    """A graph of layers that counts the calls of a model inside it from 0.

    Keras 2 counts the call by which a model with an input was made as its first; Keras 3 does so only for functional models
    at the ends of the graph.
    """
    counted = {
        layer["config"].get("name"): layer["class_name"]
        for layer in config.get("layers", ())
        if any(_is_input(item) for item in layer.get("config", {}).get("layers", ()))
    }

    def shifted(value: Any, kinds: Collection[str]) -> Any:
        if isinstance(value, list):
            if not _is_tensor(value):
                return [shifted(item, kinds) for item in value]
            name, call = without_slashes(value[0]), value[1]
            rest = [shifted(item, kinds) for item in value[3:]]
            return [name, max(call - 1, 0) if counted.get(name) in kinds else call, value[2], *rest]
        return {key: shifted(item, kinds) for key, item in value.items()} if isinstance(value, Mapping) else value

    ends: dict[str, Any] = {
        key: shifted(config[key], {"Sequential"}) for key in ("input_layers", "output_layers") if key in config
    }
    layers = [
        {
            **layer,
            "inbound_nodes": [_node(node) for node in shifted(layer["inbound_nodes"], {"Sequential", "Functional"})],
        }
        if "inbound_nodes" in layer
        else layer
        for layer in config.get("layers", ())
    ]
    return {**config, **ends, "layers": layers}


def _node(node: Any) -> Any:
    """A call of a layer. Keras 3 reads Keras 2's form of it unless an argument by name is a tensor (attention's `value`)."""
    if not isinstance(node, list) or not node or not all(isinstance(item, list) and len(item) == 4 for item in node):
        return node
    arguments: Mapping[str, Any] = node[0][3]
    if not any(_is_tensor(value) for value in arguments.values()):
        return node
    inputs = [_tensor(item) for item in node]
    named = {key: _tensor(value) if _is_tensor(value) else value for key, value in arguments.items()}
    return {"args": inputs if len(inputs) == 1 else [inputs], "kwargs": named}


def _is_tensor(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 3
        and isinstance(value[0], str)
        and all(isinstance(item, int) for item in value[1:3])
    )


def _tensor(value: Sequence[Any]) -> dict[str, Any]:
    """A tensor by its origin; its shape comes from there."""
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [None], "dtype": "float32", "keras_history": value[:3]},
    }


def _child(key: str, value: Any) -> Any:
    """Inside a layer's config, a class is a layer only where layers stand (`layers`, and `layer` of a wrapper)."""
    return _translated(value, layer=key in {"layers", "layer", "forward_layer", "backward_layer"})


def _is_input(layer: Any) -> bool:
    return isinstance(layer, Mapping) and layer.get("class_name") == "InputLayer"


def _input(shape: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"batch_shape": list(shape)},
        "registered_name": None,
    }


def optimizer(config: Any) -> tuple[str, dict[str, Any]] | None:
    """Class and config of an optimizer in Keras 3's words, without a loss scaling around it; None if there is none.

    Keras 2's `decay` (the rate over 1 + decay x iterations) becomes the schedule that it is.
    """
    if isinstance(config, str):  # compile("adam")
        config = keras_arrays.by_name(config)
    if not isinstance(config, Mapping) or not isinstance(config.get("config"), Mapping):
        return None
    name = str(config.get("class_name", "")).rpartition(">")[2]
    inside = dict(config["config"])
    if name in {"LossScaleOptimizer", "LossScaleOptimizerV3"}:
        return optimizer(inside.get("inner_optimizer"))
    # Nadam's is the pace of its momentum, which Keras 3 has fixed; of the others it is the rate's.
    decay = 0.0 if name == "Nadam" else inside.get("decay") or 0.0
    for key in OPTIMIZER_GONE:
        inside.pop(key, None)
    rate = inside.get("learning_rate", inside.pop("lr", None))
    if decay and isinstance(rate, (int, float)):
        inside["learning_rate"] = {
            "module": "keras.optimizers.schedules",
            "class_name": "InverseTimeDecay",
            "config": {"initial_learning_rate": rate, "decay_steps": 1, "decay_rate": decay, "staircase": False},
            "registered_name": None,
        }
    elif isinstance(rate, Mapping):
        inside["learning_rate"] = {
            **rate,
            "module": "keras.optimizers.schedules",
            "registered_name": None,
            "config": {key: value for key, value in rate["config"].items() if key != "name"},
        }
    if name != "RMSprop" or not inside.get("use_ema"):
        inside.pop("ema_overwrite_frequency", None)
    return name, inside


def slot(name: str) -> tuple[str, str]:
    """The kind of a slot and the variable it belongs to, from Keras 2's name of it.

    New-style optimizers write `Adam/m/dense/kernel:0`, inside loss scaling `m/dense/kernel:0`, legacy ones
    `Adam/dense/kernel/m:0` or `training/Adam/dense/kernel/m:0`. Counts of iterations have no variable: `("iteration", "")`.
    """
    parts = name.partition(":")[0].split("/")
    if parts[0] == "training":
        parts = parts[1:]
    if parts[-1] in {"iteration", "iter", "iterations"}:
        return "iteration", ""
    known = {kind for kinds in SLOTS.values() for kind in kinds} | AVERAGES.keys()
    if len(parts) > 2 and parts[1] in known and parts[-1] not in known:
        return parts[1], "/".join(parts[2:])
    if len(parts) > 1 and parts[0] in known and parts[-1] not in known:  # inside loss scaling the class is left out
        return parts[0], "/".join(parts[1:])
    if parts[-1] in known:
        return parts[-1], "/".join(parts[1:-1])
    return parts[-1], "/".join(parts[:-1])
