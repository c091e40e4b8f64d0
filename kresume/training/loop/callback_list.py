"""Finds the list of callbacks of the running `fit`, and changes how it calls them.

callbacks = list_that_calls(callback)       # in set_model
let_all_hear(callbacks)                     # after each batch and epoch, even if one raises
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any


def list_that_calls(callback: Any) -> Any:
    """Returns the `CallbackList` whose `set_model` calls this callback's; None if there is none.

    Keras tells a callback about its model but not about the other callbacks, whose state belongs in a backup. So this
    function, and no other, reads the caller's frame; a test fails if Keras calls in another way.
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


def let_all_hear(
    callbacks: Any,
    first: Callable[[], int] = lambda: 0,
    lent: Callable[[], AbstractContextManager[None]] = nullcontext,
    drawn: Callable[[], None] = lambda: None,
) -> None:
    """Makes a list call all callbacks after each batch and epoch, even if one raises.

    A completed step counts, whatever other callbacks do: the last callback backs it up before the error leaves `fit`.
    Only an `Exception` is delayed like this; KeyboardInterrupt and SystemExit are not.

    Args:
        callbacks: the `CallbackList` of `fit`.
        first: returns how many batches of this epoch another process trained. Keras counts the others from 0, and each
            callback is told the number within the whole epoch.
        lent: makes a context in which the callbacks hear that a batch begins.
        drawn: called before the callbacks hear that a batch ended.
    """
    from keras.src.utils.python_utils import pythonify_logs

    def batch_began(batch: int, logs: Any = None) -> None:
        logs = pythonify_logs(logs)
        with lent():
            for callback in callbacks.callbacks:
                callback.on_train_batch_begin(first() + batch, logs=logs)

    def batch_ended(batch: int, logs: Any = None) -> None:
        logs, batch = pythonify_logs(logs), first() + batch
        drawn()
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
            failed = None  # its traceback references this frame: a cycle would keep `fit` and its iterators alive

    callbacks.on_train_batch_begin, callbacks.on_train_batch_end = batch_began, batch_ended
    callbacks.on_epoch_end = epoch_ended
    # With `fit(callbacks=one)` instead of a list, Keras would call it from another thread during the next step.
    callbacks._async_train = False
