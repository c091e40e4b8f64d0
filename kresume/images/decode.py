"""Decodes image files to `(height, width, 3) uint8` for training, evaluation and export.

    spec = DecodeSpec(64, 64, "stretch", "area")
    picture = decode(data, spec)                      # checks limits; uses Pillow where TensorFlow cannot decode
    pixels(encoded, spec)                             # the same inside a TensorFlow graph

`pixels` consists of TensorFlow operations only, EXIF orientation included, so a served model sees the pixels that it
was trained on. The default interpolation, `"area"`, lets the JPEG decoder shrink by 2, 4 or 8 and averages areas for
the rest. It is as good as antialiasing at the speed of plain bilinear sampling (docs/benchmarks.md).

Sources: EXIF 2.3 (JEITA CP-3451C) defines the orientation tag. ISO/IEC 10918-1 (JPEG), the PNG 3 specification and the
WebP container specification define where it is stored.
"""

from __future__ import annotations

import importlib.util
import io
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.errors import ImagesError
from kresume.values.decode_spec import DecodeSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
LARGE_PIXELS = 16_000_000
ORIENTATION_TAG = 0x0112

_one_large_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Header:
    """Holds what a file states about its image before decoding.

    Attributes:
        width: stored width in pixels, before EXIF orientation.
        height: stored height in pixels, before EXIF orientation.
        format: Pillow's name of the format.
        exif: False if the file certainly states no orientation.
    """

    width: int
    height: int
    format: str
    exif: bool


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads an image's size and format without decoding it.

    Raises:
        ImagesError: if the format is unknown, the size is not positive, or there are more than `max_pixels` pixels.
    """
    with _open(data) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImagesError(f"{width:,} x {height:,} pixels are more than the limit of {max_pixels:,}")
        if width < 1 or height < 1:
            raise ImagesError(f"its header says {width} x {height} pixels")
        # Pillow has read everything before the pixels of a JPEG. Other formats may store EXIF data after the pixels.
        exif = "exif" in image.info if data.startswith(b"\xff\xd8\xff") else b"eXIf" in data or b"EXIF" in data
        return Header(width, height, image.format or "", exif)


def _open(data: bytes) -> Image:
    import PIL.Image

    if not data:
        raise ImagesError("the file is empty")
    _register_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning: `max_pixels` is checked instead, and raises
            return PIL.Image.open(io.BytesIO(data))
    except PIL.Image.DecompressionBombError as error:
        raise ImagesError(f"more pixels than any limit: {error}") from error
    except Exception as error:  # Pillow's readers raise arbitrary exceptions on broken headers
        raise ImagesError(_no_picture(data, error)) from error


def _no_picture(data: bytes, error: Exception) -> str:
    head = data[:32].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it holds a web page, not a picture"
    if data[4:8] == b"ftyp":
        if data[8:12] not in HEIF_BRANDS:
            return "it holds a film or sound, not a picture"
        if not _register_heif():
            return "a HEIC or AVIF picture, which needs the package pillow-heif: pip install 'kresume[heif]'"
    if data.startswith(b"\xff\xd8") and (bits := _jpeg_bits(data)) not in {None, 8}:
        return f"a JPEG of {bits} bits a channel, which no decoder here reads: save it again with 8"
    return f"no picture that can be read ({type(error).__name__})"


HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"})
"""Major brands of HEIC and AVIF files (ISO/IEC 23008-12, annex B; AV1 Image File Format, section 6)."""


@cache
def _register_heif() -> bool:
    """Registers HEIC and AVIF with Pillow; returns False if the extra `heif` is missing."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


def _jpeg_bits(data: bytes) -> int | None:
    """Reads the bits per sample from a JPEG's frame header; None if missing.

    Source: ISO/IEC 10918-1, B.2.2.
    """
    position = 2
    while position + 5 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            return data[position + 4]
        position += 2 + length
    return None


