"""Sets the options of every tf.data dataset of kresume.

    data = without_autotuner(tf.data.Dataset.range(8).map(load, num_parallel_calls=THREADS))

TensorFlow's autotuner runs one thread per active iterator. The thread sleeps between rounds, eventually for up to a
minute, and destroying the iterator waits until the sleep ends: this delays the end of an epoch, a test or a whole
process. The thread misses the stop signal because `CancellationManager` runs its callbacks before it counts as
cancelled (`tensorflow/core/framework/cancellation.cc`, `Model::OptimizeLoop` in `model.cc`). Datasets here set their
number of parallel calls explicitly, so there is nothing to tune.
"""

from __future__ import annotations

import atexit
import gc
import os
from functools import cache
from typing import Any

READERS = 2
"""Batches that are read in parallel; reading one batch uses threads itself."""
THREADS = os.cpu_count() or 1
"""Batches that are augmented in parallel."""


def without_autotuner(data: Any) -> Any:
    """Turns off tf.data's autotuner for a dataset and everything built on it.

    `num_parallel_calls=AUTOTUNE` then means one call per core; `prefetch(AUTOTUNE)` still grows its buffer.
    """
    import tensorflow as tf

    _drop_iterators_at_exit()
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


@cache
def _drop_iterators_at_exit() -> None:
    """Lets a process end in which an iterator is still referenced.

    TensorFlow waits for the iterator's threads when Python destroys it at its end. By then these threads can no longer run the
    Python function that reads a batch, so both would wait forever. Before that they can.
    """
    atexit.register(_drop_iterators)


def _drop_iterators() -> None:
    from tensorflow.python.data.ops.iterator_ops import OwnedIterator

    gc.unfreeze()  # frozen objects are not listed
    for found in [each for each in gc.get_objects() if type(each) is OwnedIterator]:
        found._iterator_resource = None
