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
    down, across = (max(1, side // 64) for side in pictures[0].shape[:2])
    small = np.stack([picture[::down, ::across] for picture in pictures])
    count, height, width, _ = small.shape
    lines = small.reshape(count, height, width * 3).astype(np.float32)
    rows = np.matmul(_areas(8, height), lines).reshape(count, 8, width, 3).mean(axis=3)
    nine, eight = np.matmul(rows, _areas(9, width).T), np.matmul(rows, _areas(8, width).T)
    bits = (nine[:, :, 1:] < nine[:, :, :-1]).reshape(count, 64)
    hashes = np.packbits(bits, axis=1).view(">u8").reshape(count).astype(np.uint64)
    return hashes, np.round(eight).astype(np.uint8).reshape(count, 64)
