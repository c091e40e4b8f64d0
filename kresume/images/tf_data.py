"""Sets the options that every tf.data dataset of kresume has.

    data = without_autotuner(tf.data.Dataset.range(8).map(load, num_parallel_calls=THREADS))

TensorFlow's autotuner is a thread for each iterator that is being read. It pauses between two rounds, up to a minute at
last, and destroying the iterator waits for the end of the pause: an epoch, a test or a whole process ends that much later.
It misses the signal to stop because `CancellationManager` calls back before it counts as cancelled
(`tensorflow/core/framework/cancellation.cc`, `Model::OptimizeLoop` in `model.cc`). Datasets here name how many calls run in
parallel, so that nothing is left to tune.
"""

from __future__ import annotations

import os
from typing import Any

READERS = 2
"""Batches that are read at a time; reading one uses threads itself."""
THREADS = os.cpu_count() or 1
"""Batches that are augmented at a time."""


def without_autotuner(data: Any) -> Any:
    """Turns tf.data's autotuner off for a dataset and for all that is built on it.

    `AUTOTUNE` as a number of parallel calls means one for each core then, and `prefetch(AUTOTUNE)` still grows its buffer.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)
