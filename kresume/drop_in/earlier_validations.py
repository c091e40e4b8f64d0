"""Brings the caller's own validation data to where they were after the validations before.

    validations = EarlierValidations(val_x, validates=lambda epoch: True, steps=None, per_call=1)
    validations.pass_by(3)              # in a process that continues at the fourth epoch

A `tf.data.Dataset` that shuffles with a seed gives each of its iterators the next order, and one that training and
validation share counts the iterators of both. So the iterators of earlier validations are made again, and not drawn from. Keras
calls `on_epoch_end` of a `keras.utils.PyDataset` before and after each validation. The data of kresume know their position.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import keras

from kresume.drop_in import caches
from kresume.drop_in.stream import stream_in

_passed: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""Validations of a `fit` that did not end, by the data: given again, they are not at their beginning."""
_kept: weakref.WeakKeyDictionary[Any, dict[tuple[str, int], int]] = weakref.WeakKeyDictionary()
"""The same of a `fit` that ended and kept its backups, by the data, and by folder and first epoch: they may be continued."""


class EarlierValidations:
    """Counts the validations of a `fit`, and repeats what those that a process lacks did to the data.

    Args:
        data: the validation data of `fit`, None without.
        validates: returns True for the index of an epoch that ends with a validation.
        steps: the argument `validation_steps`.
        per_call: steps that Keras runs per call.
        first: the epoch at which the training begins: `fit(initial_epoch=...)`.

    Attributes:
        data: the argument.
        in_part: True if each validation draws some batches of a cache that keeps the order of a `shuffle`. What the cache keeps
            then depends on how far tf.data has read ahead.
    """

    def __init__(
        self, data: Any, validates: Callable[[int], bool], steps: int | None, per_call: int, first: int = 0
    ) -> None:
        self.data, self._validates, self._first = data, validates, first
        self._of_tensorflow = hasattr(data, "element_spec") and hasattr(data, "cardinality")
        self._remembers = self._of_tensorflow or isinstance(data, keras.utils.PyDataset)
        self._iterators = _iterators_of(data, steps, per_call) if self._of_tensorflow else 0
        self._batches = None if steps is None else -(-steps // per_call) * per_call
        self.in_part = steps is not None and self._of_tensorflow and caches.keeps_order(data)
        self._stream = stream_in(data)

    def position(self) -> int | None:
        """Returns the epoch at which data of kresume are, which go on where they ended; None for other data.

        None also for data that are trained on, too: their position is that of the training.
        """
        return None if self._stream is None or self._stream.is_followed else self._stream.epoch

    def seek(self, position: int | None) -> None:
        """Brings data of kresume to a position that `position` returned."""
        if self._stream is not None and position is not None and not self._stream.is_followed:
            self._stream.release(position)

    def first_due(self) -> int:
        """Returns the index of the first epoch that ends with a validation."""
        return next(epoch for epoch in itertools.count(self._first) if self._validates(epoch))

    def pass_by(self, epoch: int, reads: bool = False) -> None:
        """Brings the data to the beginning of an epoch.

        Args:
            epoch: its index.
            reads: True if what a validation draws must be drawn, because iterators alone do not bring the data there.
        """
        if not self._remembers or self._stream is not None:
            return
        due = sum(map(self._validates, range(self._first, epoch)))
        if self._of_tensorflow and _passed.get(self.data, 0) == 0 < due:
            caches.fill(self.data)
        for _ in range(_passed.get(self.data, 0), due):
            if self._of_tensorflow:
                for index in range(self._iterators):
                    batches = iter(self.data)
                    for _ in itertools.islice(batches, self._batches) if reads and index == 0 else ():
                        pass
            else:
                self.data.on_epoch_end()
                self.data.on_epoch_begin()
                self.data.on_epoch_end()
        self.done(epoch)

    def done(self, epoch: int) -> None:
        """Counts the validations of this process, before an epoch."""
        if self._remembers:
            _passed[self.data] = sum(map(self._validates, range(self._first, epoch)))

    def ended(self, kept: str) -> None:
        """Lets a later `fit` count from its own beginning, because this one ended.

        Args:
            kept: the folder in which its backups stay; empty if they are removed.
        """
        done = _passed.pop(self.data, None) if self._remembers else None
        if done is not None and kept:
            _kept.setdefault(self.data, {})[kept, self._first] = done

    def lived_through(self, folder: str) -> None:
        """Counts the validations of a `fit` of this process that kept its backups in a folder."""
        found = _kept.get(self.data, {}).get((folder, self._first)) if self._remembers else None
        if found is not None:
            _passed.setdefault(self.data, found)


def _iterators_of(data: Any, steps: int | None, per_call: int) -> int:
    """Counts the iterators that Keras makes of a dataset in a validation.

    Under TensorFlow it makes a second one, which it does not use, where a validation draws data of known length to the end.
    """
    known = int(data.cardinality())
    if keras.config.backend() != "tensorflow" or known < 0:
        return 1
    drawn = known if steps is None else -(-steps // per_call) * per_call
    return 2 if drawn >= known else 1
