"""What callbacks remember, as JSON and arrays, so that it survives a kill.

A callback takes part in exact continuation if it has `get_state() -> dict` and `set_state(dict)`. Keras's own callbacks have
neither and keep their memory in attributes, which are listed here, class by class. Values may be numbers, strings, None,
lists and dictionaries of those, and lists of numpy arrays.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

# `monitor_op` is not among them: Keras sets it in its first on_epoch_end and flips the sign of `min_delta` in doing so,
# which must happen exactly once in each process.
KERAS_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "EarlyStopping": ("best", "wait", "stopped_epoch", "best_epoch", "best_weights"),
    "ReduceLROnPlateau": ("best", "wait", "cooldown_counter"),
    "ModelCheckpoint": ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    "History": ("epoch", "history"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "TensorBoard": ("_global_train_batch", "_global_test_batch"),  # its files: callback_logs
    "OrbaxCheckpoint": ("best", "_batches_seen_since_last_saving", "_last_batch_seen", "_total_batches_seen"),
    "BackupAndRestore": ("_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch"),
    "CSVLogger": (),  # its file: callback_logs
    "LearningRateScheduler": (),
    "ProgbarLogger": (),
    "RemoteMonitor": (),
    "TerminateOnNaN": (),
}
"""The memory of every callback class of Keras. A LambdaCallback is missing: nobody knows what its functions remember."""


@runtime_checkable
class Stateful(Protocol):
    """A callback whose memory is part of a snapshot."""

    def get_state(self) -> Mapping[str, Any]:
        """Everything it will need to go on as if nothing had happened."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes up the memory that `get_state` gave; called after `on_train_begin`."""


def keras_attributes(callback: Any) -> tuple[str, ...]:
    """The attributes that are a Keras callback's memory; empty for a callback that has none or is unknown."""
    for base in type(callback).__mro__:
        if _is_kerass(base) and base.__name__ in KERAS_ATTRIBUTES:
            return KERAS_ATTRIBUTES[base.__name__]
    return ()


def forgetful(callbacks: Sequence[Any]) -> list[str]:
    """Names the callbacks that may remember something which no backup can hold, with their own attributes."""
    told = []
    for callback in callbacks:
        kind, names = type(callback), _own_attributes(callback)
        known = any(base.__name__ in KERAS_ATTRIBUTES for base in kind.__mro__ if _is_kerass(base))
        if (
            isinstance(callback, Stateful)
            or (known and (_is_kerass(kind) or not names))
            or not (names or _is_kerass(kind))
        ):
            continue
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
    """The attributes that a callback has beside those that the code of its Keras classes speaks of."""
    theirs: set[str] = set()
    for base in filter(_is_kerass, type(callback).__mro__):
        for member in vars(base).values():
            function = member.fget if isinstance(member, property) else member
            theirs.update(getattr(getattr(function, "__code__", None), "co_names", ()))
    if type(callback).__name__ == "LambdaCallback":
        theirs = {"params", "_model"}  # its attributes are the user's functions
    return [name for name in vars(callback) if name not in theirs]


def stopped_by_patience(facts: Mapping[str, Any]) -> bool:
    """Tells whether an EarlyStopping had ended the training whose callbacks' memory this is."""
    return any(packed.get("map", {}).get("stopped_epoch") for packed in facts.values())


def out_of_patience(callbacks: Sequence[Any]) -> bool:
    """Tells whether an EarlyStopping would still end training."""
    return any(callback.wait >= callback.patience for callback in _stopped(callbacks))


def take_back_stop(callbacks: Sequence[Any], *, renew: bool) -> None:
    """Makes each EarlyStopping go on as if it had not ended training; its best value stays.

    Args:
        callbacks: all of them.
        renew: its patience begins anew.
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


def list_that_calls(callback: Any) -> Any:
    """The `CallbackList` whose `set_model` is calling this callback's; None where somebody else calls it.

    A callback is told of its model and not of its neighbours, whose memory belongs into a backup: so the caller's frame is
    looked at, here alone, and a test fails when Keras calls in another way.
    """
    frame = sys._getframe(1)
    for _ in range(4):
        caller = frame.f_back
        if caller is None:
            return None
        owner = caller.f_locals.get("self")
        if owner is not None and type(owner).__name__ == "CallbackList" and callback in owner.callbacks:
            return owner
        frame = caller
    return None


def let_all_hear(callbacks: Any) -> None:
    """Lets every callback of a list hear that a batch or an epoch ended, also where one of them raises.

    A step that was made counts, whatever another callback makes of it: the last in the list backs it up before the error
    leaves `fit`. Only an `Exception` waits for that; what stops the process (KeyboardInterrupt, SystemExit) does not.
    """
    from keras.src.utils.python_utils import pythonify_logs

    def batch_ended(batch: int, logs: Any = None) -> None:
        logs = pythonify_logs(logs)
        _each(lambda callback: callback.on_train_batch_end(batch, logs=logs))

    def epoch_ended(epoch: int, logs: Any = None) -> None:
        logs = pythonify_logs(logs)
        _each(lambda callback: callback.on_epoch_end(epoch, logs))

    def _each(tell: Callable[[Any], None]) -> None:
        failed: Exception | None = None
        for callback in callbacks.callbacks:
            try:
                tell(callback)
            except Exception as error:
                failed = failed or error
        try:
            if failed is not None:
                raise failed
        finally:
            failed = None  # its traceback holds this frame: no circle, which would keep `fit` and its iterators alive

    callbacks.on_train_batch_end, callbacks.on_epoch_end = batch_ended, epoch_ended
    # `fit(callbacks=one)` instead of a list: Keras would call it from another thread while the next step runs.
    callbacks._async_train = False


def capture(callbacks: Sequence[Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Reads the memory of every callback that has one.

    Returns:
        `(facts, arrays)`: a JSON value by `"<class>.<which of that class>"`, in which an
        array is `{"array": index into arrays}`.
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
        facts[name] = _pack(state, arrays)
    return facts, arrays


def named(callbacks: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each callback by its class and how many of that class came before: others may come and go between two processes."""
    counts: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        yield f"{name}.{counts[name]}", callback
        counts[name] += 1


def apply(callbacks: Sequence[Any], facts: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> None:
    """Gives each callback its memory back. Callbacks that the snapshot does not know start fresh."""
    for key, callback in named(callbacks):
        packed = facts.get(key)
        if packed is None:
            continue
        state = _unpack(packed, arrays)
        if isinstance(callback, Stateful):
            callback.set_state(state)
        else:
            for name, value in state.items():
                setattr(callback, name, value)


def _pack(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, Mapping):
        return {"map": {str(key): _pack(item, arrays) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_pack(item, arrays) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # JSON has no infinities, and EarlyStopping's first best may be one; repr of a float is exact.
        return value if math.isfinite(value) else {"number": repr(float(value))}
    arrays.append(np.array(value, copy=True))
    # A number of numpy's or of a backend's comes back as numpy's: of its type, and with a shape, as weights need it.
    return {"array" if isinstance(value, np.ndarray) or arrays[-1].shape else "scalar": len(arrays) - 1}


def _unpack(value: Any, arrays: Sequence[np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if isinstance(value, Mapping):
        if "map" in value:
            return {key: _unpack(item, arrays) for key, item in value["map"].items()}
        if "number" in value:
            return float(value["number"])
        if "scalar" in value:
            return np.asarray(arrays[value["scalar"]])[()]
        return np.array(arrays[value["array"]], copy=True)
    return value
