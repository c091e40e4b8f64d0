"""Translates Keras 2's architectures into Keras 3's.

    architecture(json.loads(file.attrs["model_config"]), path)

Only dictionaries are translated; nothing is built or run. The translation covers module names, renamed arguments,
removed arguments without effect (`keras_2_layers.py`) and operations between layers (`keras_2_ops.py`). Anything else
is unchanged, and Keras reports what it does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from kresume.checkpoints import keras_2_layers, keras_2_ops
from kresume.errors import CheckpointError

FUNCTIONAL = {"Functional", "Model"}
HOLDERS = frozenset({"layers", "layer", "forward_layer", "backward_layer", "cell", "cells", "activation"})
"""Arguments of models and layers that hold layers."""


def architecture(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Translates a serialized Keras 2 model into Keras 3's serialized form.

    Args:
        config: `{"class_name", "config"}`, from an HDF5 file's `model_config`, `to_json` or a `.keras` archive of Keras
            2.
        path: the file that holds it, for messages.

    Raises:
        CheckpointError: if `config` does not have the form of a model.
    """
    try:
        translated: dict[str, Any] = _translated(dict(config), layer=True)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the architecture does not have the form of a Keras 2 model ({type(error).__name__}: {error}): the file "
            "is damaged"
        ) from error
    return translated


