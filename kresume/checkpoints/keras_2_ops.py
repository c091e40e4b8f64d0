"""Translates TensorFlow operations in a Keras 2 graph into Keras 3 layers.

    model(inputs / 127.5 - 1)     # Keras 2 wrote TFOpLambda "math.truediv" and "math.subtract": two Rescalings here

`tf.keras` stores every operation on a layer's output by its name: as `TFOpLambda` and `SlicingOpLambda` since
TensorFlow 2.4, before that as `TensorFlowOpLayer` with the operation's definition. No name is looked up in TensorFlow,
and nothing is run. A name outside the tables below stays as it is, and Keras refuses it by that name.

Source: `tf_keras/src/layers/core/tf_op_layer.py` and `engine/base_layer.py` (`TensorFlowOpLayer`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CLASSES = frozenset({"TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"})
CONSTANT = "_CONSTANT_VALUE"
SAME: Mapping[str, str] = {
    "math.truediv": "divide",
    "math.divide": "divide",
    "truediv": "divide",
    "RealDiv": "divide",
    "math.multiply": "multiply",
    "Mul": "multiply",
    "math.add": "add",
    "__operators__.add": "add",
    "Add": "add",
    "AddV2": "add",
    "math.subtract": "subtract",
    "Sub": "subtract",
    "nn.bias_add": "add",
    "BiasAdd": "add",
    "nn.relu": "relu",
    "Relu": "relu",
    "nn.relu6": "relu6",
    "Relu6": "relu6",
    "nn.softmax": "softmax",
    "Softmax": "softmax",
    "math.sigmoid": "sigmoid",
    "nn.sigmoid": "sigmoid",
    "Sigmoid": "sigmoid",
    "math.tanh": "tanh",
    "Tanh": "tanh",
    "nn.silu": "silu",
    "nn.swish": "silu",
    "nn.elu": "elu",
    "nn.selu": "selu",
    "nn.gelu": "gelu",
    "math.softplus": "softplus",
    "identity": "identity",
    "math.reduce_mean": "mean",
    "math.reduce_max": "max",
    "concat": "concat",
    "reshape": "reshape",
    "image.resize": "resize",
    "cast": "cast",
    "__operators__.getitem": "getitem",
}
"""TensorFlow's names of functions and graph operations, and the name of the operation used here."""
ARITHMETIC = {"divide": "TrueDivide", "multiply": "Multiply", "add": "Add", "subtract": "Subtract"}
ACTIVATIONS = frozenset({"relu", "relu6", "softmax", "sigmoid", "tanh", "silu", "elu", "selu", "gelu", "softplus"})
OPERANDS = ("x", "y", "bias", "features", "logits", "values", "tensor", "input_tensor", "images", "input", "value")
"""Arguments by which Keras 2 passes a tensor or the number combined with it."""


