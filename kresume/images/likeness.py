"""Computes a difference hash and a thumbnail of each picture, to find near-duplicates.

    hashes, thumbs = likeness(pictures)         # (n,) uint64, (n, 64) uint8

The hash has 64 bits: each tells if one of 8x8 areas is brighter than its right neighbour (Krawetz 2013, "Kind of Like
That"). The thumbnail has 8x8 grey levels. Both are means over areas, computed by two small matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np


@cache
def _areas(parts: int, length: int) -> np.ndarray:
    """Returns `(parts, length) float32` weights that average a line over equal areas.

    A pixel on a border counts in proportion to its overlap.
    """
    edges = np.arange(parts + 1) * (length / parts)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights: np.ndarray = (np.clip(overlap, 0, None) * (parts / length)).astype(np.float32)
    return weights


def likeness(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Computes hashes and thumbnails of decoded pictures.

    Large pictures are subsampled: every second, third, ... row and column, at least 64 of each; the means hardly
    differ.

    Args:
        pictures: each `(height, width, 3) uint8`, all of one size.

    Returns:
        `(hashes (n,) uint64, thumbnails (n, 64) uint8)`; the first bit and the first grey level are those of the upper
        left.
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
    """Returns weights that average a line of RGB pixels over equal areas.

    The shape is `(width * 3, 17)`: nine areas, then eight. Only every `step`-th pixel counts.
    """
    looked_at = np.arange(0, width, step)
    weights = np.zeros((width, 3, 17), np.float32)
    areas = np.concatenate([_areas(9, len(looked_at)), _areas(8, len(looked_at))])
    weights[looked_at] = areas.T[:, None, :] / 3
    return weights.reshape(width * 3, 17)