def decode(data: bytes, spec: DecodeSpec, header: Header | None = None) -> np.ndarray:
    """Decodes one image file and brings it to the spec's size.

    Args:
        data: the file's bytes.
        spec: the target size and how to reach it.
        header: the result of `read_header`, if it was called already.

    Returns:
        `(height, width, 3) uint8`.

    Raises:
        ImagesError: if the file cannot be decoded or exceeds the pixel limit. The message is the reason alone; the
            caller adds the path.
    """
    header = header or read_header(data)
    if header.width * header.height > LARGE_PIXELS:
        with _one_large_at_a_time:  # a 300 MB image in each of several threads would exhaust memory
            return _decode(data, spec, header)
    return _decode(data, spec, header)


def decode_many(
    contents: Sequence[bytes], spec: DecodeSpec, headers: Sequence[Header]
) -> list[np.ndarray | ImagesError]:
    """Decodes several image files, and those of the same kind in one call.

    A TensorFlow call costs as much as a third of a small image.

    Args:
        contents: the files' bytes.
        spec: the target size and how to reach it.
        headers: the result of `read_header` for each file.

    Returns:
        For each file its `(height, width, 3) uint8`, or the error that says why it cannot be decoded. The pixels are
        equal to those of `decode`.
    """
    import tensorflow as tf

    results: list[np.ndarray | ImagesError | None] = [None] * len(contents)
    alike: dict[tuple[bool, int, bool], list[int]] = {}
    for place, (data, header) in enumerate(zip(contents, headers, strict=True)):
        if header.width * header.height <= LARGE_PIXELS:
            alike.setdefault(_way(data, spec, header), []).append(place)
    for way, places in alike.items():
        try:
            # `stack` accepts the bytes directly and the memoryview copies nothing. `constant` and `numpy()` together
            # would cost a tenth of the decoding time.
            decoded = _many_function(spec, *way)(tf.stack([contents[place] for place in places]))
            pictures = np.asarray(memoryview(decoded))
        except tf.errors.InvalidArgumentError:
            continue  # at least one file is broken: decode each of them alone
        for place, picture in zip(places, pictures, strict=True):
            results[place] = picture
    return [
        _alone(contents[place], spec, headers[place]) if result is None else result
        for place, result in enumerate(results)
    ]


def _alone(data: bytes, spec: DecodeSpec, header: Header) -> np.ndarray | ImagesError:
    try:
        return decode(data, spec, header)
    except ImagesError as error:
        return error


