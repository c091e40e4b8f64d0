"""Destroys iterators of tf.data in threads for which nothing that they wait for waits.

    guard()                                        # before the first iterator
    with ended_after(data) as lent:
        model.fit(lent, ...)

An iterator that is destroyed waits until its threads have read what they began. Keras's iterator references itself, and with
it that of tf.data, from where an epoch is cut or `fit` raises: Python's garbage collector finds both, at any later time, in the
thread that happens to allocate. That may be a thread that reads for the iterator, which would wait for itself, or one that
holds a lock which such a thread needs. So a thread that does nothing else destroys what the collector finds.
"""

from __future__ import annotations

import atexit
import functools
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

RESOURCES = ("_iterator_resource", "_multi_device_iterator_resource")
"""Attributes of TensorFlow's iterators that hold the resource, which is destroyed with its last reference."""
PARTS = (*RESOURCES, "_components", "_device_iterators")
"""Attributes that hold it, or what was made of it."""


class _Guard:
    """Holds what is destroyed with its last reference: the tensors that stand for tf.data's iterators.

    Attributes:
        alive: references to them that do not count, by `id`.
    """

    def __init__(self) -> None:
        self.alive: dict[int, weakref.ref[Any]] = {}
        self._held: list[Any] | None = None  # never two collections at once
        self._lent: SimpleQueue[list[Any] | None] = SimpleQueue()  # a collection may use no other kind of queue
        self._destroyer: threading.Thread | None = None
        self._starting = threading.Lock()

    @functools.cached_property
    def classes(self) -> tuple[Any, Any]:
        """Returns TensorFlow's classes of iterators."""
        from tensorflow.python.data.ops.iterator_ops import OwnedIterator
        from tensorflow.python.data.ops.multi_device_iterator_ops import OwnedMultiDeviceIterator

        return OwnedIterator, OwnedMultiDeviceIterator

    def start(self) -> None:
        """Starts to watch what is made, and the thread that destroys it."""
        with self._starting:
            if self._destroyer is None:
                for each in self.classes:
                    each.__init__ = self._noted(each.__init__)
                gc.callbacks.append(self._hold)
                atexit.register(self._at_exit)
            # A process that was forked has no such thread.
            if self._destroyer is None or not self._destroyer.is_alive():
                self._destroyer = threading.Thread(target=self._destroy, name="kresume-iterators", daemon=True)
                self._destroyer.start()

    def _noted(self, make: Any) -> Any:
        from tensorflow.python.framework.ops import EagerTensor

        @functools.wraps(make)
        def noted(iterator: Any, *arguments: Any, **options: Any) -> None:
            make(iterator, *arguments, **options)
            for resource in map(vars(iterator).get, RESOURCES):
                if isinstance(resource, EagerTensor):  # otherwise a function is traced
                    gone = functools.partial(self._gone, id(resource))
                    self.alive[id(resource)] = weakref.ref(resource, gone)

        return noted

    def _gone(self, key: int, _: Any) -> None:
        self.alive.pop(key, None)

    def _hold(self, phase: str, info: Any) -> None:
        """Holds all while garbage is collected, and leaves the last reference to the thread that destroys.

        No local name refers to one, because a reference of this thread could be the last.
        """
        if phase == "start":
            self._held = [found() for found in list(self.alive.values())]
        elif self._held:
            self._lent.put(self._held)
            self._held = None

    def _destroy(self) -> None:
        while (held := self._lent.get()) is not None:
            held.clear()

    def _at_exit(self) -> None:
        """Lets a process end in which an iterator is still referenced.

        TensorFlow waits for the iterator's threads when Python destroys it at its end. By then these threads can no longer run
        the Python function that reads a batch, so both would wait forever. Before that they can.
        """
        gc.unfreeze()  # frozen objects are not listed
        for found in [each for each in gc.get_objects() if type(each) in self.classes]:
            _end(found)
        with suppress(ValueError):  # the user may have removed it
            gc.callbacks.remove(self._hold)
        self._lent.put(None)
        if self._destroyer is not None:
            self._destroyer.join()


_guard = _Guard()


def guard() -> None:
    """Keeps the garbage collector from destroying iterators that this process makes from now on.

    Those whose last reference goes away otherwise are destroyed at once, as without this.
    """
    _guard.start()


def alive() -> set[int]:
    """Returns the `id` of the resource of each iterator that is not destroyed yet."""
    return set(_guard.alive)


@contextmanager
def ended_after(data: Any) -> Iterator[Any]:
    """Lends a dataset, and destroys the iterators that were made of it, however the block ends.

    Garbage and tracebacks may refer to them, and would let them read ahead. This thread waits for what they are reading.

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
            _end(iterator)


def _end(iterator: Any) -> None:
    """Ends an iterator's reading: destroys what it holds, or empties it where a traceback holds it, too."""
    import tensorflow as tf

    attributes = vars(iterator)
    held = _guard.alive.get(id(attributes.get("_iterator_resource")), lambda: None)
    for name in PARTS:
        attributes.pop(name, None)
    resource, data = held(), attributes.get("_dataset")
    if resource is not None and data is not None:
        with suppress(tf.errors.OpError):  # hides no error of `fit`
            tf.raw_ops.MakeIterator(dataset=data.take(0)._variant_tensor, iterator=resource)


@functools.cache
def _noting() -> Any:
    """Returns a class of datasets that note their iterators; tf.data gives no other place to do so."""
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