def from_json(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Translates the output of any Keras version's `to_json` into Keras 3's form.

    Raises:
        CheckpointError: if `config` does not have the form of a model.
    """
    old = "module" not in config or is_keras_2(config.get("keras_version", "3"))
    return architecture(config, path) if old else config


def without_slashes(name: str) -> str:
    """Replaces the slashes in a layer's name, which Keras 3 does not allow.

    Some of Keras 2's applications have names such as `conv1/bn`.
    """
    return name.replace("/", "_")


def is_keras_2(version: Any) -> bool:
    """Returns True for a version string of Keras 2 or 1."""
    return str(version).split(".")[0] in {"1", "2"}


def plain(value: dict[str, Any]) -> Any:
    """Unwraps the list that Keras 2's JSON stores as an object.

    Such objects are tuples, shapes, and lists that TensorFlow wrapped.
    """
    if value.get("class_name") in {"__tuple__", "TensorShape", "ListWrapper"} and isinstance(value.get("items"), list):
        return value["items"]
    return value


def _translated(value: Any, *, layer: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return [_translated(item, layer=layer) for item in value]
    if not isinstance(value, Mapping):
        return value
    value = plain(dict(value))
    if isinstance(value, list):
        return _translated(value, layer=layer)
    if _is_bare_stack(value):
        value["config"] = {"name": value.get("name", "sequential"), "layers": value["config"]}
    if not (isinstance(value.get("class_name"), str) and isinstance(value.get("config"), Mapping)):
        return {key: _translated(item, layer=layer) for key, item in value.items()}
    if value["class_name"] in {"Policy", "PolicyV1"}:
        return value["config"].get("name")
    inside = {key: plain(item) if isinstance(item, dict) else item for key, item in value["config"].items()}
    if isinstance(inside.get("layers"), list):
        inside["layers"] = _named(inside["layers"])
    name, inside = keras_2_layers.layer(value["class_name"], inside)
    inside = keras_2_layers.initializer(name, inside)
    if isinstance(inside.get("name"), str):
        inside["name"] = without_slashes(inside["name"])
    shape = inside.pop("batch_input_shape", None)
    if shape is not None and name == "InputLayer":
        inside["batch_shape"] = shape
    module = str(value.get("module") or "")
    is_layer = layer and (not module or module.startswith(("keras.layers", "keras.src.engine", "tf_keras")))
    result = {**value, "class_name": name, "config": {key: _child(key, item) for key, item in inside.items()}}
    if isinstance(result.get("name"), str):
        result["name"] = without_slashes(result["name"])
    result.pop("build_config", None)  # holds shapes in Keras 2's form; Keras 3 then builds by calling
    result.setdefault("registered_name", name if ">" in name else None)
    if name in FUNCTIONAL:
        result |= {"module": "keras.src.models.functional", "class_name": "Functional", "registered_name": "Functional"}
        result["config"] = _without_own_calls(result["config"])
    elif name == "Sequential":
        result |= {"module": "keras", "registered_name": None}
        result["config"]["layers"] = _stack(result["config"].get("layers", []), shape or _shape_of_first(value))
    elif is_layer:
        result["module"] = None if ">" in name else keras_2_layers.MODULES.get(name, "keras.layers")
    elif not module and not layer and result["registered_name"] is None:
        result["module"] = keras_2_layers.module_of(name)
    return result


def _shape_of_first(value: Any) -> Any:
    """Returns the input shape that the first layer of a Sequential stores."""
    layers = value["config"].get("layers") if isinstance(value["config"], Mapping) else None
    first = layers[0] if isinstance(layers, list) and layers else None
    config = first.get("config") if isinstance(first, Mapping) else None
    return config.get("batch_input_shape") if isinstance(config, Mapping) else None


def _stack(layers: Any, shape: Any) -> Any:
    """Returns a Sequential's layers, with an input layer first if the shape is known."""
    if not isinstance(layers, list):
        return layers
    if shape is not None and not any(_is_input(item) for item in layers):
        layers = [_input(plain(shape) if isinstance(shape, dict) else shape), *layers]
    return layers


def _is_bare_stack(value: Any) -> bool:
    """Returns True for a Sequential of Keras before 2.2.3.

    Its config is the list of its layers, without a name.
    """
    return (
        isinstance(value, Mapping) and value.get("class_name") == "Sequential" and isinstance(value.get("config"), list)
    )


def _named(layers: Sequence[Any]) -> list[Any]:
    """Gives each Sequential without a name a name that no other layer has."""
    taken = {item["config"].get("name") for item in layers if _has_config(item)}
    free = (name for name in map("sequential_{}".format, range(1, len(layers) + len(taken) + 1)) if name not in taken)
    return [{"name": next(free), **item} if _is_bare_stack(item) else item for item in layers]


def _has_config(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("config"), Mapping)


def _without_own_calls(config: dict[str, Any]) -> dict[str, Any]:
    """Renumbers the calls of nested models from 0.

    Keras 2 counts the construction of a model with an input as its first call, so no call in this graph has the index
    0. Keras 3 does so only for functional models that are inputs or outputs of the graph.
    """
    first: dict[str, int] = {}
    for name, call in _origins([*(layer.get("inbound_nodes") for layer in config.get("layers", ())), *_ends(config)]):
        first[name] = min(call, first.get(name, call))
    counted = {
        layer["config"].get("name"): layer["class_name"]
        for layer in config.get("layers", ())
        if _has_config(layer) and first.get(layer["config"].get("name"), 0) > 0
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
        key: _single(shifted(config[key], {"Sequential"})) for key in ("input_layers", "output_layers") if key in config
    }
    layers = [
        _entry({**layer, "inbound_nodes": shifted(layer["inbound_nodes"], {"Sequential", "Functional"})})
        if "inbound_nodes" in layer
        else layer
        for layer in config.get("layers", ())
    ]
    return {**config, **ends, "layers": layers}


def _entry(layer: dict[str, Any]) -> dict[str, Any]:
    """Translates one layer of a graph with its calls."""
    if layer["class_name"] in keras_2_ops.CLASSES:
        return keras_2_ops.translated(layer) or keras_2_ops.untranslated(layer)
    return {**layer, "inbound_nodes": [_node(node) for node in layer["inbound_nodes"]]}


def _ends(config: Mapping[str, Any]) -> list[Any]:
    return [config[key] for key in ("input_layers", "output_layers") if key in config]


def _origins(value: Any) -> Iterator[tuple[str, int]]:
    """Yields the layer and the call of every tensor that a graph refers to."""
    if _is_tensor(value):
        yield without_slashes(value[0]), value[1]
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _origins(item)


def _single(ends: Any) -> Any:
    """Unwraps a model's only input or output.

    Keras 3 would read Keras 2's list of one as a nested list.
    """
    return ends[0] if isinstance(ends, list) and len(ends) == 1 and _is_tensor(ends[0]) else ends


def _node(node: Any) -> Any:
    """Translates one call of a layer.

    Keras 3 reads Keras 2's form, except if a keyword argument is a tensor (attention's `value`).
    """
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
    """Returns a Keras tensor that refers to its origin, which determines the real shape."""
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [None], "dtype": "float32", "keras_history": value[:3]},
    }


def _child(key: str, value: Any) -> Any:
    """Translates an argument of a layer.

    A class in it is a layer only under the keys in `HOLDERS`.
    """
    return _translated(value, layer=key in HOLDERS)


def _is_input(layer: Any) -> bool:
    return isinstance(layer, Mapping) and layer.get("class_name") == "InputLayer"


def _input(shape: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"batch_shape": list(shape)},
        "registered_name": None,
    }
