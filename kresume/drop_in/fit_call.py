"""Finds the user's running call of `fit`, and controls the Keras iterator that feeds it.

    call = find()                       # from a callback, inside fit
    check_followed(call, stream)        # fit must draw from the data of the backup
    call.begin_behind(7)                # the next epoch starts after its first 7 batches
    call.end_cut_epoch()                # the cleanup that Keras omits if an epoch is cut short

Keras tells a callback nothing about the data. So this module, and no other, reads the frame of the running `fit`; tests
fail if Keras renames what it uses.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import GeneratorType
from typing import Any

import keras
import numpy as np

from kresume.drop_in import caches
from kresume.drop_in.draws import Draws
from kresume.drop_in.earlier_epochs import EarlierEpochs
from kresume.drop_in.earlier_validations import EarlierValidations
from kresume.drop_in.py_data import PyData
from kresume.drop_in.stream import Stream, reason_not_followed
from kresume.errors import UsageError
from kresume.images.iterators import guard

FRAMES = 12
ARGUMENTS = ("class_weight", "sample_weight", "shuffle", "steps_per_epoch", "validation_freq", "validation_split")
"""Arguments of `fit` that `FitCall.given` holds."""


@dataclass(frozen=True)
class FitCall:
    """A running call of `fit`.

    Attributes:
        x: the data argument of `fit`.
        class_weight: the `class_weight` argument of `fit`, or None.
        keras_iterator: returns Keras's `EpochIterator`. A weak reference: if an iterator of tf.data outlives its `fit`
            and the garbage collector removes it later, the process can hang.
        steps: batches per epoch, None if unknown.
        earlier: brings the data to the epoch of a backup.
        validations: brings the validation data there.
        first: the epoch at which the training begins: `fit(initial_epoch=...)`.
        draws: counts the iterators that others make of the data.
        given: the arguments of `fit` in `ARGUMENTS`, by name.
        held: what a `PyDataset` remembers.
    """

    x: Any
    class_weight: Any
    keras_iterator: Callable[[], Any]
    steps: int | None
    earlier: EarlierEpochs
    validations: EarlierValidations
    first: int
    draws: Draws
    given: Mapping[str, Any]
    held: PyData

    @property
    def iterator(self) -> Any:
        """Returns Keras's iterator; None after `fit` has returned."""
        return self.keras_iterator()

    @property
    def one_pass(self) -> bool:
        """Returns True if Keras keeps one iterator over all epochs, because `steps_per_epoch` was given."""
        return self.iterator.steps_per_epoch is not None

    @property
    def shuffles(self) -> bool:
        """Returns True if the argument `shuffle` of `fit` has an effect on these data."""
        return type(self.iterator.data_adapter).__name__ in {"ArrayDataAdapter", "PyDatasetAdapter"}

    def begin_epoch(self, epoch: int, *, continues: bool) -> None:
        """Brings the data to an epoch that begins, in a process that continues a training, and counts it."""
        self.earlier.begin(epoch, continues=continues)
        self.held.begin_epoch()

    def pass_by_validations(self, epoch: int) -> None:
        """Brings the validation data to the beginning of an epoch.

        Training and validation may be parts of one cache. The first of both that reaches its end fills it, and before that each
        iterator has its own order: those of training up to the first validation come first.

        Args:
            epoch: its index.
        """
        if caches.is_shared(self.x, self.validations.data):
            self.earlier.pass_by(min(epoch, self.validations.first_due() + 1))
        self.validations.pass_by(epoch)

    def batch_size(self) -> int | None:
        """Returns the number of examples in a batch; None if the data do not tell it."""
        adapter = self.iterator.data_adapter
        found: Any = None
        if type(adapter).__name__ in {"ArrayDataAdapter", "TorchDataLoaderAdapter"}:
            found = adapter._batch_size
        elif isinstance(self.x, keras.utils.PyDataset):
            found = vars(self.x).get("batch_size")
        else:
            found = caches.batch_size(self.x)
        return int(found) if isinstance(found, (int, np.integer)) else None

    def spec(self) -> Any:
        """Returns the `element_spec` that the model receives; None if the data has none."""
        spec = getattr(self.x, "element_spec", None)
        if spec is None or self.class_weight is None:
            return spec
        import tensorflow as tf

        return (*spec, tf.TensorSpec(spec[1].shape[:1], tf.float32))

    def spec_of_batches(self) -> Any:
        """Returns the structure of the batches that TensorFlow's trainer draws; None under another backend."""
        return getattr(getattr(self.iterator, "_distributed_dataset", None), "element_spec", None)

    def drawn(self) -> int | None:
        """Counts drawn batches, if one iterator of known length serves all epochs; else None."""
        known = self.one_pass and self.iterator.data_adapter.num_batches is not None
        return int(self.iterator._steps_seen) if known else None

    def begin_behind(self, count: int, drawn: int | None = None, then: Callable[[], None] = lambda: None) -> bool:
        """Skips the batches that an interrupted training has drawn.

        Args:
            count: batches of the interrupted epoch, for data that restarts in each epoch.
            drawn: the value of `drawn`, for data of known length with one iterator over all epochs.
            then: called when the batches of data that restart in each epoch are skipped.

        Returns:
            False if the epoch is known to have no batch left.
        """
        iterator, begin = self.iterator, self.iterator._get_iterator
        own = vars(iterator).get("_get_iterator")

        def behind(number: int) -> Any:
            batches = iter(begin())
            for _ in range(number):
                next(batches, None)
            return batches

        def once() -> Any:
            del iterator._get_iterator  # restores the method of the class
            if own is not None:
                iterator._get_iterator = own
            found = batches_left if batches_left is not None else behind(count)
            then()
            return found

        batches_left = None
        if self.one_pass:
            if drawn and count and drawn >= iterator.data_adapter.num_batches:
                behind(drawn)  # the next iterator draws another order
                return False  # the data ended within the epoch, which Keras therefore ends
            if drawn is not None:
                iterator._current_iterator, iterator._steps_seen = behind(drawn), drawn
        elif count:
            if self.steps is None and keras.config.backend() == "jax":  # Keras fails here on an epoch without a step
                batches = behind(count)
                first = list(itertools.islice(batches, 1))
                if not first:
                    self.earlier.begun()
                    return False
                batches_left = itertools.chain(first, batches)
            iterator._get_iterator = once
        return True

    def end_cut_epoch(self) -> None:
        """Does the cleanup of Keras's iterator at an epoch's end, which a cut epoch misses."""
        iterator = self.iterator
        # A half-drawn iterator references itself and keeps tf.data's iterator alive until garbage collection.
        iterator._epoch_iterator = None
        iterator.data_adapter.on_epoch_end()
        if iterator._num_batches and iterator._steps_seen >= iterator._num_batches:
            iterator._current_iterator, iterator._steps_seen = None, 0

    def epoch_done(self, epoch: int) -> None:
        """Counts the validation of an epoch that ended, by its index."""
        self.validations.done(epoch + 1)
        self.draws.between()

    def ended(self, kept: str) -> None:
        """Counts later draws anew, because this `fit` ended.

        Args:
            kept: the folder in which its backups stay; empty if they are removed.
        """
        self.earlier.ended(kept)
        self.validations.ended(kept)
        self.draws.ended()
        # They reference each other where an epoch was cut: tf.data's would read ahead until they are collected as garbage.
        if (iterator := self.iterator) is not None:
            iterator._epoch_iterator = iterator._current_iterator = None

    def lived_through(self, folder: str) -> None:
        """Counts what a `fit` of this process that kept its backups in a folder drew from the same data."""
        self.earlier.lived_through(folder)
        self.validations.lived_through(folder)

    def forget_length(self) -> None:
        """Makes Keras count the next epoch's length again, instead of reusing a shortened epoch's."""
        self.iterator._num_batches = self.iterator.data_adapter.num_batches


