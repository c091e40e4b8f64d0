"""Builds a network of keras.applications with given weights, its own preprocessing and a new head.

    model, said = pretrained("MobileNetV2", "imagenet", num_classes=5, image_size=(96, 96))
    model, said = pretrained("ResNet50", "resnet.weights.h5", num_classes=5, image_size=(96, 96))

The preprocessing becomes layers of the model, which then expects 0-255. These are Keras's own layers and operations, so plain
Keras loads the model.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.backend.keras_settings import channels_last
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ModelError, RestoreError
from kresume.models.misfit import UNUSED
from kresume.models.new_head import head_on
from kresume.models.pixels import read_convention
from kresume.models.restore import restore
from kresume.spelling import option
from kresume.values.state import TrainState

IMAGENET = "imagenet"
CAFFE_MEAN = (103.939, 116.779, 123.68)
"""Means of ImageNet in the order blue, green, red, which Keras's `caffe` mode subtracts from bytes."""
TORCH_MEAN, TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Means and deviations of ImageNet in red, green, blue, which Keras's `torch` mode uses on values from 0 to 1."""


def applications() -> list[str]:
    """Returns the names of the networks in keras.applications."""
    return sorted(name for name in dir(keras.applications) if name[0].isupper())


def application(name: str) -> Any:
    """Returns the function of keras.applications.

    Raises:
        ModelError: there is none of this name.
    """
    function = getattr(keras.applications, name, None)
    if not callable(function):
        known = ", ".join(applications())
        raise ModelError(f"{option('model', f'applications:{name}')}: Keras has no such application; it has {known}")
    return function


def preprocessed(name: str, images: Any) -> Any:
    """Applies the preprocessing that an application's weights were trained with, as layers.

    Keras keeps it in a function beside the model. Its effect on a few values tells which of Keras's ways it is.

    Args:
        name: of the application.
        images: symbolic input, `(batch, height, width, 3)`, 0-255.

    Raises:
        ModelError: it is none of the ways that Keras has.
    """
    layers = keras.layers
    module = sys.modules[application(name).__module__]
    values = np.array([[[[0.0, 100.0, 200.0], [255.0, 30.0, 60.0]]]], "float32")
    expected = np.asarray(keras.ops.convert_to_numpy(module.preprocess_input(values.copy())))
    ways = {
        "none": (values, lambda x: x),
        "tf": (values / 127.5 - 1.0, layers.Rescaling(1 / 127.5, offset=-1.0)),
        "torch": ((values / 255.0 - TORCH_MEAN) / TORCH_STD, _torch),
        "caffe": (values[..., ::-1] - np.array(CAFFE_MEAN), _caffe),
    }
    for result, way in ways.values():
        if np.allclose(result, expected, atol=1e-3):
            return way(images)
    raise ModelError(
        f"the preprocessing of {name} is none that kresume knows: build the model in a function of your own"
    )


def _torch(images: Any) -> Any:
    mean, variance = (255.0 * np.array(TORCH_MEAN)).tolist(), ((255.0 * np.array(TORCH_STD)) ** 2).tolist()
    return keras.layers.Normalization(mean=mean, variance=variance)(images)


def _caffe(images: Any) -> Any:
    return keras.layers.Normalization(mean=list(CAFFE_MEAN), variance=[1.0, 1.0, 1.0])(keras.ops.flip(images, axis=-1))


def pretrained_base(name: str, weights: str, image_size: tuple[int, int]) -> tuple[keras.Model, str]:
    """Builds an application without its top, with weights.

    Args:
        name: of the application.
        weights: `imagenet`, or a `.weights.h5`, `.h5` or other file of this network, with or without its top.
        image_size: `(height, width)`.

    Returns:
        `(the network with average pooling, one line on the weights)`.

    Raises:
        ModelError: the weights of ImageNet cannot be fetched; the message says where to put the file.
        RestoreError: the file is of another network; the error holds the table.
    """
    function, shape = application(name), (*image_size, 3)
    if weights == IMAGENET:
        return _from_keras(name, function, shape)
    state = read_checkpoint(weights)
    base = function(weights=None, include_top=False, input_shape=shape, pooling="avg")
    try:
        restored = restore(base, state, optimizer=None)
    except RestoreError as error:
        for count in _possible_tops(state, error):
            if _restore_with_top(function, base, state, count):
                top = f"whose top of {count:,} classes is left out"
                return base, f"{len(base.weights):,} weights of {name} from {weights}, {top}"
        raise RestoreError(
            f"{option('weights', weights)} does not hold the weights of {name}, with or without a top: "
            f"{str(error).partition('; nothing was restored')[0]}",
            error.rows,
        ) from error
    return base, f"{restored.summary} from {weights}"


