"""Tests pixel conventions: the same input values everywhere, and conversion back to pictures."""

import numpy as np
import pytest
import tensorflow as tf

from kresume.errors import UsageError
from kresume.images import conventions
from kresume.images.conventions import Affine, find_affine, names_for, parse_statistics, to_model_function

pytestmark = [pytest.mark.one_backend, pytest.mark.optimized_graphs]

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
FLOATS = PICTURES.astype(np.float32)

BY_HAND = {
    "0-255": FLOATS,
    "0-1": FLOATS / 255,
    "-1-1": FLOATS / 127.5 - 1,
    "caffe": FLOATS[..., ::-1] - np.float32([103.939, 116.779, 123.68]),
    "torch": (FLOATS / 255 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]),
    "bgr-0-255": FLOATS[..., ::-1],
    "bgr-0-1": FLOATS[..., ::-1] / 255,
    "bgr--1-1": FLOATS[..., ::-1] / 127.5 - 1,
    "cifar10": (FLOATS / 255 - np.float32([0.4914, 0.4822, 0.4465])) / np.float32([0.2470, 0.2435, 0.2616]),
    "mnist": (FLOATS / 255 - np.float32(0.1307)) / np.float32(0.3081),
    "0-255-inverted": 255 - FLOATS,
    "0-1-inverted": 1 - FLOATS / 255,
    "-1-1-inverted": 1 - FLOATS / 127.5,
    "mean=0.5,std=0.25": (FLOATS / 255 - 0.5) / 0.25,
    "mean=0.5, 0.4, 0.3, std=0.25": (FLOATS / 255 - np.float32([0.5, 0.4, 0.3])) / 0.25,
    "mean=120.7,std=64.15": (FLOATS - np.float32(120.7)) / np.float32(64.15),
    "std=1;mean=[103.939,116.779,123.68];bgr": FLOATS[..., ::-1] - np.float32([103.939, 116.779, 123.68]),
    "mean=0,std=1": FLOATS / 255,
}


def test_every_name_is_looked_at():
    assert set(conventions.NAMES) <= set(BY_HAND)
    assert conventions.USUAL == ("0-255", "0-1", "-1-1", "caffe", "torch")


@pytest.mark.parametrize("name", BY_HAND)
def test_the_numbers_are_those_of_the_formula_and_lead_back(name):
    """A convention's values equal its formula and convert back to the picture.

    They are the same in a graph, where models are served, for floats, and by the expression for plain Keras.
    """
    to_model = to_model_function(name)
    values = np.asarray(to_model(PICTURES))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, BY_HAND[name], rtol=1e-6, atol=2e-6 * max(1, abs(BY_HAND[name]).max()))
    np.testing.assert_array_equal(np.asarray(to_model(FLOATS)), values)
    np.testing.assert_allclose(np.asarray(tf.function(to_model)(PICTURES)), values, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.asarray(conventions.to_picture_function(name)(values)), FLOATS, atol=2e-4)
    affine = find_affine(name)
    np.testing.assert_allclose(eval(affine.python("x"), {"x": FLOATS}), BY_HAND[name], rtol=1e-5, atol=1e-4)


def test_keras_does_the_same():
    """The values equal those of Keras's `preprocess_input` where it has the mode."""
    from keras.applications import imagenet_utils

    for convention, mode in (("-1-1", "tf"), ("caffe", "caffe"), ("torch", "torch")):
        theirs = imagenet_utils.preprocess_input(FLOATS.copy(), data_format="channels_last", mode=mode)
        np.testing.assert_allclose(np.asarray(to_model_function(convention)(FLOATS)), theirs, atol=2e-4)


def test_the_numbers_count_in_one_unit():
    """Statistics up to 1 are in torchvision's unit, others in grey levels, in the model's channel order."""
    assert parse_statistics("mean=0.5,std=0.5") == Affine(255.0, (0.5,), (0.5,))
    assert parse_statistics("mean=127.5,std=127.5") == Affine(1.0, (127.5,), (127.5,))
    assert parse_statistics("mean=1,2,3,std=4,5,6,bgr") == Affine(1.0, (1, 2, 3), (4, 5, 6), bgr=True)


@pytest.mark.parametrize(
    "text",
    [
        "mean=0.5", "std=1", "mean=,std=1", "mean=1,2,std=1", "mean=0,std=0", "mean=a,std=1", "mean=0,std=1,rgb",
        "mean=nan,std=1", "mean=0,std=1,bgr,bgr", "mean=0,std=1,bgr,2", "mean=0,mean=1,std=1", "mean=inf,std=1",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"--pixels mean|--pixels std.*mean=0\.5,std=0\.5"):
        to_model_function(text)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"bgr-0-255.*mean=M,std=S\[,bgr\] or FILE\.py:FUNCTION"):
        to_model_function("rgb")
    with pytest.raises(UsageError, match=r"converted back"):
        conventions.to_picture_function("file.py:function")


def test_one_channel_has_its_own_conventions():
    """A model with one channel has its own conventions; those for three channels are refused.

    Numbers for three channels would make three channels of one.
    """
    grey = PICTURES[..., :1]
    assert names_for(1) == ("0-255", "0-1", "-1-1", "mnist", "0-255-inverted", "0-1-inverted", "-1-1-inverted")
    for name in conventions.NAMES:
        if name in names_for(1):
            assert np.asarray(to_model_function(name)(grey)).shape == grey.shape
        else:
            with pytest.raises(UsageError, match=r"three channels, but the model expects one channel: use 0-255, 0-1"):
                to_model_function(name)(grey)


def test_which_are_tried_depends_on_the_pictures():
    """The conventions tried depend on the pictures: BGR needs colours, inversion needs grey pictures."""
    assert "bgr-0-255" in names_for(3)
    assert "0-1-inverted" not in names_for(3)
    assert "bgr-0-255" not in names_for(3, grey=True)
    assert {"mnist", "0-1-inverted"} <= set(names_for(3, grey=True))
