"""Brings the caller's own data to the epoch of a backup, as if the epochs before had been drawn.

    earlier = EarlierEpochs(x, keras_iterator, known=True)
    earlier.pass_by(3)                  # in a process that continues at the fourth epoch, and at each epoch after it

A `tf.data.Dataset` that shuffles with a seed gives each of its iterators the next order. So iterators are made, not drawn
from, for the epochs before. How many Keras makes depends on the backend: under TensorFlow a second one at the end of each
epoch of known length, which it does not use; under JAX one, when the epoch's first batch is drawn. A
`keras.utils.PyDataset` may shuffle in `on_epoch_end`, which is called once for each epoch before.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras

from kresume.drop_in import caches

_drawn: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()
"""Epochs begun and iterators made by a `fit` that raised, by the data: given again, they are not at their beginning."""
_kept: weakref.WeakKeyDictionary[Any, dict[tuple[str, int], tuple[int, int]]] = weakref.WeakKeyDictionary()
"""The same of a `fit` that ended and kept its backups, by the data, and by folder and first epoch: they may be continued."""


class EarlierEpochs:
    """Counts the iterators of a `fit`, and makes those that a process lacks that continues it.

    Args:
        x: the data argument of `fit`.
        iterator: Keras's `EpochIterator`.
        known: True if Keras knows the length of an epoch when `fit` begins.
        first: the epoch at which the training begins: `fit(initial_epoch=...)`.

    Attributes:
        drawn_before: True if a `fit` of this process drew from the data and raised.
        lived: True if a `fit` of this process drew from them, and its backups are continued.
        before_pass: called before each iterator that Keras draws several epochs from.
    """

    before_pass: Callable[[], None] | None = None

    def __init__(self, x: Any, iterator: Any, *, known: bool, first: int = 0) -> None:
        self._x, self._known, self._first, self._ended = x, known, first, 0
        is_dataset = hasattr(x, "element_spec")
        self._one_pass = is_dataset and iterator.steps_per_epoch is not None
        self._of_tensorflow = is_dataset and not self._one_pass
        self._counts_calls = self._one_pass or (self._of_tensorflow and keras.config.backend() == "tensorflow")
        self._made = 0
        self._iterator = weakref.ref(iterator)  # a cycle would keep tf.data's iterator alive, see `FitCall`
        if self._counts_calls:
            iterator._get_iterator = self._counted
        self._remembers = is_dataset or isinstance(x, keras.utils.PyDataset)
        self.drawn_before, self.lived = self._remembers and x in _drawn, False
        if self._remembers:
            self._ended, self._made = _drawn.get(x, (0, 0))

    @property
    def drawn_here(self) -> bool:
        """Returns whether a `fit` of this process drew from the data, which have what it left in them."""
        return self.drawn_before or self.lived

    def _counted(self) -> Any:
        iterator: Any = self._iterator()
        if self._one_pass and self.before_pass is not None:
            self.before_pass()
        self._made += 1
        self._remember()
        return type(iterator)._get_iterator(iterator)

    def begin(self, epoch: int, *, continues: bool) -> None:
        """Brings the data to an epoch that begins, in a process that continues a training, and counts it."""
        if continues:
            self.pass_by(epoch)
        self.begun()

    def cut_short(self, epoch: int) -> None:
        """Makes the iterator that Keras makes at the end of an epoch, which is missing where that ends early.

        Args:
            epoch: its index.
        """
        if self._of_tensorflow and self._counts_calls and self._known:
            self.pass_by(epoch + 1)

    def begun(self) -> None:
        """Counts the epoch that begins."""
        self._ended += 1
        if not self._counts_calls:
            self._made += 1
        self._remember()

    def ended(self, kept: str) -> None:
        """Lets a later `fit` count from its own beginning, because this one ended.

        Args:
            kept: the folder in which its backups stay; empty if they are removed.
        """
        if self._remembers:
            _drawn.pop(self._x, None)
            if kept:
                _kept.setdefault(self._x, {})[kept, self._first] = (self._ended, self._made)

    def lived_through(self, folder: str) -> None:
        """Counts what a `fit` of this process that kept its backups in a folder drew from the same data."""
        found = _kept.get(self._x, {}).get((folder, self._first)) if self._remembers else None
        if found is not None and not self.drawn_before:
            (self._ended, self._made), self.lived = found, True

    def _remember(self) -> None:
        if self._remembers:
            _drawn[self._x] = (self._ended, self._made)

    def passes(self) -> int | None:
        """Counts the iterators that `steps_per_epoch` drew to their end, and the current one; else None."""
        return self._made if self._one_pass else None

    def pass_by_passes(self, count: int) -> None:
        """Makes iterators, as `passes` counts them, until there are so many."""
        if self._one_pass and self._made == 0 < count:
            caches.fill(self._x)
        while self._one_pass and self._made < count:
            counted = self._counted()
            iter(counted if keras.config.backend() == "tensorflow" else self._x)  # JAX's begins when it is drawn from

    def pass_by(self, epoch: int) -> None:
        """Brings the data to the beginning of an epoch.

        Args:
            epoch: its index.
        """
        epoch -= self._first
        if isinstance(self._x, keras.utils.PyDataset):
            for _ in range(self._ended, epoch):
                self._x.on_epoch_begin()
                self._x.on_epoch_end()
            self._ended = max(self._ended, epoch)
        if self._of_tensorflow and self._made == 0 < epoch:
            caches.fill(self._x)
        if self._of_tensorflow and self._counts_calls:
            while self._made < (2 * epoch if self._known else epoch):
                iter(self._counted())
        elif self._of_tensorflow:
            for _ in range(self._made, epoch):
                iter(self._x)
            self._made = max(self._made, epoch)
