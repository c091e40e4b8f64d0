"""What near-duplicates share: a difference hash and a thumbnail.

    hashes, thumbs = likeness(pictures)         # (n,) uint64, (n, 64) uint8

The hash is 64 bits: whether each of 8x8 areas is brighter than its right neighbour (Krawetz 2013, "Kind of Like That"). The
thumbnail is 8x8 grey levels. Both are means over areas, made by two small matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np


@cache
def _areas(parts: int, length: int) -> np.ndarray:
    """Weights that take the means of equal areas of a line, `(parts, length) float32`; pixels on a border count in part."""
    edges = np.arange(parts + 1) * (length / parts)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights: np.ndarray = (np.clip(overlap, 0, None) * (parts / length)).astype(np.float32)
    return weights


def likeness(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and thumbnails of decoded pictures.

    Of large pictures every second, third ... line and column is looked at, at least 64 of them: the means hardly differ.

    Args:
        pictures: each `(height, width, 3) uint8`, of one size.

    Returns:
        `(hashes (n,) uint64, thumbnails (n, 64) uint8)`, the first bit and level those of the upper left.
    """
    if not len(pictures):
        return np.zeros(0, np.uint64), np.zeros((0, 64), np.uint8)
    height, width, _ = pictures[0].shape
    down, across = max(1, height // 64), max(1, width // 64)
    lines = np.stack([picture[::down].reshape(-1, width * 3) for picture in pictures])
    rows = np.matmul(_areas(8, lines.shape[1]), lines.astype(np.float32))
    columns = np.matmul(rows, _grey_areas(width, across))
    nine, eight = columns[:, :, :9], columns[:, :, 9:]
    bits = (nine[:, :, 1:] < nine[:, :, :-1]).reshape(len(pictures), 64)
    hashes = np.packbits(bits, axis=1).view(">u8").reshape(len(pictures)).astype(np.uint64)
    return hashes, np.round(eight).astype(np.uint8).reshape(len(pictures), 64)


@cache
def _grey_areas(width: int, step: int) -> np.ndarray:
    """Weights that take the means of nine, and of eight, areas of a line of pixels in three colours, `(width * 3, 17)`.

    Of the pixels every `step`-th counts.
    """
    looked_at = np.arange(0, width, step)
    weights = np.zeros((width, 3, 17), np.float32)
    areas = np.concatenate([_areas(9, len(looked_at)), _areas(8, len(looked_at))])
    weights[looked_at] = areas.T[:, None, :] / 3
    return weights.reshape(width * 3, 17)
