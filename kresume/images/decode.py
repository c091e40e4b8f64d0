"""Decodes image files to `(height, width, 3) uint8` for training, evaluation and export.

    spec = DecodeSpec(64, 64, "stretch", "area")
    picture = decode(data, spec)                      # checks limits; uses Pillow where TensorFlow cannot decode
    as_served(data, spec)                             # the file that a served model decodes to the same picture

The pixels come from `decode_graph`, which consists of TensorFlow operations only, EXIF orientation included. So a served
model sees the pixels that it was trained on.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from kresume.errors import ImagesError
from kresume.images.containers import JPEG_MARK
from kresume.images.decode_graph import decoder, resizer
from kresume.images.headers import Header, open_picture, read_header, stored_size
from kresume.images.manifest import Manifest
from kresume.storage.damage import reason
from kresume.values.decode_spec import DecodeSpec

LARGE_PIXELS = 16_000_000

_one_large_at_a_time = threading.Lock()


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
    for index, (data, header) in enumerate(zip(contents, headers, strict=True)):
        if header.width * header.height <= LARGE_PIXELS:
            alike.setdefault(_way(data, spec, header), []).append(index)
    for way, indices in alike.items():
        try:
            # `stack` accepts the bytes directly and the memoryview copies nothing. `constant` and `numpy()` together
            # would cost a tenth of the decoding time.
            decoded = decoder(spec, *way)(tf.stack([contents[index] for index in indices]))
            pictures = np.asarray(memoryview(decoded))
        except tf.errors.InvalidArgumentError:
            continue  # at least one file is broken: decode each of them alone
        for index, picture in zip(indices, pictures, strict=True):
            results[index] = picture
    return [
        _alone(contents[index], spec, headers[index]) if result is None else result
        for index, result in enumerate(results)
    ]


def _alone(data: bytes, spec: DecodeSpec, header: Header) -> np.ndarray | ImagesError:
    try:
        return decode(data, spec, header)
    except ImagesError as error:
        return error


def shrinks_some(manifest: Manifest, spec: DecodeSpec) -> bool:
    """Returns True if pictures of a manifest are JPEGs that shrink while they are decoded."""
    if spec.interpolation != "area":
        return False
    sizes, formats = (manifest.table.column(name).to_numpy() for name in ("height", "format"))
    sides = np.minimum(sizes, manifest.table.column("width").to_numpy())
    return bool((sides[formats == "JPEG"] >= 2 * max(spec.height, spec.width)).any())


def _way(data: bytes, spec: DecodeSpec, header: Header) -> tuple[bool, int, bool]:
    """Returns which graph decodes a file: `(exif, ratio, shrinks)`.

    `exif` tells it to read the orientation, `ratio` is the JPEG decoder's shrinking (0: not a JPEG), and `shrinks` is
    True if both axes certainly shrink.

    Decided before the call, the same operations are a third cheaper than if the graph decides.
    """
    if not data.startswith(JPEG_MARK):
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
        resized: np.ndarray = resizer(spec)(tf.constant(array)).numpy()
        return resized


def _tensorflow_pixels(data: bytes, spec: DecodeSpec, header: Header) -> np.ndarray:
    import tensorflow as tf

    result: np.ndarray = decoder(spec, *_way(data, spec, header))(tf.constant([data])).numpy()[0]
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


def _check_strips(image: Any) -> None:
    """Checks that the strips of a TIFF cover the picture.

    Pillow makes the rows black that an uncompressed file lacks.

    Raises:
        ImagesError: they do not.
    """
    width, height = stored_size(image)
    right, below = (max((extent[side] for _, extent, *_ in image.tile), default=0) for side in (2, 3))
    if right < width or below < height:
        raise ImagesError(f"it is damaged: it says {width}x{height} pixels and holds {right}x{below} of them")


def _first_frame(image: Any) -> np.ndarray:
    """Returns the first frame of a GIF on its screen.

    Transparent pixels are black, as TensorFlow decodes them.
    """
    pixels = np.array(image.convert("RGBA"))
    pixels[pixels[..., 3] == 0] = 0
    return pixels[..., :3]


def _pillow_pixels(data: bytes) -> np.ndarray:
    """Decodes with Pillow what TensorFlow cannot: TIFF, 1-bit BMP, animated WebP, some GIFs and others."""
    from PIL import ImageOps

    image = open_picture(data)
    if image.format == "TIFF":
        _check_strips(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            if image.mode == "F":
                raise ImagesError(
                    "its pixels are floating-point numbers, whose range is unknown: save it with 8 or 16 bits per channel"
                )
            if image.format == "GIF":
                return _first_frame(image)
            # Pillow has turned a TIFF as it was loaded and removed its orientation: this does not turn it again.
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # 16 bits: keep the upper eight, as TensorFlow does for PNG.
                grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=-1)
            return np.asarray(upright.convert("RGB"))
    except ImagesError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ImagesError(f"it cannot be decoded ({reason(error)})") from error
