"""Makes the small pictures of a page: each once, as a data URI, within a budget of bytes.

shown = read_pictures(rows, reader, budget=1_500_000)
shown[4].uri            # "data:image/webp;base64,..."
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kresume.images.reader import PictureReader

BUDGET = 1_700_000
"""Characters of all data URIs of a page."""
LARGE, SMALL = 96, 64
"""Pixels of the longer side, for few and for many pictures."""
FEW = 320
PART = 32
QUALITY = 72
SECONDS = 10.0
"""Time for pictures that are not in the cache; the others are named without one."""
NO_ROOM = "no room for more pictures in this file"


@dataclass(frozen=True)
class Picture:
    """A small picture, or the reason why there is none.

    Attributes:
        uri: a data URI; empty if there is none.
        reason: why; empty if there is one.
    """

    uri: str = ""
    reason: str = ""


def read_pictures(
    rows: Sequence[int],
    reader: PictureReader | None,
    *,
    budget: int = BUDGET,
    clock: Callable[[], float] = time.monotonic,
) -> list[Picture]:
    """Reads and encodes the pictures of these manifest rows, in order, until the budget is used up.

    Args:
        rows: the most important first; -1 for an image that the table does not have.
        reader: None if the table of images cannot be read.
        budget: the most characters of all data URIs.
        clock: the time in seconds.
    """
    if reader is None:
        return [Picture(reason="the table of images cannot be read")] * len(rows)
    found: list[Picture] = []
    side = LARGE if len(rows) <= FEW else SMALL
    start = clock()
    for at in range(0, len(rows), PART):
        part = np.array(rows[at : at + PART])
        if budget <= 0 or clock() - start > SECONDS:
            reason = NO_ROOM if budget <= 0 else "not read, because reading the others took long"
            found += [Picture(reason=reason)] * len(part)
            continue
        pictures, broken = reader.attempt(np.maximum(part, 0))
        for index, row in enumerate(part.tolist()):
            if row < 0:
                found.append(Picture(reason="the run's table of images no longer has it"))
            elif index in broken:
                found.append(Picture(reason=broken[index]))
            else:
                uri = encode(pictures[index], side)
                budget -= len(uri)
                found.append(Picture(uri) if budget > 0 else Picture(reason=NO_ROOM))
    return found


def encode(picture: np.ndarray, side: int) -> str:
    """Encodes a picture as a data URI, shrunk to at most `side` pixels.

    Args:
        picture: `(height, width, 3) uint8`.
        side: the longer side in pixels; a smaller picture keeps its size.
    """
    from PIL import Image, features

    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.BOX)
    file, kind = io.BytesIO(), "webp" if features.check("webp") else "jpeg"
    image.save(file, kind.upper(), quality=QUALITY, **({"method": 2} if kind == "webp" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
