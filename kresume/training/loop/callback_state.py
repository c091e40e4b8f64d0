"""Captures the state of callbacks as JSON and arrays, so that it survives a kill.

A callback takes part in exact continuation if it has `get_state() -> dict` and `set_state(dict)`. Keras's own callbacks
have neither and keep their state in attributes, which are listed here by class. Values may be numbers, strings, None,
lists and dictionaries of these, and numpy arrays.
"""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kresume.errors import UsageError
from kresume.models import found_variables
from kresume.training.loop.changes_by_callbacks import changed_by

# `monitor_op` is not listed: Keras sets it in its first on_epoch_end and flips the sign of `min_delta` there, which
# must happen exactly once in each process.
KERAS_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "EarlyStopping": ("best", "wait", "stopped_epoch", "best_epoch", "best_weights"),
    "ReduceLROnPlateau": ("best", "wait", "cooldown_counter"),
    "ModelCheckpoint": ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    "History": ("epoch", "history"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "TensorBoard": ("_global_train_batch", "_global_test_batch"),  # for its files see callback_logs
    "OrbaxCheckpoint": ("best", "_batches_seen_since_last_saving", "_last_batch_seen", "_total_batches_seen"),
    "BackupAndRestore": ("_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch"),
    "CSVLogger": (),  # for its file see callback_logs
    "LearningRateScheduler": (),
    "ProgbarLogger": (),
    "RemoteMonitor": (),
    "TerminateOnNaN": (),
}
"""State attributes of every Keras callback class. LambdaCallback is missing: the state of its functions is unknown."""

JUDGED, WRITTEN = ("monitor", "mode"), ("filepath", "filename")
"""Attributes that say what a callback judges by, and what it writes."""


@runtime_checkable
class Stateful(Protocol):
    """A callback whose state is part of a snapshot."""

    def get_state(self) -> Mapping[str, Any]:
        """Returns everything that the callback needs to continue as if nothing had happened."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `get_state` returned; called after `on_train_begin`."""


def keras_attributes(callback: Any) -> tuple[str, ...]:
    """Returns a Keras callback's state attributes; empty if it has none or is unknown."""
    for base in type(callback).__mro__:
        if _is_kerass(base) and base.__name__ in KERAS_ATTRIBUTES:
            return KERAS_ATTRIBUTES[base.__name__]
    return ()


def forgetful(callbacks: Sequence[Any]) -> list[str]:
    """Names the callbacks that may have state which no backup can hold.

    Each is named with attributes of its own, and with what its code changes beside it.
    """
    told = []
    for callback in callbacks:
        kind = type(callback)
        known = any(base.__name__ in KERAS_ATTRIBUTES for base in kind.__mro__ if _is_kerass(base))
        of_keras = _is_kerass(kind) and (known or kind.__name__ in {"Callback", "LambdaCallback"})
        names = [] if of_keras and (known or kind.__name__ == "LambdaCallback") else _own_attributes(callback)
        unknown = _is_kerass(kind) and not of_keras
        if isinstance(callback, Stateful):
            continue
        names += [name for name in changed_by(callback) if name not in names]
        if names or unknown:
            told.append(f"{kind.__name__} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})")
    return told


def how_to_remember(names: Sequence[str]) -> str:
    """Returns a message for the user about the callbacks that `forgetful` named."""
    return (
        f"{'; '.join(names)}: no get_state and set_state, so what it remembers begins anew when training is "
        "continued. If that matters, add the methods get_state(self), which returns a dictionary of numbers, strings, "
        "lists and numpy arrays, and set_state(self, state); a LambdaCallback takes both as arguments"
    )


def _is_kerass(kind: type) -> bool:
    return kind.__module__.startswith("keras.")


def _own_attributes(callback: Any) -> list[str]:
    """Returns the attributes of a callback that the code of its Keras classes does not use."""
    theirs: set[str] = set()
    for base in filter(_is_kerass, type(callback).__mro__):
        for member in vars(base).values():
            function = member.fget if isinstance(member, property) else member
            theirs.update(getattr(getattr(function, "__code__", None), "co_names", ()))
    return [
        name for name, value in vars(callback).items() if name not in theirs and not found_variables.is_restored(value)
    ]


def stopped_by_patience(facts: Mapping[str, Any]) -> bool:
    """Returns True if an EarlyStopping had ended the training, by its saved callback state."""
    return any(packed.get("map", {}).get("stopped_epoch") for packed in facts.values())