def find() -> FitCall | None:
    """Finds the `fit` that calls this callback; returns None if there is none."""
    frame = sys._getframe(1)
    for _ in range(FRAMES):
        if frame.f_back is None:
            return None
        frame = frame.f_back
        given = frame.f_locals
        if frame.f_code.co_name == "fit" and "epoch_iterator" in given:
            iterator = given["epoch_iterator"]
            steps = iterator.num_batches
            x, reference = given.get("x"), weakref.ref(iterator)
            if hasattr(x, "element_spec"):
                guard()
            first = int(given.get("initial_epoch") or 0)
            earlier = EarlierEpochs(x, iterator, known=bool(steps), first=first)
            validations = EarlierValidations(
                given.get("val_x"),
                partial(given["self"]._should_eval, validation_freq=given.get("validation_freq") or 1),
                given.get("validation_steps"),
                int(iterator.steps_per_execution),
                first,
            )
            draws, count = Draws([x, given.get("val_x")], first), int(steps) if steps else None
            earlier.before_pass = draws.before_pass
            arguments = {name: given[name] for name in ARGUMENTS if name in given}
            data = {} if iterator.steps_per_epoch is not None else {"x": x, "validation": given.get("val_x")}
            held = PyData(given["self"], data, partial(_make_validation, dict(given)))
            weights = given.get("class_weight")
            return FitCall(x, weights, reference, count, earlier, validations, first, draws, arguments, held)
    return None