def translated(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Translates one operation into Keras 3's entry for a layer or an operation.

    Args:
        entry: an item of the list `layers` of a functional model of Keras 2, with its `inbound_nodes`.

    Returns:
        The entry; None if the operation, or the way in which it is used, is not supported.
    """
    config, nodes = entry["config"], entry.get("inbound_nodes")
    if entry["class_name"] not in CLASSES or not isinstance(nodes, list) or len(nodes) != 1:
        return None
    try:
        name, operands, options = (
            _of_definition(config, nodes[0])
            if entry["class_name"] == "TensorFlowOpLayer"
            else _of_function(config, nodes[0])
        )
        made = _made(SAME.get(name, ""), operands, options)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError, RecursionError):
        return None
    if made is None:
        return None
    module, class_name, arguments, call = made
    own = str(entry.get("name") or config.get("name"))
    inside = {"name": own, **arguments}
    if module == LAYERS and isinstance(config.get("dtype"), str):
        inside["dtype"] = config["dtype"]
    return {
        "module": module,
        "class_name": class_name,
        "config": inside,
        "registered_name": None if module == LAYERS else class_name,
        "name": own,
        "inbound_nodes": [{"args": [_argument(item) for item in call], "kwargs": {}}],
    }


def untranslated(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Renames an unsupported operation so that Keras's error names the TensorFlow operation."""
    config = entry["config"]
    name = config.get("function") or _definition(config).get("op") or "an unknown name"
    return {**entry, "module": None, "class_name": f"TensorFlow's operation {name}", "registered_name": None}


LAYERS, NUMPY, CORE = "keras.layers", "keras.src.ops.numpy", "keras.src.ops.core"
Made = tuple[str, str, dict[str, Any], Sequence[Any]]


class _Tensor(tuple[str, int, int]):
    """The origin of a tensor: layer, call, output."""

    __slots__ = ()


def _of_function(config: Mapping[str, Any], node: Any) -> tuple[str, list[Any], dict[str, Any]]:
    """Returns name, operands in order, and options of a TFOpLambda."""
    if _is_origin(node):
        node = [node]
    operands = [_origin(item) for item in node]
    options: dict[str, Any] = {key: value for key, value in node[0][3].items() if key != "name"}
    for key in [key for key in options if key in OPERANDS]:
        value = options.pop(key)
        operands.append(_origin(value) if _is_origin(value) else value)
    return str(config["function"]), operands, options


def _definition(config: Mapping[str, Any]) -> Mapping[str, Any]:
    definition = config.get("node_def")
    try:
        definition = json.loads(definition) if isinstance(definition, str) else definition
    except (ValueError, RecursionError):
        return {}
    return definition if isinstance(definition, Mapping) else {}


def _of_definition(config: Mapping[str, Any], node: Any) -> tuple[str, list[Any], dict[str, Any]]:
    """Returns name and operands of a TensorFlowOpLayer, with its constants inserted."""
    operands: list[Any] = [_origin(item) for item in ([node] if _is_origin(node) else node)]
    for index, value in sorted((int(index), value) for index, value in (config.get("constants") or {}).items()):
        operands.insert(index, value)
    return str(_definition(config)["op"]), operands, {}


def _is_origin(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int)


def _origin(value: Sequence[Any]) -> Any:
    if value[0] == CONSTANT:
        return value[2]
    return _Tensor((str(value[0]), int(value[1]), int(value[2])))


def _argument(value: Any) -> Any:
    if isinstance(value, _Tensor):
        return {
            "class_name": "__keras_tensor__",
            "config": {"shape": [None], "dtype": "float32", "keras_history": list(value)},
        }
    return [_argument(item) for item in value] if isinstance(value, list) else value


def _made(name: str, operands: list[Any], options: dict[str, Any]) -> Made | None:
    """Returns module, class, arguments and inputs of the equivalent in Keras 3."""
    first = operands[0]
    if name in ARITHMETIC and len(operands) == 2 and set(options) <= {"data_format"}:
        if options.get("data_format") not in {None, "NHWC"}:
            return None
        numbers = [item for item in operands if not isinstance(item, _Tensor)]
        return _rescaled(name, operands) if numbers else (NUMPY, ARITHMETIC[name], {}, operands)
    if not isinstance(first, _Tensor):
        return None
    if name in ACTIVATIONS and len(operands) == 1:
        if options.get("axis", -1) not in {-1, None} or set(options) - {"axis", "approximate"}:
            return None
        if options.get("approximate"):
            return None
        return LAYERS, "Activation", {"activation": name}, [first]
    maker = MAKERS.get(name)
    return maker(operands, options) if maker is not None else None


def _rescaled(name: str, operands: list[Any]) -> Made | None:
    """Builds a Rescaling from a tensor and a number, or one number per channel."""
    one, other = operands
    if isinstance(one, _Tensor):
        scales = {"divide": (_each(lambda x: 1 / x, other), 0.0), "multiply": (other, 0.0), "add": (1.0, other)}
        scale, offset = {**scales, "subtract": (1.0, _each(lambda x: -x, other))}[name]
        return LAYERS, "Rescaling", {"scale": scale, "offset": offset}, [one]
    if name == "divide" or not isinstance(other, _Tensor):
        return None
    scale, offset = {"multiply": (one, 0.0), "add": (1.0, one), "subtract": (-1.0, one)}[name]
    return LAYERS, "Rescaling", {"scale": scale, "offset": offset}, [other]


def _each(change: Callable[[float], float], value: Any) -> Any:
    return [_each(change, item) for item in value] if isinstance(value, list) else change(float(value))


def _pooled(operands: list[Any], options: dict[str, Any], kind: str) -> Made | None:
    axes, kept = options.pop("axis", None), bool(options.pop("keepdims", False))
    if options or len(operands) != 1 or axes is None:
        return None
    if axes == [1, 2]:
        layer = {"Mean": "GlobalAveragePooling2D", "Max": "GlobalMaxPooling2D"}[kind]
        return LAYERS, layer, {"keepdims": kept, "data_format": "channels_last"}, operands
    return NUMPY, kind, {"axis": axes, "keepdims": kept}, operands


def _joined(operands: list[Any], options: dict[str, Any]) -> Made | None:
    axis = options.pop("axis", None)
    if options or axis is None or len(operands) < 2 or not all(isinstance(item, _Tensor) for item in operands):
        return None
    return LAYERS, "Concatenate", {"axis": axis}, [operands]


def _reshaped(operands: list[Any], options: dict[str, Any]) -> Made | None:
    shape = options.pop("shape", None)
    if options or len(operands) != 1 or not shape or shape[0] not in {-1, None} or -1 in shape[1:]:
        return None
    return LAYERS, "Reshape", {"target_shape": shape[1:]}, operands


def _resized(operands: list[Any], options: dict[str, Any]) -> Made | None:
    size, method = options.pop("size", None), options.pop("method", "bilinear")
    if any(options.values()) or len(operands) != 1 or method not in {"bilinear", "nearest", "bicubic"}:
        return None
    height, width = size
    return LAYERS, "Resizing", {"height": int(height), "width": int(width), "interpolation": method}, operands


def _cast(operands: list[Any], options: dict[str, Any]) -> Made | None:
    dtype = options.pop("dtype", None)
    if options or len(operands) != 1 or not isinstance(dtype, str):
        return None
    return CORE, "Cast", {"dtype": dtype}, operands


def _sliced(operands: list[Any], options: dict[str, Any]) -> Made | None:
    key = options.pop("slice_spec", None)
    if options or len(operands) != 1 or not isinstance(key, list):
        return None
    return NUMPY, "GetItem", {}, [operands[0], [_part(item) for item in key]]


def _part(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return None if item is None else int(item)
    if item.get("class_name") in {"__ellipsis__", "__ellipsis"}:
        return {"class_name": "__ellipsis__", "config": {}}
    bounds = {key: None if item[key] is None else int(item[key]) for key in ("start", "stop", "step")}
    return {"class_name": "__slice__", "config": bounds}


MAKERS: Mapping[str, Callable[[list[Any], dict[str, Any]], Made | None]] = {
    "identity": lambda operands, options: None if options else (LAYERS, "Identity", {}, operands[:1]),
    "mean": lambda operands, options: _pooled(operands, options, "Mean"),
    "max": lambda operands, options: _pooled(operands, options, "Max"),
    "concat": _joined,
    "reshape": _reshaped,
    "resize": _resized,
    "cast": _cast,
    "getitem": _sliced,
}
