"""Measures the share of time that training waits for images, at next to no cost.

    data = training_dataset(..., times=batch_times())     # notes when each batch was ready
    waiting = Waiting(batch_times())
    waiting.step_done(412)                                # after each step: the next batch is asked for now
    waiting.caught_up()                                   # now and then: the step is computed
    waiting.share()                                       # of the last steps, 0 to 1
    waiting.share_since_start()                           # of all steps since `start`, as far as they were measured

TensorFlow's own training loop draws batches inside a compiled function, where Python cannot take the time. So the function that
prepares a batch notes when it is done, in the thread that prepares, and Python notes when the step before it ended.

Under JAX, and on a GPU, Python asks for a batch while the device still computes the step before. What that takes longer is
seen when Python waits for its result, twice a second, and is no time in which the device waited. On an accelerator under JAX
Keras asks for each batch one step earlier still, so that it is copied while a step computes.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from functools import cache
from typing import Any

from kresume.backend import tpu
from kresume.images.tf_data import THREADS

MEASURED = 32
"""Steps that one call of `share` looks at."""
KEPT = 2 * (MEASURED + THREADS)
"""Batches whose times are kept: more than those and what a pipeline prepares ahead."""


class BatchTimes:
    """When the latest batches were ready, in seconds since the epoch."""

    def __init__(self) -> None:
        import tensorflow as tf

        with tf.device("/CPU:0"), tf.init_scope():
            self._ready = tf.Variable(tf.zeros([KEPT], tf.float64), trainable=False, name="batch_ready")

    def note(self, step: Any) -> Any:
        """Returns the operation that notes that a batch is ready.

        Args:
            step: its number, a scalar tensor.
        """
        import tensorflow as tf

        return self._ready.scatter_nd_update([[step % KEPT]], tf.timestamp()[None])

    def read(self) -> Any:
        """Returns the times, `(KEPT,) float64`; that of a batch is at its number modulo `KEPT`."""
        return self._ready.numpy()


def batch_times() -> BatchTimes | None:
    """Returns the times of this process; None where TensorFlow can take none.

    `--exact on` forbids it to read a clock, and variables under a strategy (a TPU) cannot be written by the pipeline.
    """
    from tensorflow.python.framework import config

    return None if config.is_op_determinism_enabled() or tpu.on_tpu() else _times()


@cache
def _times() -> BatchTimes:
    """Makes the times once: traced functions hold them."""
    return BatchTimes()


def asked_ahead() -> int:
    """Returns how many steps before its use Keras asks for a batch.

    Source: `JAXEpochIterator` in `keras/src/backend/jax/trainer.py`.
    """
    import keras

    if keras.config.backend() != "jax" or keras.distribution.distribution() is not None:
        return 0
    import jax

    return 0 if jax.default_backend() == "cpu" else 1


class Waiting:
    """The share of the latest steps that waited for their batch.

    Args:
        times: when batches were ready; None if that is unknown, and then every share is.
        every: steps that Keras runs between two calls of `step_done`; only the first of them is measured.
        ahead: how many steps before its use a batch is asked for.
    """

    def __init__(self, times: BatchTimes | None, every: int = 1, ahead: int = 0) -> None:
        self._times = times
        self._every = every
        self._asked_ahead = ahead
        self._ended: deque[tuple[int, float]] = deque(maxlen=MEASURED)
        self._waited = self._lasted = 0.0
        self._ahead = 0.0

    def start(self) -> None:
        """Begins to measure again; what lies before, such as scoring, belongs to no step."""
        self._ended.clear()
        self._waited = self._lasted = 0.0

    def step_done(self, step: int) -> None:
        """Notes that a step ended, which is when the next batch is asked for.

        Args:
            step: the number of steps done: that of the batch of the next step.
        """
        self._ended.append((step + self._asked_ahead, time.time()))

    def caught_up(self) -> None:
        """Notes that the step of the last `step_done` is computed: Python was ahead of the device until now."""
        if self._ended:
            self._ahead = time.time() - self._ended[-1][1]

    def share(self) -> float | None:
        """Returns the share of time since the last call, or of the latest steps; None if unknown."""
        ended = list(self._ended)
        while len(self._ended) > 1:
            self._ended.popleft()
        if len(ended) < 2 or self._times is None:
            return None
        ready, waited = self._times.read(), 0.0
        for (batch, asked), (_, until) in itertools.pairwise(ended):
            waited += max(0.0, min(ready[batch % KEPT], until) - asked - self._ahead)
        waited, lasted = self._every * waited, max(ended[-1][1] - ended[0][1], 1e-9)
        self._waited += min(waited, lasted)
        self._lasted += lasted
        return float(min(1.0, waited / lasted))

    def share_since_start(self) -> float | None:
        """Returns the share of the steps since `start` that any call measured; None if unknown."""
        self.share()
        return float(self._waited / self._lasted) if self._lasted else None