def _make_validation(given: Mapping[str, Any]) -> None:
    """Makes TensorFlow's iterator of validation data, as `fit` does before its first validation.

    Args:
        given: the local names of `fit`.
    """
    model = given["self"]
    if keras.config.backend() != "tensorflow" or getattr(model, "_eval_epoch_iterator", None) is not None:
        return
    from keras.src.backend.tensorflow.trainer import TFEpochIterator

    model._eval_epoch_iterator = TFEpochIterator(
        x=given["val_x"],
        y=given["val_y"],
        sample_weight=given["val_sample_weight"],
        batch_size=given["validation_batch_size"] or given["batch_size"],
        distribute_strategy=model.distribute_strategy,
        steps_per_execution=model.steps_per_execution,
        steps_per_epoch=given["validation_steps"],
        shuffle=False,
    )


def check_followed(call: FitCall, stream: Stream) -> None:
    """Checks that `fit` draws the batches of the stream one by one, in order.

    Raises:
        UsageError: it draws other batches, or counts epochs differently.
    """
    if call.one_pass:
        # Keras then keeps one iterator over all epochs, and its position in the data differs from our count.
        raise UsageError(
            "fit(steps_per_epoch=...) with data=: leave steps_per_epoch out, because the data defines its epochs "
            "(keras.config.set_max_steps_per_epoch has the same effect)"
        )
    reason = reason_not_followed(call.x, stream)
    if reason:
        raise UsageError(
            f"fit was given {reason}: give fit the dataset of data=, or the result of its map and prefetch. Put any other "
            "step into the function that is given to resumable"
        )
    if call.steps is None or call.steps < stream.longest():
        raise UsageError(
            f"fit counts {call.steps} batches per epoch, but data= has {stream.longest()}: create the callback before map or "
            "class_weight change the data, or give another backup folder to start again"
        )


def check_steps_per_call(stream: Stream, per_call: int) -> None:
    """Checks that every epoch of the stream is a whole number of Keras's calls.

    Args:
        stream: the data of `data=`.
        per_call: steps that Keras runs per call, `steps_per_execution`.

    Raises:
        UsageError: an epoch would end within a call.
    """
    if stream.longest() % per_call:
        raise UsageError(
            f"steps_per_execution={per_call}, but an epoch has {stream.longest()} steps: give a number that divides "
            f"{stream.longest()}"
        )


def check_repeatable(call: FitCall, epochs: int) -> None:
    """Checks that a training without `data=` can draw more than one epoch.

    Raises:
        UsageError: a generator is given for several epochs. Keras draws all of it in the first epoch, and only its
            first two batches in later ones. Or the file of a cache was left locked.
    """
    if file := caches.left_locked(call.x):
        raise UsageError(
            f"cache({file!r}) of the data was not finished by the process that filled it, and is locked: if no other process "
            f"fills it now, remove the files {file}* and run again"
        )
    if isinstance(call.x, GeneratorType) and not call.one_pass and epochs > 1:
        raise UsageError(
            f"fit was given a generator for {epochs} epochs without steps_per_epoch: Keras draws all of it in the first "
            "epoch, so no later epoch can be resumed. Give steps_per_epoch, or a keras.utils.PyDataset"
        )
