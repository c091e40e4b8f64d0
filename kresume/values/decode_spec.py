"""Defines `DecodeSpec`: the size, resize mode and interpolation of decoded pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from kresume.errors import UsageError
from kresume.spelling import option

VERSION = 3
"""Version of the decoded pixels, part of the cache key. Increase it if the same bytes decode to other pixels."""

Resize = Literal["stretch", "crop", "pad", "keraspad"]
Interpolation = Literal[
    "area",
    "bilinear",
    "antialias",
    "nearest",
    "kerasarea",
    "bicubic",
    "lanczos3",
    "lanczos5",
    "gaussian",
    "mitchellcubic",
]
RESIZES: tuple[Resize, ...] = get_args(Resize)
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)


@dataclass(frozen=True)
class DecodeSpec:
    """Specifies the size, resize mode and interpolation of decoded images.

    Attributes:
        height: target height in pixels.
        width: target width in pixels.
        resize: `"stretch"` ignores the aspect ratio, `"crop"` first crops the centre to the target's aspect ratio,
            `"pad"` adds black borders, and `"keraspad"` pads as `image_dataset_from_directory` does, whose borders are
            rounded another way.
        interpolation: `"area"` averages areas after a JPEG has shrunk as it is decoded, and is bilinear where an image is
            enlarged; `"kerasarea"` averages areas of the whole image always, as `image_dataset_from_directory` does with its
            `"area"`; `"antialias"` is bilinear with antialiasing. Other values are methods of `tf.image.resize`. Keras's
            default is `"bilinear"`.

    Raises:
        UsageError: if a value is not supported.
    """

    height: int
    width: int
    resize: str = "stretch"
    interpolation: str = "area"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UsageError(f"an image size is at least 1x1, got {self.height}x{self.width}")
        if self.resize not in RESIZES:
            raise UsageError(f"{option('resize', self.resize)}: use {', '.join(RESIZES)}")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"{option('interpolation', self.interpolation)}: use {', '.join(INTERPOLATIONS)}")

    @property
    def key(self) -> str:
        """Returns the name of this spec in the cache."""
        return f"v{VERSION}-{self.height}x{self.width}-{self.resize}-{self.interpolation}"


def spec_of_key(key: str) -> DecodeSpec | None:
    """Parses a cache key of any version; returns None for other text."""
    found = re.fullmatch(r"v\d+-(\d+)x(\d+)-([a-z]+)-([a-z0-9]+)", key)
    if found is None:
        return None
    if found[3] not in RESIZES or found[4] not in INTERPOLATIONS:
        return None
    return DecodeSpec(int(found[1]), int(found[2]), found[3], found[4])
