"""Converts images to the values that a model expects, and back: the pixel conventions.

    to_model = to_model_function("-1-1")
    to_model(images)             # (batch, height, width, 3) 0..255 -> float32 in -1..1

The conversions are TensorFlow operations. `caffe`, `torch` and `-1-1` (there `tf`) are the modes of
`keras.applications.imagenet_utils.preprocess_input`. Every convention except a user's own function is one line of
arithmetic, `(image / unit - mean) / std`.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kresume.errors import UsageError
from kresume.spelling import option


@dataclass(frozen=True)
class Affine:
    """Defines one convention as `(image / unit - mean) / std`.

    Attributes:
        unit: the divisor of 0..255; negative for inverted images.
        mean: one number, or one per channel in the model's order.
        std: one number, or one per channel in the model's order.
        bgr: True if the model expects blue, green, red, as OpenCV reads images: the channels are reversed first.
    """

    unit: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    @property
    def needs_colours(self) -> bool:
        """Returns True if channels are treated differently, so that one channel is not enough."""
        return self.bgr or len(self.mean) > 1 or len(self.std) > 1

    def forward(self, images: Any) -> Any:
        """Converts images to the model's values."""
        values = _float(images)
        if self.bgr:
            values = values[..., ::-1]
        if self.unit != 1.0:
            values = values / self.unit
        if any(self.mean):
            values = values - _constant(self.mean)
        if self.std != (1.0,):
            values = values / _constant(self.std)
        return values

    def back(self, values: Any) -> Any:
        """Converts the model's values to images."""
        pictures = _float(values)
        if self.std != (1.0,):
            pictures = pictures * _constant(self.std)
        if any(self.mean):
            pictures = pictures + _constant(self.mean)
        if self.unit != 1.0:
            pictures = pictures * self.unit
        return pictures[..., ::-1] if self.bgr else pictures

    def python(self, name: str = "images") -> str:
        """Writes the arithmetic as a Python expression on an array or tensor called `name`."""
        text = f"{name}[..., ::-1]" if self.bgr else name
        if self.unit != 1.0:
            text += f" / {self.unit}"
        if any(self.mean):
            text += f" + {-self.mean[0]}" if len(self.mean) == 1 and self.mean[0] < 0 else f" - {_shown(self.mean)}"
        if self.std != (1.0,):
            text = f"({text}) / {_shown(self.std)}" if any(self.mean) else f"{text} / {_shown(self.std)}"
        return text


IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)
CIFAR10_MEAN_RGB = (0.4914, 0.4822, 0.4465)
CIFAR10_STD_RGB = (0.2470, 0.2435, 0.2616)
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081

TABLE: Mapping[str, Affine] = {
    "0-255": Affine(),
    "0-1": Affine(255.0),
    "-1-1": Affine(127.5, (1.0,)),
    "caffe": Affine(mean=IMAGENET_MEAN_BGR, bgr=True),
    "torch": Affine(255.0, IMAGENET_MEAN_RGB, IMAGENET_STD_RGB),
    "bgr-0-255": Affine(bgr=True),
    "bgr-0-1": Affine(255.0, bgr=True),
    "bgr--1-1": Affine(127.5, (1.0,), bgr=True),
    "cifar10": Affine(255.0, CIFAR10_MEAN_RGB, CIFAR10_STD_RGB),
    "mnist": Affine(255.0, (MNIST_MEAN,), (MNIST_STD,)),
    "0-255-inverted": Affine(-1.0, (-255.0,)),
    "0-1-inverted": Affine(-255.0, (-1.0,)),
    "-1-1-inverted": Affine(-127.5, (-1.0,)),
}
NAMES = tuple(TABLE)
USUAL = NAMES[:5]
"""Keras's own conventions; another one is chosen only if it fits clearly better."""
TWINS = (("torch", "cifar10"),)
"""Pairs that a model can hardly distinguish: the better one is chosen, and they are never reported as ambiguous."""
LOUDER = 1.5
"""A convention is louder than another if its values are this many times larger, as 0-255 than 0-1, or -1-1 than 0-1."""
FOR_GREY = frozenset({"mnist", "0-255-inverted", "0-1-inverted", "-1-1-inverted"})
"""Conventions that are tried only on grey images."""
GREY_LEVELS, GREY_SHARE = 2.0, 0.95
"""Largest mean difference between the channels of a grey image, and the share of such images in a grey sample."""
HOW_ELSE = "mean=M,std=S[,bgr] or FILE.py:FUNCTION"
SHOWN_NAMES = "0-1, -1-1, 0-255, caffe, torch or another of `kresume train --help`"
"""The conventions that an error message lists."""


def is_louder(one: str, other: str) -> bool:
    """Returns True if convention `one` gives clearly larger values than `other`.

    Most networks give more confident answers on larger values. The order of the channels is ignored, because a network
    that looks at shapes answers alike.
    """
    loud, quiet = find_affine(one), find_affine(other)
    if loud is None or quiet is None or (loud.unit > 0) != (quiet.unit > 0):
        return False
    sizes = [1.0 / (abs(each.unit) * max(each.std)) for each in (loud, quiet)]
    return sizes[0] >= LOUDER * sizes[1]


