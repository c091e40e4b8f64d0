"""What the user's call of `fit` was given, and the Keras iterator that feeds it.

    call = find()                       # from a callback, inside fit
    check_followed(call, stream)        # fit must draw from the data of the backup
    call.begin_behind(7)                # the next epoch begins behind its first 7 batches
    call.end_cut_epoch()                # what Keras leaves out where an epoch is cut

Keras tells a callback nothing of the data. So the frame of the running `fit` is read, here alone; tests fail when Keras renames
what is used.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

import keras

from kresume.errors import UsageError
from kresume.images.stream import Stream, reason_not_followed

FRAMES = 12


@dataclass(frozen=True)
class FitCall:
    """A running call of `fit`.

    Attributes:
        x: the data that it was given.
        class_weight: the weights of classes that it was given, or None.
        keras_iterator: gives Keras's `EpochIterator`. A weak reference: an iterator of tf.data that outlives its `fit` and is
            removed by the garbage collector later can block the process.
        steps: how many batches an epoch has, None if nobody knows.
    """

    x: Any
    class_weight: Any
    keras_iterator: Callable[[], Any]
    steps: int | None

    @property
    def iterator(self) -> Any:
        """Keras's iterator; None once `fit` is gone."""
        return self.keras_iterator()

    @property
    def one_pass(self) -> bool:
        """Tells whether Keras keeps one iterator over all epochs, because it was given `steps_per_epoch`."""
        return self.iterator.steps_per_epoch is not None

    def spec(self) -> Any:
        """The structure of a batch as the model gets it; None where only drawing one would tell it."""
        spec = getattr(self.x, "element_spec", None)
        if spec is None or self.class_weight is None:
            return spec
        import tensorflow as tf

        return (*spec, tf.TensorSpec(spec[1].shape[:1], tf.float32))

    def drawn(self) -> int | None:
        """How many batches of data of known length were drawn, where one iterator is kept over all epochs."""
        known = self.one_pass and self.iterator.data_adapter.num_batches is not None
        return int(self.iterator._steps_seen) if known else None

    def begin_behind(self, count: int, drawn: int | None = None) -> bool:
        """Draws and drops the batches that an interrupted training drew.

        Args:
            count: of the interrupted epoch, for data that begin anew in each epoch.
            drawn: what `drawn` gave, for data of known length with one iterator over all epochs.

        Returns:
            False if the epoch is known to have no batch left.
        """
        iterator, begin = self.iterator, self.iterator._get_iterator

        def behind(number: int) -> Any:
            batches = iter(begin())
            for _ in range(number):
                next(batches, None)
            return batches

        def once() -> Any:
            del iterator._get_iterator  # the method of the class again
            return batches_left if batches_left is not None else behind(count)

        batches_left = None
        if self.one_pass:
            if drawn:
                iterator._current_iterator, iterator._steps_seen = behind(drawn), drawn
        elif count:
            if self.steps is None and keras.config.backend() == "jax":  # where Keras fails in an epoch without a step
                batches = behind(count)
                first = list(itertools.islice(batches, 1))
                if not first:
                    return False
                batches_left = itertools.chain(first, batches)
            iterator._get_iterator = once
        return True

    def end_cut_epoch(self) -> None:
        """Does what Keras's iterator does behind the last step of an epoch, which a cut epoch does not reach."""
        iterator = self.iterator
        iterator._epoch_iterator = (
            None  # half drawn, it holds itself and tf.data's iterator until the garbage collector comes
        )
        iterator.data_adapter.on_epoch_end()
        if iterator._num_batches and iterator._steps_seen >= iterator._num_batches:
            iterator._current_iterator, iterator._steps_seen = None, 0

    def forget_length(self) -> None:
        """Lets the next epoch find its length: Keras would take that of an epoch which began in its middle."""
        self.iterator._num_batches = self.iterator.data_adapter.num_batches


def find() -> FitCall | None:
    """Finds the `fit` that calls this callback; None where somebody else does."""
    frame = sys._getframe(1)
    for _ in range(FRAMES):
        if frame.f_back is None:
            return None
        frame = frame.f_back
        given = frame.f_locals
        if frame.f_code.co_name == "fit" and "epoch_iterator" in given:
            iterator = given["epoch_iterator"]
            steps = iterator.num_batches
            return FitCall(
                given.get("x"), given.get("class_weight"), weakref.ref(iterator), int(steps) if steps else None
            )
    return None


def check_followed(call: FitCall, stream: Stream) -> None:
    """Makes sure that `fit` draws the batches of the stream, one by one and in their order.

    Raises:
        UsageError: it draws others, or counts other epochs.
    """
    if call.one_pass:
        # Keras then keeps one iterator over all epochs, and the data would be at another position than we count.
        raise UsageError(
            "fit(steps_per_epoch=...) with data=: leave steps_per_epoch out, the data knows its epochs "
            "(keras.config.set_max_steps_per_epoch does the same)"
        )
    reason = reason_not_followed(call.x, stream)
    if reason:
        raise UsageError(
            f"fit was given {reason}: give fit the same as data=, or what map and prefetch make of it. Put any other step "
            "into the function that resumable is given"
        )
    if call.steps is None or call.steps < stream.longest():
        raise UsageError(
            f"fit counts {call.steps} batches per epoch and data= has {stream.longest()}: create the callback before map or "
            "class_weight change the data, or give another backup folder to begin again"
        )


def check_steps_per_call(stream: Stream, per_call: int) -> None:
    """Makes sure that every epoch of the stream is a whole number of Keras's calls.

    Args:
        stream: the data of `data=`.
        per_call: how many steps Keras runs per call, `steps_per_execution`.

    Raises:
        UsageError: it is not, so that an epoch would end within a call.
    """
    if stream.longest() % per_call:
        raise UsageError(
            f"an epoch has {stream.longest()} steps, and Keras runs {per_call} per call (steps_per_execution): give "
            "a number that divides it"
        )


def check_repeatable(call: FitCall, epochs: int) -> None:
    """Makes sure that a training without `data=` has epochs at all.

    Raises:
        UsageError: a generator for several epochs. Keras draws it in the first one, and its first two batches in the others.
    """
    if isinstance(call.x, GeneratorType) and not call.one_pass and epochs > 1:
        raise UsageError(
            f"fit was given a generator for {epochs} epochs without steps_per_epoch: Keras draws all of it in the first "
            "epoch, and no later epoch can be continued. Give steps_per_epoch, or a keras.utils.PyDataset"
        )
