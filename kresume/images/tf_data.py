"""Sets the options of kresume's tf.data datasets, and hands their batches over without a copy.

    data = without_autotuner(tf.data.Dataset.range(8).map(load, num_parallel_calls=THREADS))
    model.fit(for_fit(data), ...)

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
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

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


def array_of(tensor: Any) -> np.ndarray:
    """Returns a tensor's values in its own memory, read-only; `tensor.numpy()` would copy them."""
    return np.asarray(memoryview(tensor))


def for_fit(data: Any) -> Any:
    """Returns what Keras's `fit` takes batches of a dataset from.

    Under JAX Keras copies each batch in the thread that drives the device: for 128 pictures of 224 pixels 77 MB, which takes
    longer than the step itself on a fast GPU. Here JAX gets TensorFlow's own memory, and keeps it until the batch is on the
    device.

    Args:
        data: a `tf.data.Dataset`; under TensorFlow it is returned as it is, and so is what is no dataset, such as batches with
            a teacher's answers.
    """
    import keras
    import tensorflow as tf

    return _shared(data) if keras.config.backend() == "jax" and isinstance(data, tf.data.Dataset) else data


def _shared(data: Any) -> Any:
    import keras
    from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter

    class SharedMemory(TFDatasetAdapter):  # type: ignore[misc]  # keras is untyped
        """Yields batches as arrays in TensorFlow's memory; Keras takes an adapter instead of a dataset."""

        def get_jax_iterator(self) -> Iterator[Any]:
            for batch in self.get_tf_dataset():
                yield keras.tree.map_structure(array_of, batch)

    return SharedMemory(data)


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