def out_of_patience(callbacks: Sequence[Any]) -> bool:
    """Returns True if an EarlyStopping would still end training."""
    return any(callback.wait >= callback.patience for callback in _stopped(callbacks))


def take_back_stop(callbacks: Sequence[Any], *, renew: bool) -> None:
    """Makes each EarlyStopping continue as if it had not ended training; keeps its best value.

    Args:
        callbacks: all callbacks of `fit`.
        renew: True restarts its patience.
    """
    for callback in _stopped(callbacks):
        callback.stopped_epoch = 0
        if renew:
            callback.wait = 0


def _stopped(callbacks: Sequence[Any]) -> list[Any]:
    return [
        callback
        for callback in callbacks
        if "best_epoch" in keras_attributes(callback) and getattr(callback, "stopped_epoch", False)
    ]


def capture(callbacks: Sequence[Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Reads the state of every callback that has one.

    Returns:
        `(facts, arrays)`: facts maps `"<class>.<index within that class>"` to a JSON value, in which
        `{"array": index into arrays}` represents an array, and `about` says what the callback is about.
    """
    facts: dict[str, Any] = {}
    arrays: list[np.ndarray] = []
    for name, callback in named(callbacks):
        if isinstance(callback, Stateful):
            state: Mapping[str, Any] = callback.get_state()
        elif names := keras_attributes(callback):
            state = {attribute: getattr(callback, attribute) for attribute in names if hasattr(callback, attribute)}
        else:
            continue
        packed = _pack(state, arrays, name)
        facts[name] = {**packed, "about": about(callback)} if isinstance(packed, dict) else packed
    return facts, arrays


def about(callback: Any) -> dict[str, str]:
    """Returns what a callback of Keras judges and writes: by this one is told from another of its class."""
    if isinstance(callback, Stateful) or not keras_attributes(callback):
        return {}  # what the attributes of the user's own class mean is unknown
    found = {name: getattr(callback, name, None) for name in (*JUDGED, *WRITTEN)}
    return {name: os.fspath(value) for name, value in found.items() if isinstance(value, (str, os.PathLike))}


def named(callbacks: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yields each callback with a name: its class and its index among that class.

    Callbacks of other classes may come and go between two processes.
    """
    counts: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        yield f"{name}.{counts[name]}", callback
        counts[name] += 1


def apply(callbacks: Sequence[Any], facts: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> list[str]:
    """Restores the state of each callback; callbacks that the snapshot does not know start fresh.

    Of several callbacks of one class each gets the state of the one that judged and wrote the same, else of one that judged
    the same. A best value of another metric means nothing to a callback.

    Returns:
        Notes for the user: callbacks that judge something else now, and start fresh.
    """
    pairs, notes = _paired(callbacks, facts)
    for callback, packed in pairs:
        state = _unpack(packed, arrays)
        if isinstance(callback, Stateful):
            callback.set_state(state)
        else:
            for name, value in state.items():
                setattr(callback, name, value)
    return notes


def _paired(callbacks: Sequence[Any], facts: Mapping[str, Any]) -> tuple[list[tuple[Any, Any]], list[str]]:
    """Pairs callbacks with saved states; returns the pairs, and notes on those that judge something else."""
    live = dict(named(callbacks))
    abouts = {name: about(callback) for name, callback in live.items()}
    before = {name: _about(packed) for name, packed in facts.items() if packed is not None}
    found = paired_names(
        abouts,
        before,
        lambda name, key: name == key and abouts[name] == before[key],
        lambda name, key: abouts[name] == before[key],
        lambda name, key: name == key and _judges_alike(abouts[name], before[key]),
        lambda name, key: _judges_alike(abouts[name], before[key]),
    )
    notes = []
    for name in (name for name in live if name not in found):
        kind, now = class_of(name), abouts[name]
        others = [
            (before[key] or {}).get("monitor") for key in before.keys() - set(found.values()) if class_of(key) == kind
        ]
        if others and "monitor" in now:
            judged = " and ".join(sorted(set(map(str, others))))
            notes.append(
                f"{kind} judges {now['monitor']} ({now.get('mode')}) now, and the one before {judged}: it begins anew"
            )
    return [(live[name], facts[key]) for name, key in found.items()], notes


def class_of(name: str) -> str:
    """Returns the class in a name of `named`."""
    return name.rpartition(".")[0]


def paired_names(now: Iterable[str], before: Iterable[str], *tests: Callable[[str, str], bool]) -> dict[str, str]:
    """Pairs names of `named` with those of another process, each with one of its class.

    Args:
        now: the names in this process.
        before: the names in the other one.
        tests: called with a name and a name from before. Those that meet an earlier test are paired first.
    """
    left, found = list(before), dict[str, str]()
    for holds in tests:
        for name in now:
            alike = (key for key in left if class_of(key) == class_of(name) and holds(name, key))
            if name not in found and (key := next(alike, None)) is not None:
                found[name] = key
                left.remove(key)
    return found


def _about(packed: Any) -> Mapping[str, str] | None:
    """Returns what a saved callback was about; None in backups of earlier versions."""
    found: Mapping[str, str] | None = packed.get("about") if isinstance(packed, Mapping) else None
    return found


def _judges_alike(now: Mapping[str, str], before: Mapping[str, str] | None) -> bool:
    """Returns True if values that one callback has kept mean the same to the other.

    Args:
        now: of the callback.
        before: of the saved one; None in backups of earlier versions.
    """
    if before is None:
        return True
    modes = {now.get("mode"), before.get("mode")}
    return now.get("monitor") == before.get("monitor") and (len(modes) == 1 or "auto" in modes)


def _pack(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    """Returns a value as JSON; appends its arrays.

    Args:
        value: the value.
        arrays: extended by the arrays in it.
        where: the callback and the keys that lead to it, for messages.

    Raises:
        UsageError: it is of a kind that no backup can hold.
    """
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"map": {key: _pack(item, arrays, f"{where}[{key!r}]") for key, item in value.items()}}
        keys = [_pack(key, arrays, f"{where}: the key {key!r}") for key in value]
        items = [_pack(item, arrays, f"{where}[{key!r}]") for key, item in value.items()]
        return {"pairs": [list(pair) for pair in zip(keys, items, strict=True)]}
    if isinstance(value, (list, tuple)):
        return [_pack(item, arrays, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset, deque)):
        items = [_pack(item, arrays, where) for item in value]
        return {type(value).__name__: items, "maxlen": value.maxlen if isinstance(value, deque) else None}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # JSON has no infinities, and EarlyStopping's first best may be one; repr of a float is exact.
        return value if math.isfinite(value) else {"number": repr(float(value))}
    array = np.array(value, copy=True)
    if array.dtype.kind == "U":
        return {"text": array.tolist(), "dtype": str(array.dtype)}
    if array.dtype.kind in "OSMm":
        raise UsageError(
            f"{where} is {type(value).__name__} of {array.dtype}, which no backup can hold: let get_state return numbers, "
            "strings, lists, sets, dictionaries and numpy arrays of numbers or strings"
        )
    arrays.append(array)
    # A scalar of numpy or of a backend is restored as a numpy scalar: same type, and with a shape, which weights need.
    return {"array" if isinstance(value, np.ndarray) or array.shape else "scalar": len(arrays) - 1}


COLLECTIONS: Mapping[str, Callable[[list[Any], Any], Any]] = {
    "set": lambda items, _: {_hashable(item) for item in items},
    "frozenset": lambda items, _: frozenset(_hashable(item) for item in items),
    "deque": deque,
}
"""How each kind of collection is made of its items and its longest length."""


def _hashable(item: Any) -> Any:
    """Returns a tuple for a list: JSON knows no tuples, and what was in a set or a key was one."""
    return tuple(map(_hashable, item)) if isinstance(item, list) else item


def _unpack(value: Any, arrays: Sequence[np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if isinstance(value, Mapping):
        if "map" in value:
            return {key: _unpack(item, arrays) for key, item in value["map"].items()}
        if "pairs" in value:
            pairs = ((_unpack(key, arrays), _unpack(item, arrays)) for key, item in value["pairs"])
            return {_hashable(key): item for key, item in pairs}
        for name, make in COLLECTIONS.items():
            if name in value:
                return make([_unpack(item, arrays) for item in value[name]], value["maxlen"])
        if "text" in value:
            return np.array(value["text"], value["dtype"])
        if "number" in value:
            return float(value["number"])
        if "scalar" in value:
            return np.asarray(arrays[value["scalar"]])[()]
        return np.array(arrays[value["array"]], copy=True)
    return value