def _way(data: bytes, spec: DecodeSpec, header: Header) -> tuple[bool, int, bool]:
    """Returns which graph decodes a file: `(exif, ratio, shrinks)`.

    `exif` tells it to read the orientation, `ratio` is the JPEG decoder's shrinking (0: not a JPEG), and `shrinks` is
    True if both axes certainly shrink.

    Decided before the call, the same operations are a third cheaper than if the graph decides.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return header.exif, 0, False
    if spec.interpolation != "area":
        return header.exif, 1, False
    room = min(header.height, header.width) // max(spec.height, spec.width)
    ratio = 8 if room >= 8 else 4 if room >= 4 else 2 if room >= 2 else 1
    fits = -(-header.height // ratio) >= spec.height and -(-header.width // ratio) >= spec.width
    return header.exif, ratio, fits and not header.exif and spec.resize == "stretch"


def _decode(data: bytes, spec: DecodeSpec, header: Header) -> np.ndarray:
    import tensorflow as tf

    try:
        return _tensorflow_pixels(data, spec, header)
    except tf.errors.InvalidArgumentError as tensorflow_error:
        try:
            array = _pillow_pixels(data)
        except ImagesError as pillow_error:
            raise pillow_error from tensorflow_error
        resized: np.ndarray = _array_function(spec)(tf.constant(array)).numpy()
        return resized


def _tensorflow_pixels(data: bytes, spec: DecodeSpec, header: Header) -> np.ndarray:
    import tensorflow as tf

    result: np.ndarray = _many_function(spec, *_way(data, spec, header))(tf.constant([data])).numpy()[0]
    return result


def as_served(data: bytes, spec: DecodeSpec) -> bytes:
    """Converts an image file so that a served model decodes it as in training.

    Args:
        data: the file's bytes, in any format that training reads.
        spec: the size to which the model will bring it.

    Returns:
        The same bytes if TensorFlow decodes them, else a PNG file of the full-size image.

    Raises:
        ImagesError: if the file cannot be decoded.
    """
    import PIL.Image
    import tensorflow as tf

    header = read_header(data)
    try:
        _tensorflow_pixels(data, spec, header)
    except tf.errors.InvalidArgumentError:
        file = io.BytesIO()
        PIL.Image.fromarray(_pillow_pixels(data)).save(file, "PNG")
        return file.getvalue()
    return data


def _pillow_pixels(data: bytes) -> np.ndarray:
    """Decodes with Pillow what TensorFlow cannot: TIFF, 1-bit BMP, animated WebP and others."""
    from PIL import ImageOps

    image = _open(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            if image.mode == "F":
                raise ImagesError(
                    "its pixels are floating-point numbers, whose range no one says: save it with 8 or 16 bits"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # 16 bits: keep the upper eight, as TensorFlow does for PNG.
                grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=-1)
            return np.asarray(upright.convert("RGB"))
    except ImagesError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ImagesError(f"it cannot be decoded ({type(error).__name__}: {error})") from error


@cache
def _many_function(spec: DecodeSpec, exif: bool, ratio: int, shrinks: bool) -> Callable[[Any], Any]:
    import tensorflow as tf

    def one(encoded: Any) -> Any:
        image = tf.io.decode_jpeg(encoded, channels=3, ratio=ratio) if ratio else _other(encoded)
        if exif:
            image = _oriented(image, orientation(encoded))
        return resize(image, spec, shrinks=shrinks)

    def function(encoded: Any) -> Any:
        out = tf.TensorSpec([spec.height, spec.width, 3], tf.uint8)
        return tf.map_fn(one, encoded, fn_output_signature=out, parallel_iterations=1)  # one full-size image at a time

    return _concrete(function, tf.TensorSpec([None], tf.string))


@cache
def _array_function(spec: DecodeSpec) -> Callable[[Any], Any]:
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


def webp_with_alpha(encoded: Any) -> Any:
    """Finds WebP files with alpha and without animation, `(n,) tf.string` -> `(n,) bool`.

    TensorFlow decodes such a file to four channels only. Never request four channels of an animated file: TensorFlow's
    decoder crashes the process. Source: the container's flags and the lossless header, RFC 9649, sections 2.7 and 3.4.
    """
    import tensorflow as tf

    padded = tf.strings.substr(tf.strings.join([encoded, " " * 32]), 0, 32)
    head = tf.reshape(tf.io.decode_raw(padded, tf.uint8), (-1, 32))

    def says(start: int, mark: bytes) -> Any:
        return tf.equal(tf.strings.substr(padded, start, len(mark)), mark)

    def bits(place: int, mask: int) -> Any:
        return tf.bitwise.bitwise_and(head[:, place], tf.constant(mask, tf.uint8))

    extended = says(12, b"VP8X") & tf.equal(bits(20, 0x12), 0x10)  # the alpha flag is set, the animation flag is not
    lossless = says(12, b"VP8L") & tf.equal(bits(24, 0x10), 0x10)
    return says(0, b"RIFF") & says(8, b"WEBP") & (extended | lossless)


def _other(encoded: Any) -> Any:
    import tensorflow as tf

    image = tf.cond(
        webp_with_alpha(encoded[None])[0],
        lambda: tf.io.decode_image(encoded, channels=4, expand_animations=False)[..., :3],
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    image.set_shape([None, None, 3])
    return image


def pixels(encoded: Any, spec: DecodeSpec, *, exif: bool = True) -> Any:
    """Decodes and resizes one image inside a TensorFlow graph.

    Args:
        encoded: scalar `tf.string` with a JPEG, PNG, GIF (first frame), BMP or WebP file.
        spec: the target size and how to reach it.
        exif: False skips the search for an orientation, for bytes that are known to have none.

    Returns:
        `(height, width, 3) uint8`.
    """
    import tensorflow as tf

    is_jpeg = tf.equal(tf.strings.substr(encoded, 0, 3), b"\xff\xd8\xff")

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
        image = _oriented(image, orientation(encoded))
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
        sides = tf.unstack(tf.raw_ops.PlaceholderWithDefault(input=tf.constant(target), shape=[2]))
        result = tf.cast(tf.image.resize_with_pad(image, *sides, method=method, antialias=smooth), tf.float32)
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


def orientation(encoded: Any) -> Any:
    """Reads the EXIF orientation of a JPEG, PNG or WebP file with TensorFlow operations.

    Returns:
        Scalar `int32` from 1 to 8; 1 if the file states no valid orientation.
    """
    import tensorflow as tf

    size = tf.strings.length(encoded)
    # The padding makes reads slightly past the end return zeros, so they need no bounds checks.
    data = tf.pad(tf.io.decode_raw(encoded, tf.uint8), [[0, 16]])

    def text(index: Any, length: int) -> Any:
        return tf.strings.substr(encoded, tf.clip_by_value(index, 0, size), length)

    def part(index: Any, count: int) -> Any:
        return tf.cast(tf.gather(data, tf.clip_by_value(index, 0, size) + tf.range(count)), tf.int32)

    def big(index: Any, count: int) -> Any:
        return tf.reduce_sum(part(index, count) * [256**place for place in reversed(range(count))])

    def little(index: Any, count: int) -> Any:
        return tf.reduce_sum(part(index, count) * [256**place for place in range(count)])

    # Walks the parts of a container. `found` is the offset of the TIFF header, 0 until it is found.
    def walk(start: int, step: Callable[[Any], tuple[Any, Any]]) -> Any:
        def body(position: Any, found: Any) -> tuple[Any, Any]:
            following, here = step(position)
            # A part of zero or negative length would make the walk endless.
            return tf.where(following > position, following, size), here

        _, found = tf.while_loop(
            lambda position, found: tf.logical_and(tf.equal(found, 0), position + 8 <= size),
            body,
            (tf.constant(start), tf.constant(0)),
        )
        return found

    def jpeg_part(position: Any) -> tuple[Any, Any]:
        is_exif = tf.logical_and(tf.equal(text(position, 2), b"\xff\xe1"), tf.equal(text(position + 4, 6), b"Exif\0\0"))
        marker = big(position, 2)
        ends = tf.logical_or(marker < 0xFF00, tf.equal(marker, 0xFFDA))
        return tf.where(ends, size, position + 2 + big(position + 2, 2)), tf.where(is_exif, position + 10, 0)

    def png_part(position: Any) -> tuple[Any, Any]:
        is_exif = tf.equal(text(position + 4, 4), b"eXIf")
        return position + 12 + big(position, 4), tf.where(is_exif, position + 8, 0)

    def webp_part(position: Any) -> tuple[Any, Any]:
        length = little(position + 4, 4)
        start = tf.where(tf.equal(text(position + 8, 6), b"Exif\0\0"), position + 14, position + 8)
        return position + 8 + length + length % 2, tf.where(tf.equal(text(position, 4), b"EXIF"), start, 0)

    kinds = [
        (tf.equal(text(tf.constant(0), 3), b"\xff\xd8\xff"), lambda: walk(2, jpeg_part)),
        (tf.equal(text(tf.constant(0), 4), b"\x89PNG"), lambda: walk(8, png_part)),
        (tf.equal(text(tf.constant(8), 4), b"WEBP"), lambda: walk(12, webp_part)),
    ]
    tiff = tf.case(kinds, default=lambda: 0)

    def read_tag() -> Any:
        is_little = tf.equal(text(tiff, 2), b"II")

        def number(index: Any, count: int) -> Any:
            ordered = part(index, count)
            ordered = tf.where(is_little, ordered[::-1], ordered)
            return tf.reduce_sum(ordered * [256**place for place in reversed(range(count))])

        directory = tiff + number(tiff + 4, 4)
        entries = tf.clip_by_value(number(directory, 2), 0, 256)

        def entry(index: Any, found: Any) -> tuple[Any, Any]:
            start = directory + 2 + 12 * index
            return index + 1, tf.where(tf.equal(number(start, 2), ORIENTATION_TAG), number(start + 8, 2), found)

        _, value = tf.while_loop(
            lambda index, found: tf.logical_and(index < entries, tf.equal(found, 0)),
            entry,
            (tf.constant(0), tf.constant(0)),
        )
        return tf.where(tf.logical_and(value >= 1, value <= 8), value, 1)

    return tf.cond(tiff > 0, read_tag, lambda: 1)


def _oriented(image: Any, value: Any) -> Any:
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
