"""Flattens settings into plain values that can be compared between two processes.

    flatten("loss", keras.losses.CategoricalCrossentropy(label_smoothing=0.1), found)
    found       # {"loss": "CategoricalCrossentropy", "loss.label_smoothing": 0.1, ...}

What differs from process to process is left out: generated names, memory addresses, seeds, paths, dates, tensors. So are
initial values, which a continued training does not use. Large arrays are described by their shape, mean and spread.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import os
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from enum import Enum
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from kresume.drop_in import code_digest
from kresume.drop_in.code_digest import WRITTEN
from kresume.models.introspection import attributes_of, attributes_written_by

Flat = dict[str, Any]
Named = frozenset[str]
"""The names of attributes and the texts in code that uses a value."""
KEYS = "[]"
"""Follows the path of a dictionary, for its keys, and that of a list, for its length."""
PLAIN = (bool, int, float, str, type(None))
UNSTABLE = re.compile(r"0x[0-9a-f]{4}|[/\\]|(?:\d\D{0,2}){6}")
"""Matches texts with an address, a path, or as many digits as a date has."""
LONGEST_TEXT, LONGEST_LIST, MOST_ITEMS, LARGEST = 100, 16, 256, 1_000_000
DEEPEST, MOST_VALUES = 6, 5_000
PRIVATE = re.compile(r"token|secret|passw|credential|api_?key|auth", re.IGNORECASE)
"""Matches names of texts that may be secret: a backup may be in a bucket that others read."""
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
DESCRIBED_ELSEWHERE = (
    keras.Layer,
    keras.Variable,
    keras.optimizers.Optimizer,
    keras.callbacks.Callback,
    keras.utils.PyDataset,
)
"""Kinds of objects that have records of their own, or are data."""
SCALARS = {"EagerTensor", "ArrayImpl"}
"""Classes of constants of TensorFlow and JAX; those with one number are compared, others may hold weights."""


def flatten(path: str, value: Any, found: Flat, depth: int = 0, named: Named | None = None) -> None:
    """Adds a value and its parts to `found` by their paths; nothing if it cannot be compared.

    Args:
        path: of the value.
        value: a plain value, a serialized or a live object of Keras, a function, an array, an object of the user's, or lists
            and dictionaries of them.
        found: is extended.
        depth: how many objects contain the value.
        named: what code names that uses the value; None for a setting. Of an object it may use nothing else.
    """
    try:
        _flatten(path, value, found, depth, named)
    except Exception:  # of an object of the user's that refuses to be looked at: the others are compared
        return


def _flatten(path: str, value: Any, found: Flat, depth: int, named: Named | None) -> None:
    kind = type(value)  # `isinstance` would ask a proxy of the user's, which may raise
    if depth > DEEPEST or len(found) > MOST_VALUES:
        return
    if issubclass(kind, Enum):  # of which some are numbers or texts
        found[path] = f"{kind.__name__}.{value.name}"
        flatten(f"{path}.value", value.value, found, depth + 1, named)
    elif issubclass(kind, PLAIN) or issubclass(kind, np.generic):
        plain = value.item() if issubclass(kind, np.generic) else value
        if (named is None or not _may_be_a_time(plain)) and not _is_private(path, plain):
            _plain(path, plain, found)
    elif issubclass(kind, dict):  # another mapping may read files or the environment
        if len(value) <= MOST_ITEMS:
            _dictionary(path, dict(value), found, depth, named)
    elif issubclass(kind, tuple) and hasattr(kind, "_fields"):
        _object(path, value, dict(zip(kind._fields, value, strict=False)), found, depth, named)
    elif issubclass(kind, (list, tuple)):
        _list(path, list(value), found, depth, named)
    elif issubclass(kind, (set, frozenset)):
        if {type(each) for each in value} in ({str}, {int}, {float}):  # others have no order of their own
            _list(path, sorted(value), found, depth, named)
    elif issubclass(kind, np.ndarray):
        _array(path, value, found)
    elif code_digest.is_function(value):
        _function(path, value, found, depth)
    elif issubclass(kind, (keras.losses.Loss, keras.metrics.Metric, keras.regularizers.Regularizer)):
        found[path] = kind.__name__
        settings_of(value, found, f"{path}.", depth)
    elif kind.__name__ in SCALARS and value.ndim == 0:
        flatten(path, np.asarray(value).item(), found, depth, named)
    elif not issubclass(kind, (type, *DESCRIBED_ELSEWHERE)):
        _users_object(path, value, found, depth, named)


def _is_private(path: str, value: Any) -> bool:
    """Returns True for a text that is a secret by its name, or that the environment gave."""
    return type(value) is str and (
        PRIVATE.search(path) is not None or (len(value) > 5 and value in os.environ.values())
    )


def _users_object(path: str, value: Any, found: Flat, depth: int, named: Named | None) -> None:
    """Adds the fields of an object of the user's, and the code of one that is called."""
    kind = type(value)
    if issubclass(kind, (Namespace, SimpleNamespace)):
        _object(path, value, attributes_of(value), found, depth, named)
    elif not code_digest.is_users_kind(kind):
        return
    elif dataclasses.is_dataclass(kind):
        _object(path, value, _fields(value), found, depth, named)
    else:
        held = code_digest.class_values(kind) | attributes_of(value)
        used = {name: item for name, item in sorted(held.items()) if name in (named or ())}
        if used:
            _object(path, value, used, found, depth, named)
    methods = code_digest.methods_of(kind)
    if "__call__" in methods:
        found[path] = kind.__name__
        own_code(value, found, f"{path}.", depth)
    elif code_digest.is_users_kind(kind):
        for name in sorted(methods.keys() & (named or set())):
            _function(f"{path}.{name}", methods[name], found, depth + 1)


