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
            epoch, offset = divmod(position, self.n)
            part = self.deal(epoch)[offset : offset + count]
            parts.append(part)
            position += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def batch(self, step: int) -> np.ndarray:
        """The indices of a step, `(batch_size,) int64`."""
        return self.take(step * self.batch_size, self.batch_size)

    def epoch_end(self, epoch: int) -> int:
        """The step count at which epoch `epoch` (0-based) has been dealt whole: ceil((epoch + 1) * n / batch_size)."""
        return -(-(epoch + 1) * self.n // self.batch_size)
