"""Translates classes and arguments of Keras 2's layers, activations and initializers.

    layer("LeakyReLU", {"alpha": 0.2})        # ("LeakyReLU", {"negative_slope": 0.2})

Only dictionaries are translated; nothing is built or run. Names without a counterpart are unchanged, and Keras 3
refuses them by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RENAMED = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "LayerNormalizationV1": "LayerNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "ThresholdedReLU": "ReLU",
}
"""Classes that Keras 3 renamed or merged into another class."""
MODULES = {"LayerScale": "keras.src.applications.convnext", "StochasticDepth": "keras.src.applications.convnext"}
"""Modules of layers that Keras 3 defines in its applications, as Keras 3 serializes them."""
PARTS = {
    "keras.initializers": {
        "Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Identity", "LecunNormal", "LecunUniform", "Ones",
        "Orthogonal", "RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling", "Zeros",
    },
    "keras.regularizers": {"L1", "L1L2", "L2", "OrthogonalRegularizer"},
    "keras.constraints": {"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"},
}  # fmt: skip
"""Modules of initializers, regularizers and constraints, which Keras 2 did not store."""
KERNEL = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
GONE: Mapping[str, tuple[str, ...]] = {
    "InputLayer": ("ragged",),
    "BatchNormalization": ("fused", "synchronized"),
    "DepthwiseConv1D": ("groups", *KERNEL),
    "DepthwiseConv2D": ("groups", *KERNEL),
    "SeparableConv1D": ("groups", *KERNEL),
    "SeparableConv2D": ("groups", *KERNEL),
    "Conv1DTranspose": ("groups",),
    "Conv2DTranspose": ("groups",),
    "Conv3DTranspose": ("groups",),
    "MultiHeadAttention": ("query_shape", "key_shape", "value_shape", "softmax_robust_masking"),
    "Softmax": ("robust_masking",),
    "Discretization": ("trainable",),
    "SpatialDropout1D": ("trainable", "noise_shape"),
    "SpatialDropout2D": ("trainable", "noise_shape"),
    "SpatialDropout3D": ("trainable", "noise_shape"),
    "Embedding": ("input_length",),
    "Lambda": ("function_type", "module", "output_shape_type", "output_shape_module"),
}
"""Arguments that Keras 3 does not accept and that do not change what a layer computes from its weights."""
OFF: Mapping[str, tuple[Any, ...]] = {
    "time_major": (False,),
    "rng_type": (None, "stateful", "legacy_stateful", "stateless"),
    "dynamic": (False,),
    "sparse": (False,),
    "causal": (False,),
    "virtual_batch_size": (None,),
    "adjustment": (None,),
}
"""Arguments of any layer that Keras 3 does not accept, with the values at which they have no effect."""
KEPT: Mapping[str, tuple[str, ...]] = {
    "sparse": ("InputLayer", "CategoryEncoding", "HashedCrossing", "IntegerLookup", "StringLookup", "TextVectorization")
}
"""Classes for which Keras 3 still accepts such an argument."""
HARD_SIGMOID: Mapping[str, Any] = {
    "module": "keras",
    "class_name": "Sequential",
    "registered_name": None,
    "config": {
        "name": "hard_sigmoid_of_keras_2",
        "layers": [
            {
                "module": "keras.layers",
                "class_name": "Rescaling",
                "registered_name": None,
                "config": {"scale": 0.2, "offset": 0.5},
            },
            {"module": "keras.layers", "class_name": "ReLU", "registered_name": None, "config": {"max_value": 1.0}},
        ],
    },
}
"""Keras 2's `hard_sigmoid`, 0.2 x + 0.5 clipped to 0..1. In Keras 3 the name means another function, x / 6 + 0.5
clipped."""
OF_KERAS_1 = frozenset({"border_mode", "dim_ordering", "input_dtype", "nb_filter", "nb_row", "W_regularizer"})
"""Arguments that only layers of Keras 1 have."""
INITIALIZERS = frozenset(
    {"Zeros", "Ones", "Constant", "Identity", "Orthogonal", "RandomNormal", "RandomUniform", "TruncatedNormal"}
    | {"VarianceScaling", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform"}
)


def layer(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Translates the class and arguments of a layer into Keras 3's.

    Args:
        name: the class in Keras 2.
        config: its arguments; nested objects are translated elsewhere.
    """
    new = RENAMED.get(name, name)
    inside = {key: value for key, value in config.items() if not _is_gone(new, key, value)}
    if name == "ThresholdedReLU":
        inside["threshold"] = _number(inside.pop("theta", 1.0))
    if name == "LeakyReLU" and "alpha" in inside:
        inside["negative_slope"] = _number(inside.pop("alpha"))
    if new in {"ReLU", "ELU"}:
        inside = {key: _number(value) for key, value in inside.items()}
    if new in {"BatchNormalization", "LayerNormalization"}:
        axis = inside.get("axis")
        if isinstance(axis, list) and len(axis) == 1:
            inside["axis"] = axis[0]
    if new == "GRU":
        inside.setdefault("reset_after", False)  # the fixed behaviour before `reset_after` was added
    if name == "Lambda":
        inside |= {key: _code(inside[key]) for key in ("function", "output_shape") if _is_code(inside.get(key))}
    for key in ("activation", "recurrent_activation"):
        if _is_hard_sigmoid(inside.get(key)):
            inside[key] = HARD_SIGMOID
    return new, inside


def module_of(name: str) -> str | None:
    """Returns the module of a built-in initializer, regularizer or constraint, else None."""
    return next((module for module, names in PARTS.items() if name in names), None)


def is_of_keras_1(config: Any) -> bool:
    """Returns True if a model's config has arguments that only Keras 1 uses."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, Mapping):
            if OF_KERAS_1 & value.keys():
                return True
            waiting += [value[key] for key in ("config", "layers") if key in value]
    return False


def initializer(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Removes an initializer's dtype: Keras 3 uses the layer's dtype."""
    return {key: value for key, value in config.items() if key != "dtype" or name not in INITIALIZERS}


def _is_gone(name: str, key: str, value: Any) -> bool:
    if key in GONE.get(name, ()):
        return True
    return key in OFF and name not in KEPT.get(key, ()) and any(value is off or value == off for off in OFF[key])


def _is_hard_sigmoid(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = value.get("config") if value.get("class_name") == "function" else value.get("class_name")
    return bool(value == "hard_sigmoid")


def _is_code(value: Any) -> bool:
    """Returns True for a serialized function: bytecode, defaults and closure."""
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str)


def _code(value: Sequence[Any]) -> dict[str, Any]:
    """Converts a serialized function to Keras 3's form.

    Keras 3 refuses such code unless the user trusts the file.
    """
    return {"class_name": "__lambda__", "config": dict(zip(("code", "defaults", "closure"), value, strict=True))}


def _number(value: Any) -> Any:
    """Unwraps a number that Keras 2 stored as an array: `{"type": "ndarray", "value": 0.3}`."""
    return value["value"] if isinstance(value, Mapping) and value.keys() == {"type", "value"} else value