def _from_keras(name: str, function: Any, shape: tuple[int, ...]) -> tuple[keras.Model, str]:
    try:
        base = function(weights=IMAGENET, include_top=False, input_shape=shape, pooling="avg")
    except Exception as error:  # Keras raises a plain Exception where nothing can be fetched
        found = re.search(r"https?://\S+/([^\s/:]+)", str(error))
        if found is None:
            raise ModelError(
                f"{option('model', f'applications:{name}')} with {option('weights', IMAGENET)}: {str(error).splitlines()[0]}"
            ) from error
        home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
        raise ModelError(
            f"{option('weights', IMAGENET)}: Keras looked for {found[1]} and could not fetch it from {found[0]}: is there a "
            f"network? Put the file at {home / 'models' / found[1]}, or give any copy with {option('weights', 'FILE')}"
        ) from error
    return base, f"{len(base.weights):,} weights of {name}, trained on ImageNet"


def _possible_tops(state: TrainState, error: RestoreError) -> list[int]:
    """Returns the numbers of classes that a file's top may have, from the arrays that the base lacks."""
    over = [state.arrays[row[0].strip("()")] for row in error.rows if row[3] == UNUSED]
    widths = [int(array.shape[-1]) for array in over if array.ndim in {2, 4}]
    return list(dict.fromkeys(widths))


def _restore_with_top(function: Any, base: keras.Model, state: TrainState, count: int) -> bool:
    """Restores a file with a top and copies what is below it; returns False if it does not fit."""
    whole = function(weights=None, include_top=True, classes=count, classifier_activation=None)
    try:
        restore(whole, state, optimizer=None)
    except (RestoreError, CheckpointError):
        return False
    top = _tops(whole, base)
    theirs = [variable for variable in whole.weights if variable.path.partition("/")[0] not in top]
    if [tuple(variable.shape) for variable in theirs] != [tuple(variable.shape) for variable in base.weights]:
        return False
    for target, source in zip(base.weights, theirs, strict=True):
        target.assign(live_state.host_array(source.value))
    return True


def _tops(whole: keras.Model, base: keras.Model) -> set[str]:
    """Returns the names of the layers with weights that the network has behind those of its base."""
    below = sum(bool(layer.weights) for layer in base.layers)
    return {layer.name for layer in [each for each in whole.layers if each.weights][below:]}


@channels_last()
def pretrained(name: str, weights: str, num_classes: int, image_size: tuple[int, int]) -> tuple[keras.Model, str]:
    """Builds an application with weights, its preprocessing and a new head.

    Args:
        name: of the application.
        weights: see `pretrained_base`.
        num_classes: outputs of the new head.
        image_size: `(height, width)`.

    Returns:
        `(model that expects 0-255, one line on the weights)`.

    Raises:
        ModelError, RestoreError: see `pretrained_base`.
    """
    base, said = pretrained_base(name, weights, image_size)
    return _with_head(name, base, lambda images: preprocessed(name, images), num_classes), said


@channels_last()
def untrained(name: str, num_classes: int, image_size: tuple[int, int]) -> keras.Model:
    """Builds an application with initial weights, which expects 0-255.

    Args:
        name: of the application.
        num_classes: outputs of the head.
        image_size: `(height, width)`.

    Raises:
        ModelError: there is none of this name, or it takes no pictures of this size.
    """
    function = application(name)
    try:
        base = function(weights=None, include_top=False, input_shape=(*image_size, 3), pooling="avg")
    except ValueError as error:
        raise ModelError(f"{option('model', f'applications:{name}')}: {str(error).splitlines()[0]}") from error
    # Some families contain their preprocessing and expect 0-255 already; the others get a Rescaling in front.
    rescales = read_convention(base) == "0-255"
    rescaling = (lambda images: images) if rescales else keras.layers.Rescaling(1 / 127.5, offset=-1.0)
    return _with_head(name, base, rescaling, num_classes)


def _with_head(name: str, base: keras.Model, preprocessing: Callable[[Any], Any], num_classes: int) -> keras.Model:
    """Puts the preprocessing before a network and a new head behind it."""
    inputs = keras.Input(base.input_shape[1:], name="images")
    return keras.Model(inputs, head_on(base(preprocessing(inputs)), num_classes), name=name.lower())
