"""Tests that Keras's own settings (`~/.keras/keras.json`) do not change what kresume builds."""

import keras
import numpy as np
import pytest

import kresume
from kresume.errors import UsageError
from kresume.images.augment import augmenter
from kresume.models import build, pretrained

BUILT = {
    "convnet": lambda: build.convnet(3, (12, 12)),
    "application": lambda: pretrained.untrained("MobileNet", 3, (32, 32)),
}


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def described(model):
    """Returns each layer's class with the shape of its output and of its weights."""
    return [
        (type(layer).__name__, tuple(layer.output.shape), [tuple(weight.shape) for weight in layer.weights])
        for layer in model.layers
    ]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", BUILT)
def test_a_network_of_ours_has_its_channels_last(request, name):
    """Under Keras's `channels_first` the networks are the same; without care the convnet took rows for channels."""
    expected = described(BUILT[name]())
    request.getfixturevalue("channels_first")
    assert described(BUILT[name]()) == expected
    assert keras.config.image_data_format() == "channels_first"


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("options", [{"preset": "strong"}, {"preset": "none", "rand_augment": 0.5, "cutmix": 0.9}])
def test_augmentation_is_the_same(request, options):
    """Under Keras's `channels_first` the augmented pictures have equal bytes."""
    import tensorflow as tf

    images = tf.constant(np.random.default_rng(0).random((6, 16, 16, 3), np.float32) * 255)
    rows = tf.one_hot([0, 1, 2, 0, 1, 2], 3)

    def augmented():
        return augmenter(options["preset"], 3, **{key: value for key, value in options.items() if key != "preset"})(
            images, rows, tf.constant(12, tf.int64)
        )

    expected = augmented()
    request.getfixturevalue("channels_first")
    for one, other in zip(augmented(), expected, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_floats_of_16_bits_are_refused(pictures, tmp_path, name):
    """The error says what Keras would do with them, and which option computes in 16 bits."""
    keras.config.set_floatx(name)
    try:
        with pytest.raises(UsageError, match=f"floatx {name} .*precision='mixed_float16'"):
            kresume.plan(None, data=str(pictures / "old"), model="convnet", image_size=12, quiet=True)
    finally:
        keras.config.set_floatx("float32")
