"""Reads the size and format of an image file from its header.

    header = read_header(data)          # raises ImagesError with the reason
    header.width, header.format

Pillow reads the header; the pixels are not decoded.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from kresume.errors import ImagesError
from kresume.images.containers import JPEG_MARK, jpeg_bits

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
IMAGE_WIDTH, IMAGE_LENGTH = 256, 257
"""Tags of a TIFF."""


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
    with open_picture(data) as image:
        width, height = stored_size(image)
        if width * height > max_pixels:
            raise ImagesError(f"{width:,} x {height:,} pixels are more than the limit of {max_pixels:,}")
        if width < 1 or height < 1:
            raise ImagesError(f"its header states {width} x {height} pixels")
        # Pillow has read everything before the pixels of a JPEG. Other formats may store EXIF data after the pixels.
        exif = "exif" in image.info if data.startswith(JPEG_MARK) else b"eXIf" in data or b"EXIF" in data
        return Header(width, height, image.format or "", exif)


def stored_size(image: Image) -> tuple[int, int]:
    """Returns width and height in pixels before EXIF orientation.

    Pillow swaps those of a TIFF when it opens the file.
    """
    if image.format != "TIFF":
        return image.size
    width, height = (image.tag_v2[tag] for tag in (IMAGE_WIDTH, IMAGE_LENGTH))  # type: ignore[attr-defined]
    return width, height


def open_picture(data: bytes) -> Image:
    """Opens an image file with Pillow, without decoding it.

    Raises:
        ImagesError: if Pillow does not know the format; the message is the reason.
    """
    import PIL.Image

    if not data:
        raise ImagesError("the file is empty")
    _register_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning: `max_pixels` is checked instead, and raises
            return PIL.Image.open(io.BytesIO(data))
    except PIL.Image.DecompressionBombError as error:
        raise ImagesError(f"it has too many pixels: {error}") from error
    except Exception as error:  # Pillow's readers raise arbitrary exceptions on broken headers
        raise ImagesError(_no_picture(data, error)) from error


def _no_picture(data: bytes, error: Exception) -> str:
    head = data[:32].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not an image"
    if data[4:8] == b"ftyp":
        if data[8:12] not in HEIF_BRANDS:
            return "it is a video or audio file, not an image"
        if not _register_heif():
            return "a HEIC or AVIF image, which requires the package pillow-heif: pip install 'kresume[heif]'"
    if data.startswith(b"\xff\xd8") and (bits := jpeg_bits(data)) not in {None, 8}:
        return (
            f"a JPEG of {bits} bits per channel, which TensorFlow and Pillow cannot decode: save it again with 8 bits"
        )
    return f"it is not an image that can be read ({type(error).__name__})"


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