def _fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass, also of one with slots."""
    found = {}
    for field in dataclasses.fields(value):
        try:
            found[field.name] = object.__getattribute__(value, field.name)
        except AttributeError:
            continue
    return found


def _object(path: str, value: Any, fields: dict[str, Any], found: Flat, depth: int, named: Named | None) -> None:
    """Adds the fields of an object that its code names; all of them if it names none."""
    found[path] = type(value).__name__
    written = attributes_written_by(code_digest.methods_of(type(value)).values())
    for name in _chosen(fields, named):
        flatten(f"{path}.{name}{WRITTEN if name in written else ''}", fields[name], found, depth + 1, named)


def _chosen(items: Mapping[Any, Any], named: Named | None) -> list[Any]:
    """Returns the keys that code names, and those that are no texts; all of them if it names none."""
    chosen = [key for key in items if named is not None and type(key) is str and key in named]
    return [key for key in items if not chosen or type(key) is not str or key in chosen]


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
    kind = type(value)
    methods, held = code_digest.methods_of(kind), code_digest.class_values(kind) | attributes_of(value)
    for name, method in methods.items():
        _function(f"{prefix}{name}", method, found, depth)
    named = frozenset(code_digest.words_in(methods.values()))
    written = attributes_written_by(methods.values())
    for name in sorted(named & held.keys() - OF_KERAS):
        path = f"{prefix}{name}{WRITTEN if name in written else ''}"
        if f"{prefix}{name}" not in found:
            flatten(path, held[name], found, depth + 1, named)


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


def _dictionary(path: str, value: dict[Any, Any], found: Flat, depth: int, named: Named | None) -> None:
    if "class_name" in value and "config" in value:
        _serialized(path, str(value["class_name"]), value["config"], found, depth)
        return
    found[path] = "dict"
    chosen = {text: value[key] for key in _chosen(value, named) if (text := _key(key))}
    found[f"{path}{KEYS}"] = sorted(chosen)
    for text, item in chosen.items():
        flatten(f"{path}[{text}]", item, found, depth + 1, named)


def _key(key: Any) -> str:
    """Returns a key as text; empty for one that cannot be compared, such as an `id`."""
    if isinstance(key, Enum):
        return str(key.name)
    plain = key.item() if isinstance(key, np.generic) else key  # `numpy.unique` gives such classes
    unstable = not isinstance(plain, PLAIN) or _may_be_a_time(plain) or (isinstance(plain, str) and _is_unstable(plain))
    return "" if unstable else str(plain)


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


def _list(path: str, value: list[Any], found: Flat, depth: int, named: Named | None) -> None:
    if len(value) == 1:  # Keras writes an axis as a number before a layer is built, and as a list afterwards
        flatten(path, value[0], found, depth + 1, named)
    elif named is not None and any(map(_may_be_a_time, value)):
        return
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
        found[f"{path}{KEYS}"] = len(value)
        for index, item in enumerate(value):
            flatten(f"{path}[{index}]", item, found, depth + 1, named)


def _array(path: str, value: np.ndarray, found: Flat) -> None:
    """Adds the numbers of a small array; of a large one its shape, mean and standard deviation."""
    if value.dtype.kind not in "biuf" or value.size > LARGEST or not value.size:
        return
    if value.size <= LONGEST_LIST and value.ndim <= 1:
        _list(path, np.asarray(value, np.float64).ravel().tolist(), found, 0, None)
        return
    numbers = np.asarray(value, np.float64)
    found[f"{path}.shape"] = list(value.shape)
    _plain(f"{path}.mean", float(numbers.mean()), found)
    _plain(f"{path}.std", float(numbers.std()), found)


def _function(path: str, value: Any, found: Flat, depth: int) -> None:
    for part in code_digest.describe(value):
        below = f"{path}.{part.path}" if part.path else path
        if type(part.value) is str and (not part.path or code_digest.is_code(part.path)):  # a name or a digest
            found[below] = part.value
        else:
            flatten(below, part.value, found, depth + 1, part.named)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