def of_bytes(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the conventions whose values are as large as bytes, whatever their channels and signs."""
    sizes = {name: find_affine(name) for name in names}
    return tuple(name for name, each in sizes.items() if each is not None and abs(each.unit) * max(each.std) == 1.0)


def louder_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs of conventions of which the first gives clearly larger values."""
    return [(one, other) for one in names for other in names if is_louder(one, other)]


def names_for(channels: int = 3, *, grey: bool = False) -> tuple[str, ...]:
    """Lists the conventions that a model may have been trained with, usual ones first.

    Args:
        channels: number of channels of the model's input.
        grey: True if the images have no colours, whatever the number of channels.
    """
    if channels == 1:
        return tuple(name for name, convention in TABLE.items() if not convention.needs_colours)
    if grey:
        return tuple(name for name in NAMES if name in USUAL or name in FOR_GREY)
    return tuple(name for name in NAMES if name not in FOR_GREY)


def are_grey(pictures: np.ndarray) -> bool:
    """Returns True if nearly all images, `(n, height, width, 3) uint8`, have no colours."""
    if pictures.shape[-1] == 1:
        return True
    levels = pictures.astype(np.int16)
    spread = (levels.max(axis=-1) - levels.min(axis=-1)).mean(axis=(1, 2))
    return bool(len(pictures) and (spread < GREY_LEVELS).mean() > GREY_SHARE)


def to_model_function(name: str) -> Callable[[Any], Any]:
    """Returns the function that converts images to the values that a model expects.

    Args:
        name: one of `NAMES`; `mean=M,std=S[,bgr]` (see `parse_statistics`); or `FILE.py:FUNCTION` for a user's own
            function that maps `(batch, height, width, channels) float32` to the same shape and type with TensorFlow
            operations.

    Returns:
        `(batch, height, width, channels)` uint8 or float32 in 0..255 -> float32 of the same shape; 1 channel for a
        model of grey images.

    Raises:
        UsageError: if the convention, file or function does not exist. The returned function raises it if the images
            have one channel and the convention needs three.
    """
    convention = find_affine(name)
    if convention is not None:
        return _with_colours(convention, convention.forward, name) if convention.needs_colours else convention.forward
    if ".py:" in name:
        return _load(name)
    raise UsageError(f"{option('pixels', name)}: use auto, {', '.join(NAMES)}, {HOW_ELSE}")


def to_picture_function(name: str) -> Callable[[Any], Any]:
    """Returns the inverse function: values of this convention -> values in 0..255.

    Raises:
        UsageError: if the convention does not exist, or is a user's own function.
    """
    convention = find_affine(name)
    if convention is None:
        raise UsageError(f"{name}: only {', '.join(NAMES)} and mean=M,std=S[,bgr] can be converted back to images")
    return _with_colours(convention, convention.back, name) if convention.needs_colours else convention.back


def find_affine(name: str) -> Affine | None:
    """Returns the arithmetic of a named convention or of `mean=M,std=S`; None for other text.

    Raises:
        UsageError: if the text begins with `mean=` or `std=` and cannot be parsed.
    """
    return TABLE.get(name) or (parse_statistics(name) if re.match(r"\s*(mean|std)\s*=", name) else None)


def parse_statistics(text: str) -> Affine:
    """Parses `mean=M,std=S[,bgr]`: one number each, or three in the model's channel order.

    The numbers refer to values in 0..1, as torchvision writes them. If one of them exceeds 1, they refer to 0..255.

        mean=0.4914,0.4822,0.4465,std=0.247,0.2435,0.2616
        mean=120.7,std=64.15
        mean=103.939,116.779,123.68,std=1,bgr             # the convention `caffe`

    Raises:
        UsageError: if the text has another form, or a std is 0.
    """
    parts = [part for part in re.split(r"[\s,;\[\]()]+", text.replace("=", "= ")) if part]
    numbers: dict[str, list[float]] = {}
    current, bgr = "", False
    for part in parts:
        if part in {"mean=", "std="} and part[:-1] not in numbers:
            current = part[:-1]
            numbers[current] = []
        elif part.lower() == "bgr" and not bgr:
            bgr, current = True, ""
        else:
            numbers.setdefault(current, []).append(_number(part, text))
    mean, std = tuple(numbers.get("mean", ())), tuple(numbers.get("std", ()))
    if set(numbers) != {"mean", "std"} or len(mean) not in {1, 3} or len(std) not in {1, 3} or 0.0 in std:
        raise _no_statistics(text)
    return Affine(1.0 if max(map(abs, mean + std)) > 1 else 255.0, mean, std, bgr)


def _number(part: str, text: str) -> float:
    try:
        value = float(part)
    except ValueError:
        raise _no_statistics(text) from None
    if not math.isfinite(value):
        raise _no_statistics(text)
    return value


def _no_statistics(text: str) -> UsageError:
    return UsageError(
        f"{option('pixels', text)}: mean and std need one number each or one per channel of the model, and std must not be 0, "
        "for example mean=0.5,std=0.5 or mean=103.9,116.8,123.7,std=1,bgr"
    )


def _with_colours(convention: Affine, function: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    """Wraps a convention of three channels so that it rejects images of one channel.

    Broadcasting would silently turn one channel into three.
    """

    def checked(images: Any) -> Any:
        if images.shape[-1] == 1:
            raise UsageError(
                f"{option('pixels', name)} is for images of three channels, but the model expects one channel: use "
                f"{_for_one_channel()}"
            )
        return function(images)

    return checked


def _for_one_channel() -> str:
    return f"{', '.join(names_for(1))} or mean=M,std=S"


def _load(name: str) -> Callable[[Any], Any]:
    file, _, function = name.rpartition(":")
    if not Path(file).is_file():
        raise UsageError(f"{option('pixels', name)}: the file {file} does not exist")
    spec = importlib.util.spec_from_file_location(f"kresume_pixels_{abs(hash(file))}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{option('pixels', name)}: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError(f"{option('pixels', name)}: {file} has no function {function}")
    return lambda images: found(_float(images))


def _float(images: Any) -> Any:
    import tensorflow as tf

    return tf.cast(images, tf.float32)


def _constant(numbers: tuple[float, ...]) -> Any:
    return numbers[0] if len(numbers) == 1 else numbers


def _shown(numbers: tuple[float, ...]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else str(list(numbers))
