"""Converts images to a model's input and back: colours, pixel convention, axis order.

    to_model = to_input("0-1", InputLayout(channels=1, axes="hw", flat=True))
    to_model(pictures)            # (batch, height, width, 3) in 0..255 -> (batch, height * width) float32
    to_pictures("0-1", layout, (28, 28))(values)

The conversions are TensorFlow operations. Training, probing, evaluation and the exported graph all use `to_input`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kresume.errors import UsageError
from kresume.images import conventions
from kresume.spelling import option
from kresume.values.input_layout import RGB, InputLayout

RED, GREEN, BLUE = 299.0, 587.0, 114.0
"""Thousandths of brightness (ITU-R BT.601), with which libjpeg and libpng decode a file as grey."""


def to_input(pixels: str, layout: InputLayout) -> Callable[[Any], Any]:
    """Returns the function that converts images to a model's input.

    Args:
        pixels: the convention, see `conventions.to_model_function`.
        layout: the layout of the model's input.

    Returns:
        `(batch, height, width, 3)` uint8 or float32 in 0..255 -> `(batch, *layout.shape((height, width))) float32`.

    Raises:
        UsageError: if the convention does not exist, or needs RGB images and the model expects grey ones.
    """
    check_convention(pixels, layout)
    convert = conventions.to_model_function(pixels)
    if layout == RGB:
        return convert
    return lambda pictures: _arranged(convert(grey(pictures) if layout.channels == 1 else pictures), layout)


def to_pictures(pixels: str, layout: InputLayout, size: tuple[int, int]) -> Callable[[Any], Any]:
    """Returns the function that converts a model's input back to images.

    Args:
        pixels: the convention.
        layout: the layout of the model's input.
        size: `(height, width)`, needed if the layout is flat.

    Returns:
        The model's input -> `(batch, height, width, 3) float32` in 0..255.

    Raises:
        UsageError: if the convention cannot be inverted.
    """
    check_convention(pixels, layout)
    convert = conventions.to_picture_function(pixels)
    return lambda values: as_rgb(convert(_channels_last(values, layout, size)))


def check_convention(pixels: str, layout: InputLayout) -> None:
    """Raises if a convention needs colours and the model expects grey images.

    Raises:
        UsageError: if it does.
    """
    convention = conventions.find_affine(pixels)
    if layout.channels == 1 and convention is not None and convention.needs_colours:
        raise UsageError(
            f"{option('pixels', pixels)} is for RGB images, but the model expects grey images: use "
            f"{', '.join(conventions.names_for(1))} or mean=M,std=S"
        )


def grey(pictures: Any) -> Any:
    """Converts `(..., height, width, 3)` in 0..255 to grey images of whole numbers.

    A pixel with equal channels keeps its value. The sums are exact in float32, so every runtime rounds alike.

    Returns:
        `(..., height, width, 1) float32`.
    """
    import tensorflow as tf

    return tf.floor((_thousandths(pictures) + 500.5) / 1000.0)


def brightness(pictures: Any) -> Any:
    """Returns the values that `grey` rounds, for a user's own pipeline.

    A pixel with equal channels keeps its value.
    """
    return _thousandths(pictures) / 1000.0


def _thousandths(pictures: Any) -> Any:
    import tensorflow as tf

    red, green, blue = (tf.cast(pictures[..., index : index + 1], tf.float32) for index in range(3))
    return red * RED + green * GREEN + blue * BLUE


def as_rgb(pictures: Any) -> Any:
    """Returns images with three channels; those of grey images are equal."""
    import tensorflow as tf

    return tf.concat([pictures] * 3, axis=-1) if pictures.shape[-1] == 1 else pictures


def _arranged(values: Any, layout: InputLayout) -> Any:
    """Brings `(batch, height, width, channels)` into the layout's axis order and shape."""
    import tensorflow as tf

    values = tf.convert_to_tensor(values)
    ordered = _transposed(values, "hwc", layout.axes if "c" in layout.axes else f"{layout.axes}c")
    shape = ordered.shape[1:] if "c" in layout.axes else ordered.shape[1:-1]
    if layout.flat:
        count = shape.num_elements()
        return tf.reshape(ordered, (-1, count)) if count else tf.reshape(ordered, (tf.shape(ordered)[0], -1))
    return ordered if "c" in layout.axes else ordered[..., 0]


def _channels_last(values: Any, layout: InputLayout, size: tuple[int, int]) -> Any:
    """Reverses `_arranged`."""
    import tensorflow as tf

    values = tf.reshape(values, (-1, *layout.sides(size))) if layout.flat else tf.convert_to_tensor(values)
    if "c" not in layout.axes:
        return _transposed(values[..., None], f"{layout.axes}c", "hwc")
    return _transposed(values, layout.axes, "hwc")


def _transposed(values: Any, axes: str, wanted: str) -> Any:
    import tensorflow as tf

    return values if axes == wanted else tf.transpose(values, (0, *(1 + axes.index(axis) for axis in wanted)))
