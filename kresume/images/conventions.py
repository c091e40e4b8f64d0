"""What models eat: Keras's five conventions for `preprocess_input`, as TensorFlow operations.

    to_model = to_model_function("-1-1")
    to_model(images)             # (batch, height, width, 3) 0..255 -> float32 in -1..1

The arithmetic is that of `keras.applications.imagenet_utils.preprocess_input`: `-1-1` is its mode `tf`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kresume.errors import UsageError

NAMES = ("0-255", "0-1", "-1-1", "caffe", "torch")
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)


def to_model_function(name: str) -> Callable[[Any], Any]:
    """The function that turns pictures into what a model eats.

    Args:
        name: one of `NAMES`, or `FILE.py:FUNCTION` for a function of one's own that takes and gives
            `(batch, height, width, 3) float32` and is made of TensorFlow operations.

    Returns:
        `(batch, height, width, 3)` uint8 or float32 in 0..255 -> float32 of the same shape.

    Raises:
        UsageError: there is no such convention, file or function.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    if ".py:" in name:
        return _load(name)
    raise UsageError(f"--pixels {name}: use auto, {', '.join(NAMES)}, or FILE.py:FUNCTION")


def _load(name: str) -> Callable[[Any], Any]:
    file, _, function = name.rpartition(":")
    if not Path(file).is_file():
        raise UsageError(f"--pixels {name}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"kresume_pixels_{abs(hash(file))}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--pixels {name}: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError(f"--pixels {name}: {file} has no function {function}")
    return lambda images: found(_float(images))


def _float(images: Any) -> Any:
    import tensorflow as tf

    return tf.cast(images, tf.float32)


def _caffe(images: Any) -> Any:
    return _float(images)[..., ::-1] - IMAGENET_MEAN_BGR


def _torch(images: Any) -> Any:
    return (_float(images) / 255.0 - IMAGENET_MEAN_RGB) / IMAGENET_STD_RGB


def to_picture_function(name: str) -> Callable[[Any], Any]:
    """The way back: what a model of this convention eats -> values in 0..255.

    Raises:
        UsageError: there is no such convention, or it is a function of the user's.
    """
    if name not in _INVERSES:
        raise UsageError(f"{name}: only {', '.join(NAMES)} can be turned back into pictures")
    return _INVERSES[name]


_INVERSES: dict[str, Callable[[Any], Any]] = {
    "0-255": _float,
    "0-1": lambda values: _float(values) * 255.0,
    "-1-1": lambda values: (_float(values) + 1.0) * 127.5,
    "caffe": lambda values: (_float(values) + IMAGENET_MEAN_BGR)[..., ::-1],
    "torch": lambda values: (_float(values) * IMAGENET_STD_RGB + IMAGENET_MEAN_RGB) * 255.0,
}

_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "0-255": _float,
    "0-1": lambda images: _float(images) / 255.0,
    "-1-1": lambda images: _float(images) / 127.5 - 1.0,
    "caffe": _caffe,
    "torch": _torch,
}
