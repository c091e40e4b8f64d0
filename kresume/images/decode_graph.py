"""Decodes, turns and resizes images inside a TensorFlow graph.

    pixels(encoded, spec)                             # scalar tf.string -> (height, width, 3) uint8
    decoder(spec, True, 2, False)(contents)           # (n,) tf.string -> (n, height, width, 3) uint8

Training and served models run the same operations. The default interpolation, `"area"`, lets the JPEG decoder shrink
by 2, 4 or 8 and averages areas for the rest. It is as good as antialiasing at the speed of plain bilinear sampling
(docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from kresume.images.containers import (
    GIF_MARK,
    JPEG_MARK,
    full_frame,
    has_palette,
    looked_up,
    orientation,
    webp_with_alpha,
)
from kresume.values.decode_spec import DecodeSpec


def pixels(encoded: Any, spec: DecodeSpec, *, exif: bool = True) -> Any:
    """Decodes and resizes one image inside a TensorFlow graph.

    Args:
        encoded: scalar `tf.string` with a JPEG, PNG, GIF (first frame, if it is the whole screen), BMP or WebP file.
        spec: the target size and how to reach it.
        exif: False skips the search for an orientation, for bytes that are known to have none.

    Returns:
        `(height, width, 3) uint8`.
    """
    import tensorflow as tf

    is_jpeg = tf.equal(tf.strings.substr(encoded, 0, 3), JPEG_MARK)

    def jpeg() -> Any:
        # Only averaging allows the decoder's own, cheaper averaging by 2, 4 or 8.
        if spec.interpolation != "area":
            return tf.io.decode_jpeg(encoded, channels=3)
        shape = tf.io.extract_jpeg_shape(encoded)
        # Either orientation must leave at least the target size, so compare the image's shorter axis with the target's
        # longer one.
        room = tf.minimum(shape[0], shape[1]) // max(spec.height, spec.width)
        branch = tf.cast(room >= 2, tf.int32) + tf.cast(room >= 4, tf.int32) + tf.cast(room >= 8, tf.int32)
        ratios = [lambda ratio=ratio: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio) for ratio in (1, 2, 4, 8)]
        return tf.switch_case(branch, ratios)

    image = tf.cond(is_jpeg, jpeg, lambda: _other(encoded))
    if exif:
        image = _upright(image, orientation(encoded))
    return resize(image, spec)


def resize(image: Any, spec: DecodeSpec, *, shrinks: bool = False) -> Any:
    """Brings an image `(height, width, 3) uint8` to the spec's size, with TensorFlow operations.

    Args:
        image: the decoded image.
        spec: the target size and how to reach it.
        shrinks: True if both axes are known to be at least as long as the target; omits that check from the graph.

    Returns:
        `(spec.height, spec.width, 3) uint8`.
    """
    import tensorflow as tf

    target = (spec.height, spec.width)
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    if spec.resize == "crop":
        # The largest centred region with the target's aspect ratio.
        crop_height = tf.maximum(tf.minimum(height, width * spec.height // spec.width), 1)
        crop_width = tf.maximum(tf.minimum(width, height * spec.width // spec.height), 1)
        image = tf.image.crop_to_bounding_box(
            image, (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
        )
        fitted: Any = target
    elif spec.resize == "pad":
        scale = tf.minimum(spec.height / height, spec.width / width)
        fitted = (
            tf.clip_by_value(tf.cast(tf.round(tf.cast(height, tf.float64) * scale), tf.int32), 1, spec.height),
            tf.clip_by_value(tf.cast(tf.round(tf.cast(width, tf.float64) * scale), tf.int32), 1, spec.width),
        )
    else:
        fitted = target
    if spec.resize == "keraspad":
        smooth = spec.interpolation == "antialias"
        method = "bilinear" if smooth else spec.interpolation.removeprefix("keras")
        # Hides the sizes from the graph optimizer: it would turn a division by a constant into a product, which rounds
        # differently.
        lengths = tf.unstack(tf.raw_ops.PlaceholderWithDefault(input=tf.constant(target), shape=[2]))
        result = tf.cast(tf.image.resize_with_pad(image, *lengths, method=method, antialias=smooth), tf.float32)
    else:
        result = _interpolate(image, fitted, spec.interpolation, shrinks)
    # Means stay within 0 to 255, but cubic and Lanczos kernels exceed both ends.
    result = tf.cast(tf.clip_by_value(tf.round(result), 0, 255), tf.uint8)
    if spec.resize == "pad":
        result = tf.image.pad_to_bounding_box(
            result, (spec.height - fitted[0]) // 2, (spec.width - fitted[1]) // 2, spec.height, spec.width
        )
    return tf.ensure_shape(result, (spec.height, spec.width, 3))


def _interpolate(image: Any, size: Any, interpolation: str, shrinks: bool) -> Any:
    import tensorflow as tf

    size = tf.stack(size)
    if interpolation not in {"area", "antialias"}:
        return tf.cast(tf.image.resize(image, size, method=interpolation.removeprefix("keras")), tf.float32)
    if interpolation == "antialias":
        return tf.image.resize(image, size, method="bilinear", antialias=True)
    if shrinks:
        return tf.image.resize(image, size, method="area")
    shape = tf.shape(image)[:2]
    return tf.cond(
        tf.reduce_all(shape >= size),
        lambda: tf.image.resize(image, size, method="area"),
        # Area resizing would enlarge pixels to squares. Antialiasing still averages along an axis that shrinks.
        lambda: tf.image.resize(image, size, method="bilinear", antialias=True),
    )


def _other(encoded: Any) -> Any:
    import tensorflow as tf

    def plain() -> Any:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return tf.cond(has_palette(encoded), lambda: looked_up(encoded, image), lambda: image)

    def gif() -> Any:
        # Fails unless the first frame is the whole picture: TensorFlow would cut it, move it or add black.
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return tf.reshape(image, tf.concat([full_frame(encoded), [3]], 0))

    def other() -> Any:
        return tf.cond(tf.equal(tf.strings.substr(encoded, 0, len(GIF_MARK)), GIF_MARK), gif, plain)

    image = tf.cond(
        webp_with_alpha(encoded[None])[0],
        lambda: tf.io.decode_image(encoded, channels=4, expand_animations=False)[..., :3],
        other,
    )
    image.set_shape([None, None, 3])
    return image


def _upright(image: Any, value: Any) -> Any:
    """Rotates and mirrors an image as its EXIF orientation requires."""
    import tensorflow as tf

    def turned(transpose: bool, flip_rows: bool, flip_columns: bool) -> Any:
        result = tf.transpose(image, (1, 0, 2)) if transpose else image
        if flip_rows:
            result = tf.reverse(result, [0])
        return tf.reverse(result, [1]) if flip_columns else result

    # (transpose, flip rows, flip columns) for the orientations 1 to 8.
    turns = [
        (False, False, False),
        (False, False, True),
        (False, True, True),
        (False, True, False),
        (True, False, False),
        (True, False, True),
        (True, True, True),
        (True, True, False),
    ]
    return tf.switch_case(value - 1, [lambda turn=turn: turned(*turn) for turn in turns])


@cache
def decoder(spec: DecodeSpec, exif: bool, ratio: int, shrinks: bool) -> Callable[[Any], Any]:
    """Returns the traced function that decodes a batch of files of the same kind.

    Args:
        spec: the target size and how to reach it.
        exif: True reads the files' EXIF orientation.
        ratio: by how much the JPEG decoder shrinks: 1, 2, 4 or 8; 0 for files that are no JPEG.
        shrinks: see `resize`.

    Returns:
        `(n,) tf.string` -> `(n, height, width, 3) uint8`.
    """
    import tensorflow as tf

    def one(encoded: Any) -> Any:
        image = tf.io.decode_jpeg(encoded, channels=3, ratio=ratio) if ratio else _other(encoded)
        if exif:
            image = _upright(image, orientation(encoded))
        return resize(image, spec, shrinks=shrinks)

    def function(encoded: Any) -> Any:
        out = tf.TensorSpec([spec.height, spec.width, 3], tf.uint8)
        return tf.map_fn(one, encoded, fn_output_signature=out, parallel_iterations=1)  # one full-size image at a time

    return _concrete(function, tf.TensorSpec([None], tf.string))


@cache
def resizer(spec: DecodeSpec) -> Callable[[Any], Any]:
    """Returns the traced function that resizes one decoded image, as `resize` does."""
    import tensorflow as tf

    return _concrete(lambda array: resize(array, spec), tf.TensorSpec([None, None, 3], tf.uint8))


def _concrete(function: Callable[[Any], Any], spec: Any) -> Callable[[Any], Any]:
    """Traces a function once.

    TensorFlow counts the functions of all specs as one function, and would warn about too many retraces.
    """
    import tensorflow as tf

    traced: Callable[[Any], Any] = tf.function(
        function, input_signature=[spec], autograph=False
    ).get_concrete_function()
    return traced
