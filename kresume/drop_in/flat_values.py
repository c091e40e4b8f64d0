"""Flattens settings into plain values that can be compared between two processes.

    flatten("loss", keras.losses.CategoricalCrossentropy(label_smoothing=0.1), found)
    found       # {"loss": "CategoricalCrossentropy", "loss.label_smoothing": 0.1, ...}

What differs from process to process is left out: generated names, memory addresses, seeds, paths, dates, tensors. So are
initial values, which a continued training does not use. Large arrays are described by their shape, mean and spread.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from kresume.drop_in import code_digest
from kresume.models.introspection import attributes_of

Flat = dict[str, Any]
PLAIN = (bool, int, float, str, type(None))
UNSTABLE = re.compile(r"0x[0-9a-f]{4}|[/\\]|(?:\d\D{0,2}){6}")
"""Matches texts with an address, a path, or as many digits as a date has."""
LONGEST_TEXT, LONGEST_LIST, MOST_ITEMS, LARGEST = 100, 16, 256, 10_000_000
DEEPEST = 6
DATES, DIGITS = 1e9, 12
"""Numbers from here on, and those above 1 with as many digits, may be times in seconds."""
LEFT_OUT = {
    "batch_input_shape",
    "batch_shape",
    "build_config",
    "input_shape",
    "name",
    "seed",
    "trainable",
}
"""Settings of Keras's configs that differ between processes, that shapes decide, or that `script_record` describes itself."""
OF_KERAS = {
    "autocast",
    "built",
    "compiled",
    "dtype",
    "history",
    "inputs",
    "jit_compile",
    "loss",
    "name",
    "optimizer",
    "outputs",
    "run_eagerly",
    "steps_per_execution",
    "stop_training",
    "supports_masking",
    "trainable",
}
"""Attributes that Keras sets on a layer or a model, also on the user's."""


def flatten(path: str, value: Any, found: Flat, depth: int = 0) -> None:
    """Adds a value and its parts to `found` by their paths; nothing if it cannot be compared.

    Args:
        path: of the value.
        value: a plain value, a serialized or a live object of Keras, a function, an array, or lists and dictionaries of them.
        found: is extended.
        depth: how many objects contain the value.
    """
    kind = type(value)  # `isinstance` would ask a proxy of the user's, which may raise
    if depth > DEEPEST:
        return
    if issubclass(kind, PLAIN) or issubclass(kind, np.generic):
        _plain(path, value.item() if issubclass(kind, np.generic) else value, found)
    elif issubclass(kind, Mapping):
        _dictionary(path, dict(value), found, depth)
    elif issubclass(kind, (list, tuple)):
        _list(path, list(value), found, depth)
    elif issubclass(kind, np.ndarray):
        _array(path, value, found)
    elif code_digest.is_function(value):
        _function(path, value, found)
    elif issubclass(kind, (keras.losses.Loss, keras.metrics.Metric, keras.regularizers.Regularizer)):
        found[path] = kind.__name__
        settings_of(value, found, f"{path}.", depth)


def settings_of(value: Any, found: Flat, prefix: str = "", depth: int = 0) -> None:
    """Adds the settings of an object of Keras, and the code of its class if that is the user's.

    Args:
        value: a layer, a loss, a metric or a regularizer.
        found: is extended.
        prefix: of the paths.
        depth: how many objects contain it.
    """
    held = attributes_of(value)
    config = _config_of(value)
    for name, setting in config.items():
        if not isinstance(name, str) or name in LEFT_OUT or name.endswith("initializer"):
            continue
        if name == "dtype" and not isinstance(value, keras.Layer):
            continue
        own = held.get(name)
        flatten(f"{prefix}{name}", own if code_digest.is_function(own) else setting, found, depth + 1)
    own_code(value, found, prefix, depth)


def own_code(value: Any, found: Flat, prefix: str = "", depth: int = 0) -> None:
    """Adds the code of an object's methods, and the attributes that they read; only of the user's classes."""
    methods, held = code_digest.methods_of(type(value)), attributes_of(value)
    for name, method in methods.items():
        _function(f"{prefix}{name}", method, found)
    for name in sorted(code_digest.names_in(methods.values()) & held.keys() - OF_KERAS):
        item = held[name]
        if f"{prefix}{name}" not in found and not _may_be_a_time(item):
            flatten(f"{prefix}{name}", item, found, depth + 1)


