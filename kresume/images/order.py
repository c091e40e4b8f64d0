"""Computes the order of the training images: one permutation per epoch, without end.

    order = Order(seed=0, n=873, batch_size=32)
    order.batch(16431)          # the indices of that step, computed without the 16,431 steps before it
    order.epoch_end(0)          # 28: the step count at which every image was drawn once

Every permutation is a pure function of (seed, stream, epoch, n). The whole state of the data is therefore one integer,
the position: how many examples were drawn. The sequence of permutations is cut into full batches: a batch may span two
epochs; no batch is padded or truncated.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int, stream: int = 0) -> np.ndarray:
    """Returns a permutation of `range(n)`.

    Sorts the raw output of Philox: numpy guarantees the raw stream of a bit generator across releases, but not the
    result of `Generator.permutation`.

    Args:
        seed: the run's seed.
        epoch: 0-based; each has its own permutation.
        n: how many elements.
        stream: number of an independent sequence of permutations with the same seed, to mix by origin or class.

    Returns:
        `(n,) int64`, read-only.
    """
    keys = np.random.Philox(key=[seed, stream], counter=[0, 0, 0, epoch]).random_raw(n)
    result = np.argsort(keys, kind="stable").astype(np.int64)
    result.flags.writeable = False
    return result


class Order:
    """An endless sequence of permutations of `range(n)`, cut into full batches.

    Args:
        seed: the run's seed.
        n: how many images.
        batch_size: images per step; may exceed `n`, a batch then spans several permutations.
        stream: see `permutation`.

    Raises:
        ValueError: `n` or `batch_size` is below 1.
    """

    def __init__(self, seed: int, n: int, batch_size: int, stream: int = 0) -> None:
        if n < 1 or batch_size < 1:
            raise ValueError(f"an order needs at least one image and one image per batch: got n={n}, {batch_size=}")
        self.seed = seed
        self.n = n
        self.batch_size = batch_size
        self.stream = stream

    def deal(self, epoch: int) -> np.ndarray:
        """Returns the indices of one epoch, `(n,) int64`."""
        return permutation(self.seed, epoch, self.n, self.stream)

    def take(self, position: int, count: int) -> np.ndarray:
        """Returns the `count` indices from `position` on, `(count,) int64`, equally fast at any position."""
        parts = []
        while count > 0:
            epoch, offset = self._locate(position)
            part = self.deal(epoch)[offset : offset + count]
            parts.append(part)
            position += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _locate(self, position: int) -> tuple[int, int]:
        """Returns the epoch that contains a position, and the position's offset in it."""
        return divmod(position, self.n)

    def batch(self, step: int) -> np.ndarray:
        """Returns the indices of a step, `(batch_size,) int64`."""
        return self.take(step * self.batch_size, self.batch_size)

    def dealt_by(self, epoch: int) -> int:
        """Returns the position at which epoch `epoch` (0-based) is complete."""
        return (epoch + 1) * self.n

    def epoch_end(self, epoch: int) -> int:
        """Returns the step count at which epoch `epoch` (0-based) is complete.

        That is ceil((epoch + 1) * n / batch_size).
        """
        return -(-self.dealt_by(epoch) // self.batch_size)


class LaterOrder(Order):
    """Continues an order from an epoch on, after the set of images changed.

    A batch may span two epochs, so the last batch before the change may already have drawn images of this epoch. These
    are not drawn again: each epoch contains every image once, even if images were added or removed. Positions and steps
    are still counted from the beginning of training.

    Args:
        order: the order of the new set of images.
        epoch: the first epoch that uses `order`.
        step: the step at which it begins.
        taken: indices of this epoch that the batch before it already drew; an index that `order` does not contain is
            ignored.
    """

    def __init__(self, order: Order, epoch: int, step: int, taken: np.ndarray) -> None:
        super().__init__(order.seed, order.n, order.batch_size, order.stream)
        self.order = order
        self.epoch = epoch
        self.start = step * order.batch_size
        first = order.deal(epoch)
        gone = [
            rank
            for index, count in zip(*np.unique(taken, return_counts=True), strict=True)
            for rank in np.nonzero(first == index)[0][:count]
        ]
        self._first = np.delete(first, np.array(gone, np.int64))

    def deal(self, epoch: int) -> np.ndarray:
        """Returns the indices of one epoch; the first lacks those drawn before it."""
        return self._first if epoch == self.epoch else self.order.deal(epoch)

    def dealt_by(self, epoch: int) -> int:
        """Returns the position at which an epoch is complete."""
        return self.start + len(self._first) + (epoch - self.epoch) * self.n

    def _locate(self, position: int) -> tuple[int, int]:
        behind = position - self.start - len(self._first)
        if behind < 0:
            return self.epoch, position - self.start
        epochs, offset = divmod(behind, self.n)
        return self.epoch + 1 + epochs, offset
