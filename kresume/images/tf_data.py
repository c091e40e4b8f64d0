"""Sets the options of kresume's tf.data datasets, and hands their batches over without a copy.

    data = without_autotuner(tf.data.Dataset.range(8).map(load, num_parallel_calls=THREADS))
    with for_fit(data) as batches:
        model.fit(batches, ...)

TensorFlow's autotuner runs one thread per active iterator. The thread sleeps between rounds, eventually for up to a
minute, and destroying the iterator waits until the sleep ends: this delays the end of an epoch, a test or a whole
process. The thread misses the stop signal because `CancellationManager` runs its callbacks before it counts as
cancelled (`tensorflow/core/framework/cancellation.cc`, `Model::OptimizeLoop` in `model.cc`). Datasets here set their
number of parallel calls explicitly, so there is nothing to tune.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import GeneratorType
from typing import Any

import numpy as np

from kresume.images.iterators import ended_after, guard

READERS = 2
"""Batches that are read in parallel; reading one batch uses threads itself."""
THREADS = os.cpu_count() or 1
"""Batches that are augmented in parallel."""


def without_autotuner(data: Any) -> Any:
    """Turns off tf.data's autotuner for a dataset and everything built on it.

    `num_parallel_calls=AUTOTUNE` then means one call per core; `prefetch(AUTOTUNE)` still grows its buffer.
    """
    import tensorflow as tf

    guard()
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def array_of(tensor: Any) -> np.ndarray:
    """Returns a tensor's values in its own memory, read-only; `tensor.numpy()` would copy them."""
    return np.asarray(memoryview(tensor))


@contextmanager
def for_fit(data: Any) -> Iterator[Any]:
    """Lends Keras's `fit` batches of a dataset, and ends what reads them ahead, however `fit` ends.

    Under JAX Keras copies each batch in the thread that drives the device: for 128 pictures of 224 pixels 77 MB, which takes
    longer than the step itself on a fast GPU. Here JAX gets TensorFlow's own memory, and keeps it until the batch is on the
    device.

    Args:
        data: a `tf.data.Dataset`, or what is none, such as a generator of batches with a teacher's answers, which is lent as
            it is.

    Yields:
        What `fit` takes.
    """
    import keras
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset):
        with ended_after(data) as lent:
            yield _shared(lent) if keras.config.backend() == "jax" else lent
        return
    try:
        yield data
    finally:
        if isinstance(data, GeneratorType):
            data.close()


def _shared(data: Any) -> Any:
    import keras
    from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter

    class SharedMemory(TFDatasetAdapter):  # type: ignore[misc]  # keras is untyped
        """Yields batches as arrays in TensorFlow's memory; Keras takes an adapter instead of a dataset."""

        def get_jax_iterator(self) -> Iterator[Any]:
            for batch in self.get_tf_dataset():
                yield keras.tree.map_structure(array_of, batch)

    return SharedMemory(data)
