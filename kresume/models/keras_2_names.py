"""Computes the `.weights.h5` names that Keras 2 (tf_keras) gives a subclassed model's weights.

    keras_2_names(model)        # [(variable, "layers/conv2d_1/vars/0"), ...], empty if the order is uncertain

Keras 3 names the layers of a subclassed model by attribute. Keras 2 walks the attributes in reverse alphabetical order.
One of them is `layers`: it holds all layers in the order in which the attributes were set, including those in lists and
dictionaries (sorted by key), and names each by its class. A layer that was visited before keeps its first name.

Source: `_walk_trackable` in `tf_keras/src/saving/saving_lib.py`, `_flatten_modules` in `engine/base_layer.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import keras

Named = list[tuple[Any, str]]
TENSORFLOWS = "_self_"
"""Prefix of the attributes in which TensorFlow tracks objects, in an order of its own."""


def keras_2_names(model: keras.Model) -> Named:
    """Returns each variable with its HDF5 path.

    Args:
        model: built.

    Returns:
        Pairs of variable and path. Empty if a layer lists its sublayers in another order than Keras 2 would, because
        names and slots are numbered in that order.
    """
    found: Named = []
    return found if _walk(model, "", found, set()) else []


class _Entry(dict[str, Any]):
    """Collects the variables that a layer saves."""


def _walk(layer: Any, path: str, found: Named, seen: set[int]) -> bool:
    """Appends a layer's variables recursively; returns False if their order is uncertain."""
    if id(layer) in seen:
        return True
    seen.add(id(layer))
    store = _Entry()
    layer.save_own_variables(store)
    found += [(value, f"{path}/vars/{key}".lstrip("/")) for key, value in store.items()]
    children = list(_in_order(layer))
    if [each for each in children if each.weights] != [each for each in _live(layer) if each.weights]:
        return False
    attributes = set(dir(layer)) - _skipped()
    for name in sorted({*attributes, "layers"} if isinstance(layer, keras.Model) else attributes, reverse=True):
        if name.startswith(("__", TENSORFLOWS)):
            continue
        value = children if name == "layers" and isinstance(layer, keras.Model) else _attribute(layer, name)
        if isinstance(value, keras.Layer):
            if not _walk(value, f"{path}/{name}", found, seen):
                return False
        elif isinstance(value, (list, dict, tuple, set)):
            contained = value.values() if isinstance(value, dict) else value
            if not _walk_container(contained, f"{path}/{name}", found, seen):
                return False
    return True


def _attribute(layer: Any, name: str) -> Any:
    try:
        return getattr(layer, name)
    except Exception:  # a user's property may raise anything; Keras ignores that too
        return None


def _walk_container(layers: Iterable[Any], path: str, found: Named, seen: set[int]) -> bool:
    used: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, keras.Layer) or id(layer) in seen:
            continue
        name = keras.src.utils.naming.to_snake_case(type(layer).__name__)
        count = used[name] = used.get(name, -1) + 1
        if not _walk(layer, f"{path}/{name}_{count}" if count else f"{path}/{name}", found, seen):
            return False
    return True


def _live(layer: Any) -> list[Any]:
    """Returns a layer's direct sublayers in Keras 3's order, which the variables follow."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _in_order(layer: Any) -> Iterator[Any]:
    """Yields a layer's direct sublayers in Keras 2's order: as the attributes were set."""
    if isinstance(layer, (keras.Sequential, keras.src.models.Functional)):
        yield from layer.layers
        return
    own, seen = _live(layer), set()
    known = {id(each) for each in own}
    for name, value in vars(layer).items():
        if name in _skipped() or name.startswith(TENSORFLOWS):
            continue
        for each in _flattened(value):
            if id(each) in known and id(each) not in seen:
                seen.add(id(each))
                yield each


def _flattened(value: Any) -> Iterator[Any]:
    if isinstance(value, keras.Layer):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _flattened(value[key])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _flattened(each)


@cache
def _skipped() -> frozenset[str]:
    """Returns the names of attributes that every layer has."""
    return frozenset({*dir(keras.Layer()), *dir(keras.Model()), "_functional", "_operations", "operations"})
