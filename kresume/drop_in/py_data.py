"""Saves and restores what a `keras.utils.PyDataset` remembers: order, counts and generators.

    held = PyData(model, x, validation, make)       # when fit begins
    held.begin_epoch()                              # when an epoch begins
    records = held.records(within=True)             # for a backup
    held.restore(records)                           # in another process

`on_epoch_end` may shuffle by a generator from which `__getitem__` draws, too: calling it again for the epochs before gives
another order. Threads draw ahead of the training, so the state at an epoch's beginning is saved, from which the epoch is drawn
again.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kresume.models import found_variables, introspection, other_variables, plain_generators

MOST_BYTES, MOST_ITEMS, DEEPEST = 4 * 1024**2, 50_000, 3
"""The largest array, the longest list and the number of objects between a data set and what is saved of it."""
NOW, AT_EPOCH = "data_now", "data_at_epoch"
"""Names in a backup's records."""


class _Unknown(Exception):
    """Raised for a value that is not saved."""


class PyData:
    """Remembers which attributes of the data of one `fit` change.

    Args:
        model: the model in training.
        data: by name; others than a `PyDataset` are left out.
        make_validation: makes Keras's iterator of validation data, which draws two batches from it.
    """

    def __init__(self, model: Any, data: Mapping[str, Any], make_validation: Callable[[], None]) -> None:
        self._model, self._make_validation = model, make_validation
        self._data = {name: each for name, each in data.items() if isinstance(each, keras.utils.PyDataset)}
        self._first = {address: packed for address, _, _, packed in self._attributes()}
        self._changed: set[str] = set()
        self._at_epoch: dict[str, Any] | None = None

    def begin_epoch(self) -> None:
        """Remembers the state at the beginning of an epoch."""
        self._at_epoch = self._state() if self._data else None

    def records(self, *, within: bool) -> dict[str, Any]:
        """Returns JSON for a backup; `within` an epoch with the state at its beginning."""
        return {NOW: self._state(), AT_EPOCH: self._at_epoch if within else None} if self._data else {}

    def restore(self, records: Mapping[str, Any], *, validated: bool = False) -> None:
        """Sets the state of a backup, or of the beginning of its epoch.

        Args:
            records: of the backup.
            validated: True if the training had validated before: then Keras had its iterator of validation data.
        """
        state = records.get(AT_EPOCH) or records.get(NOW)
        if not (state and self._data):
            return
        if validated and "validation" in self._data:
            self._make_validation()
        for address, holder, name, _ in list(self._attributes()):
            if address in state["attributes"]:
                self._changed.add(address)
                _set(holder, name, _unpacked(state["attributes"][address]))
        for address, generator in self._generators().items():
            if address in state["generators"]:
                plain_generators.set_state(generator, state["generators"][address])

    def _state(self) -> dict[str, Any]:
        found = {address: packed for address, _, _, packed in self._attributes()}
        self._changed |= {address for address, packed in found.items() if self._first.get(address) != packed}
        generators = {address: plain_generators.state_of(each) for address, each in self._generators().items()}
        return {
            "attributes": {name: packed for name, packed in found.items() if name in self._changed},
            "generators": generators,
        }

    def _generators(self) -> dict[str, Any]:
        return other_variables.generators(self._model, list(self._data.items()), alone=True) if self._data else {}

    def _attributes(self) -> Iterator[tuple[str, Any, str, Any]]:
        """Yields address, holder, name and value of each attribute that can be saved."""
        seen: set[int] = set()
        for name, each in self._data.items():
            yield from _attributes_of(name, each, seen, 0)


def _attributes_of(address: str, holder: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any, str, Any]]:
    if id(holder) in seen or depth > DEEPEST:
        return
    seen.add(id(holder))
    for name, value in sorted(introspection.attributes_of(holder).items()):
        try:
            yield f"{address}.{name}", holder, name, _packed(value)
        except _Unknown:
            if found_variables.is_the_users(type(value).__module__) and not isinstance(value, (type, keras.Layer)):
                yield from _attributes_of(f"{address}.{name}", value, seen, depth + 1)


def _set(holder: Any, name: str, value: Any) -> None:
    """Sets an attribute; an array and a list in place, because others may hold them, too."""
    now = introspection.attributes_of(holder).get(name)
    if isinstance(now, np.ndarray) and now.flags.writeable and (now.shape, now.dtype) == (value.shape, value.dtype):
        np.copyto(now, value)
    elif type(now) is list and type(value) is list:
        now[:] = value
    else:
        setattr(holder, name, value)


COLLECTIONS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
"""Kinds of collections by name."""


def _packed(value: Any) -> Any:
    """Returns a value as JSON, with its exact type.

    Raises:
        _Unknown: it is of another kind, or large.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is np.ndarray or issubclass(kind, np.generic):
        if value.dtype.kind not in "biufcUSMm" or value.nbytes > MOST_BYTES:
            raise _Unknown
        text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": text, "dtype": value.dtype.str, "shape": list(value.shape) if kind is np.ndarray else None}
    name = next((name for name, each in COLLECTIONS.items() if kind is each), None)
    if (name is None and kind is not dict) or len(value) > MOST_ITEMS:
        raise _Unknown
    if kind is dict:
        return {"dict": [[_packed(key), _packed(item)] for key, item in value.items()]}
    items = sorted(value, key=repr) if name in {"set", "frozenset"} else value
    return {name: [_packed(item) for item in items], "maxlen": value.maxlen if kind is deque else None}


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array = np.frombuffer(base64.b64decode(value["array"]), value["dtype"]).copy()
        return array.reshape(value["shape"]) if value["shape"] is not None else array[0]
    if "dict" in value:
        return {_unpacked(key): _unpacked(item) for key, item in value["dict"]}
    name = next(name for name in COLLECTIONS if name in value)
    items = [_unpacked(item) for item in value[name]]
    return deque(items, value["maxlen"]) if name == "deque" else COLLECTIONS[name](items)
