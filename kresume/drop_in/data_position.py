"""Lets the training alone begin in the middle of an epoch of `data=`.

    position = DataPosition(stream)
    position.wait(3, 0)                # until epoch 3 begins; the training began with epoch 0
    position.begin(3, 40)              # the training's iterator begins behind 40 batches
    with position.lent():              # other callbacks run
        ...
    position.begun()                   # the training has drawn its first batch

Validation on the same data, and a callback that reads them, read whole epochs: those that they read in a training that was not
interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kresume.drop_in.stream import Stream


class DataPosition:
    """Moves a stream for the training, and back for other readers.

    Args:
        stream: the data of `data=`; None if the data are the user's own, which nobody moves.
    """

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream
        self._begins: tuple[int, int] | None = None

    def wait(self, epoch: int, first: int) -> None:
        """Lets readers read the epoch before, until an epoch begins.

        Args:
            epoch: the epoch that will begin.
            first: the epoch with which the training began.
        """
        if self._stream is not None:
            before = 0 if epoch == first else max(epoch - 1, 0)
            self._stream.seek(before if self._stream.same_list(before, epoch) else epoch, 0)
            self._begins = None

    def begin(self, epoch: int, batch: int) -> None:
        """Lets the next iterator, which is the training's, begin at a batch."""
        if self._stream is not None:
            self._stream.seek(epoch, batch)
            self._begins = (epoch, batch) if batch else None

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Lets other readers read the whole epoch for a while, as long as the training has not begun to read."""
        if self._stream is None or self._begins is None:
            yield
            return
        self._stream.seek(self._begins[0], 0)
        try:
            yield
        finally:
            if self._begins is not None:
                self._stream.seek(*self._begins)

    def begun(self) -> None:
        """Lets all readers read the whole epoch, because the training has its iterator."""
        if self._stream is not None and self._begins is not None:
            self._stream.seek(self._begins[0], 0)
            self._begins = None
