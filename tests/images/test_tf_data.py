"""Tests how the batches of a dataset reach Keras's `fit`."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from kresume.images.conventions import to_model_function
from kresume.images.order import Order
from kresume.images.pipeline import training_dataset
from kresume.images.tf_data import array_of, for_fit
from kresume.images.waiting import Waiting, asked_ahead, batch_times

pytestmark = pytest.mark.optimized_graphs


def small_model() -> keras.Model:
    """Returns a compiled model of pictures of 8 pixels, the same each time."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


def batches(seconds: float = 0.0):
    """Returns a dataset of noise whose batches each take so long to read."""
    pictures = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3), np.uint8)

    def read(rows: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return pictures[rows]

    options = {"image_size": (8, 8), "pixels": to_model_function("0-1"), "augment": None, "times": batch_times()}
    return training_dataset(read, np.arange(64), np.arange(64) % 2, Order(0, 64, 8), start_step=0, **options)


@pytest.mark.one_backend
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32"])
def test_an_array_is_the_memory_of_its_tensor(dtype):
    """Nothing is copied, nothing can be overwritten, and the array keeps the memory alive."""
    tensor = tf.cast(tf.reshape(tf.range(24), (2, 3, 4)), dtype)
    expected, array = tensor.numpy(), array_of(tensor)
    assert np.shares_memory(array, np.asarray(memoryview(tensor)))
    assert not array.flags.writeable
    del tensor
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, expected)


def test_a_model_trains_on_them_as_on_the_dataset():
    """Equal bytes, under both backends."""
    models = [small_model(), small_model()]
    models[0].fit(batches(), steps_per_epoch=12, verbose=0, shuffle=False)
    with for_fit(batches()) as data:
        models[1].fit(data, steps_per_epoch=12, verbose=0, shuffle=False)
    for one, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        assert one.tobytes() == other.tobytes()


def test_what_is_no_dataset_is_handed_on():
    """A teacher's answers come beside the batches, from a generator."""
    made = iter(batches())
    with for_fit(made) as lent:
        assert lent is made


def test_slow_pictures_show_where_keras_asks_for_them_ahead(monkeypatch):
    """As on an accelerator under JAX, which this process takes for its own: reading takes 50 ms a batch, a step 10 ms."""
    if keras.config.backend() != "jax":
        assert asked_ahead() == 0
        return
    import jax

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert asked_ahead() == 1
    waiting = Waiting(batch_times(), ahead=asked_ahead())

    class Steps(keras.callbacks.Callback):
        """Computes for 10 ms."""

        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.01)
            waiting.step_done(batch + 1)

    with for_fit(batches(0.1)) as data:
        small_model().fit(data, steps_per_epoch=40, verbose=0, shuffle=False, callbacks=[Steps()])
    assert waiting.share() > 0.4
