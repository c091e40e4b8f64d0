"""Destroys iterators of tf.data where nothing that they wait for waits in turn for the thread that destroys them.

    guard()                                        # before the first iterator
    with ended_after(data) as lent:
        model.fit(lent, ...)

An iterator that is destroyed waits until its threads have read what they began. While `fit` lasts, Keras's iterator references
itself, and with it that of tf.data: where an epoch is cut or `fit` raises, Python's garbage collector destroys both, at any
later time, in the thread that happens to allocate. That may be a thread that reads for the iterator, which then waits for
itself, or one that holds a lock which such a thread needs. So what the collector finds is destroyed by a thread that does
nothing else.
"""

from __future__ import annotations

import atexit
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import Any

PARTS = ("_iterator_resource", "_components", "_multi_device_iterator_resource", "_device_iterators")
"""Attributes of TensorFlow's iterators, which are destroyed with the last reference to the values."""

_found: SimpleQueue[list[Any] | None] = SimpleQueue()
"""Parts of iterators that the collector found; None ends the thread. No other queue may be used by a collection."""
_collects: int | None = None
"""The thread that collects garbage now; there is never more than one."""
_destroyer: threading.Thread | None = None
_starting = threading.Lock()


def guard() -> None:
    """Keeps the garbage collector from destroying any iterator of this process itself.

    Iterators whose last reference goes away otherwise are destroyed at once, as before.
    """
    global _destroyer
    _guard_classes()
    with _starting:
        if _destroyer is None or not _destroyer.is_alive():  # it is not in a process that was forked
            _destroyer = threading.Thread(target=_destroy, name="kresume-iterators", daemon=True)
            _destroyer.start()


def _classes() -> tuple[type, ...]:
    from tensorflow.python.data.ops.iterator_ops import OwnedIterator
    from tensorflow.python.data.ops.multi_device_iterator_ops import OwnedMultiDeviceIterator

    return OwnedIterator, OwnedMultiDeviceIterator


@cache
def _guard_classes() -> None:
    for each in _classes():
        setattr(each, "__del__", _let_go)  # noqa: B010  # mypy: assigns a method
    gc.callbacks.append(_note_collection)
    atexit.register(_at_exit)


def _note_collection(phase: str, info: Any) -> None:
    global _collects
    _collects = threading.get_ident() if phase == "start" else None


def _take(iterator: Any) -> list[Any]:
    """Takes the parts out of an iterator; it is destroyed with the list."""
    attributes = vars(iterator)
    names = [name for name in PARTS if name in attributes]
    return [attributes.pop(name) for name in names]


def _let_go(iterator: Any) -> None:
    """Runs as `__del__` of an iterator. No local name but `parts` may hold a part: this thread would destroy it."""
    parts = _take(iterator)
    if _collects == threading.get_ident():
        _found.put(parts)


def _destroy() -> None:
    while (parts := _found.get()) is not None:
        parts.clear()


def settle() -> None:
    """Waits until the iterators that the collector has found so far are destroyed."""
    done = threading.Event()
    if _destroyer is not None and _destroyer.is_alive():
        _found.put([_Last(done)])
        done.wait()


class _Last:
    def __init__(self, done: threading.Event) -> None:
        self._done = done

    def __del__(self) -> None:
        self._done.set()


@contextmanager
def ended_after(data: Any) -> Iterator[Any]:
    """Lends a dataset for a block, and destroys the iterators that were made of it, however the block ends.

    A traceback may hold them, and garbage: none is of use any more. This thread waits for what they are reading.

    Args:
        data: a `tf.data.Dataset`.

    Yields:
        A dataset of the same elements.
    """
    made: list[weakref.ref[Any]] = []
    try:
        yield _noting()(data, made)
    finally:
        for iterator in [found for each in made if (found := each()) is not None]:
            _take(iterator)


@cache
def _noting() -> Any:
    """Returns the class of a dataset that notes each iterator; `tf.data` gives no other place to do so."""
    import tensorflow as tf

    class Noting(tf.data.Dataset):  # type: ignore[misc]  # TensorFlow is untyped
        def __init__(self, data: Any, made: list[weakref.ref[Any]]) -> None:
            self._data, self._made = data, made
            super().__init__(data._variant_tensor)

        def _inputs(self) -> list[Any]:
            return [self._data]

        @property
        def element_spec(self) -> Any:
            return self._data.element_spec

        def __iter__(self) -> Any:
            iterator = super().__iter__()
            self._made.append(weakref.ref(iterator))
            return iterator

    return Noting


def _at_exit() -> None:
    """Lets a process end in which an iterator is still referenced.

    TensorFlow waits for the iterator's threads when Python destroys it at its end. By then these threads can no longer run the
    Python function that reads a batch, so both would wait forever. Before that they can.
    """
    classes = _classes()
    gc.unfreeze()  # frozen objects are not listed
    for found in [each for each in gc.get_objects() if type(each) in classes]:
        _take(found)
    for each in classes:
        delattr(each, "__del__")  # the names that it uses are gone when Python ends
    gc.callbacks.remove(_note_collection)
    _found.put(None)
    if _destroyer is not None:
        _destroyer.join()