def _config_of(value: Any) -> dict[str, Any]:
    """Returns the config of an object, or else the attributes with the names of its arguments."""
    try:
        config = value.get_config()
        if isinstance(config, dict):
            return config
    except Exception:  # a class without one, a lambda without a source, or any code of the user's
        pass
    try:
        names: Iterable[str] = inspect.signature(type(value).__init__).parameters
    except (TypeError, ValueError):
        return {}
    held = attributes_of(value)
    return {name: held[name] for name in names if name in held and name not in OF_KERAS}


def _plain(path: str, value: Any, found: Flat) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        found[path] = str(value)
    elif isinstance(value, PLAIN) and not (isinstance(value, str) and _is_unstable(value)):
        found[path] = value


def _may_be_a_time(value: Any) -> bool:
    """Tests for a number that source code is not likely to hold."""
    if type(value) not in (int, float):
        return False
    long = type(value) is float and abs(value) >= 1 and len(repr(value).replace(".", "")) >= DIGITS
    return long or not abs(value) < DATES


def _is_unstable(text: str) -> bool:
    return len(text) > LONGEST_TEXT or UNSTABLE.search(text) is not None


def _dictionary(path: str, value: dict[Any, Any], found: Flat, depth: int) -> None:
    if "class_name" in value and "config" in value:
        _serialized(path, str(value["class_name"]), value["config"], found, depth)
        return
    if len(value) > MOST_ITEMS:
        return
    found[path] = "dict"
    for key, item in value.items():
        if isinstance(key, (str, int)):
            flatten(f"{path}[{key}]", item, found, depth + 1)


def _serialized(path: str, name: str, config: Any, found: Flat, depth: int) -> None:
    """Adds an object that Keras serialized."""
    if name == "function":
        _plain(path, str(config).rpartition(">")[2], found)
    elif not isinstance(config, Mapping):
        return
    elif name.endswith("DTypePolicy"):
        _plain(path, config.get("name"), found)
    elif name == "__numpy__":
        _array(path, np.asarray(config["value"]), found)
    elif not name.startswith("__") and not {"trainable", "layers"} & config.keys():  # a layer is described by itself
        found[path] = name
        for key, item in config.items():
            if key not in LEFT_OUT and not str(key).endswith("initializer"):
                flatten(f"{path}.{key}", item, found, depth + 1)


def _list(path: str, value: list[Any], found: Flat, depth: int) -> None:
    if len(value) == 1:  # Keras writes an axis as a number before a layer is built, and as a list afterwards
        flatten(path, value[0], found, depth + 1)
    elif all(type(item) in (bool, int, float) for item in value):
        if len(value) <= LONGEST_LIST:
            found[path] = [item if math.isfinite(item) else str(item) for item in value]
        else:
            _array(path, np.asarray(value, np.float64), found)
    elif all(type(item) is str for item in value):
        text = "\0".join(value)
        found[path] = value if len(text) <= LONGEST_TEXT else f"{len(value)} texts ({_digest(text)})"
    elif len(value) <= MOST_ITEMS:
        found[path] = "list"
        for index, item in enumerate(value):
            flatten(f"{path}[{index}]", item, found, depth + 1)


def _array(path: str, value: np.ndarray, found: Flat) -> None:
    """Adds the numbers of a small array; of a large one its shape, mean and standard deviation."""
    if value.dtype.kind not in "biuf" or value.size > LARGEST or not value.size:
        return
    if value.size <= LONGEST_LIST and value.ndim <= 1:
        _list(path, np.asarray(value, np.float64).ravel().tolist(), found, 0)
        return
    numbers = np.asarray(value, np.float64)
    found[f"{path}.shape"] = list(value.shape)
    _plain(f"{path}.mean", float(numbers.mean()), found)
    _plain(f"{path}.std", float(numbers.std()), found)


def _function(path: str, value: Any, found: Flat) -> None:
    for name, item in code_digest.describe(value):
        _used(f"{path}.{name}" if name else path, item, found)


def _used(path: str, item: Any, found: Flat) -> None:
    if _may_be_a_time(item):
        return
    if isinstance(item, str):  # a name or a digest
        found[path] = item
    elif isinstance(item, (bool, int, float)):
        _plain(path, item, found)
    elif isinstance(item, (keras.losses.Loss, keras.regularizers.Regularizer)):
        flatten(path, item, found)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
