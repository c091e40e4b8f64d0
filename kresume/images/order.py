"""The order of the images: an endless row of permutations, one per epoch.

    order = Order(seed=0, n=873, batch_size=32)
    order.batch(16431)          # the indices of that step, without having dealt the 16,431 before it
    order.epoch_end(0)          # 28: the step at which every image has come once

Every permutation is a pure function of (seed, stream, epoch, n), so all the state of the data is one integer, the position:
how many examples were drawn. The row is cut into full batches: a batch may straddle two epochs, none is padded or cut.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int, stream: int = 0) -> np.ndarray:
    """A permutation of `range(n)`.

    Philox's raw output is argsorted: numpy guarantees the raw stream of a bit generator for good, while
    `Generator.permutation` may change from release to release.

    Args:
        seed: of the run.
        epoch: 0-based; each has its own permutation.
        n: how many.
        stream: an independent row of permutations for the same seed, for mixing by origin or class.

    Returns:
        `(n,) int64`, read-only.
    """
    keys = np.random.Philox(key=[seed, stream], counter=[0, 0, 0, epoch]).random_raw(n)
    result = np.argsort(keys, kind="stable").astype(np.int64)
    result.flags.writeable = False
    return result


class Order:
    """An endless row of permutations of `range(n)`, cut into full batches.

    Args:
        seed: of the run.
        n: how many images.
        batch_size: images per step; may be larger than `n`, a batch then spans several permutations.
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
        """The indices of one epoch, `(n,) int64`."""
        return permutation(self.seed, epoch, self.n, self.stream)

    def take(self, position: int, count: int) -> np.ndarray:
        """The `count` indices from `position` on, `(count,) int64`. Costs the same at any position."""
        parts = []
        while count > 0:
            epoch, offset = self._place(position)
            part = self.deal(epoch)[offset : offset + count]
            parts.append(part)
            position += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _place(self, position: int) -> tuple[int, int]:
        """The epoch that deals a position, and how many of its images come before."""
        return divmod(position, self.n)

    def batch(self, step: int) -> np.ndarray:
        """The indices of a step, `(batch_size,) int64`."""
        return self.take(step * self.batch_size, self.batch_size)

    def dealt_by(self, epoch: int) -> int:
        """The position at which epoch `epoch` (0-based) has been dealt whole."""
        return (epoch + 1) * self.n

    def epoch_end(self, epoch: int) -> int:
        """The step count at which epoch `epoch` (0-based) has been dealt whole: ceil((epoch + 1) * n / batch_size)."""
        return -(-self.dealt_by(epoch) // self.batch_size)


class LaterOrder(Order):
    """The order from an epoch on, where the images changed before it.

    The last batch before it may have begun this epoch already. What it took does not come again: each epoch deals every
    image once, whatever came or went in between. Positions and steps are counted from the beginning of training, as before.

    Args:
        order: of the images as they are from here on.
        epoch: the first that deals them.
        step: where it begins.
        taken: indices that the batch before it took of this epoch already; one that `order` does not deal is passed over.
    """

    def __init__(self, order: Order, epoch: int, step: int, taken: np.ndarray) -> None:
        super().__init__(order.seed, order.n, order.batch_size, order.stream)
        self.order = order
        self.epoch = epoch
        self.start = step * order.batch_size
        first = order.deal(epoch)
        gone = [
            place
            for index, count in zip(*np.unique(taken, return_counts=True), strict=True)
            for place in np.nonzero(first == index)[0][:count]
        ]
        self._first = np.delete(first, np.array(gone, np.int64))

    def deal(self, epoch: int) -> np.ndarray:
        """The indices of one epoch; the first lacks those that were taken before it."""
        return self._first if epoch == self.epoch else self.order.deal(epoch)

    def dealt_by(self, epoch: int) -> int:
        """The position at which an epoch has been dealt whole."""
        return self.start + len(self._first) + (epoch - self.epoch) * self.n

    def _place(self, position: int) -> tuple[int, int]:
        behind = position - self.start - len(self._first)
        if behind < 0:
            return self.epoch, position - self.start
        epochs, offset = divmod(behind, self.n)
        return self.epoch + 1 + epochs, offset
