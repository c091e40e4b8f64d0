"""Finds near-duplicates: images of the same picture saved twice, without comparing all pairs.

    pairs = near_pairs(thumbs, usable, is_new)       # (k, 2) rows, at least one of each pair new

Two images are near if their 8x8 thumbnails differ by at most `MAX_GREY` grey levels on average, after the mean of each
is subtracted and their contrasts are matched. In a drawing on an empty background most areas are equal in all images,
so this average would hide the difference between two white digits on black. If either image is such a drawing, the
difference may be at most `MAX_SHARE` of the contrast.

The search compares 64 bits: the signs of fixed random sums of the differences between neighbouring areas (Charikar
2002, "Similarity estimation techniques from rounding algorithms"). Copies differ in at most `MAX_BITS` of them,
whatever the contrast and however much is empty. Multi-index hashing finds the pairs among a million images (Norouzi,
Punjani, Fleet 2012, "Fast search in Hamming space with multi-index hashing"): the 64 bits are cut into six blocks, and
two images within four bits share at least two whole blocks. scripts/bench/near.py measures what is found and missed on
real images; the results are in docs/benchmarks.md.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from kresume.images.manifest import fixed_bytes
from kresume.images.order import permutation

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BITS = 4
MAX_GREY = 3.0
MAX_SHARE = 0.05
"""Largest difference of a drawing's copy, as a share of the contrast (RMS); a JPEG of quality 50 stays below 0.045."""
ROUNDING = 0.8
"""Grey levels that JPEG and rounding add to that difference, whatever the contrast."""
EMPTY_GREY, EMPTY_AREAS = 6, 8
"""An area is empty if all its neighbours are within `EMPTY_GREY` levels; a drawing has more than `EMPTY_AREAS`."""
MAX_GAIN = 1.25
FLAT_GREY = 2.0
"""An image is flat if its areas have a smaller standard deviation; its likeness means nothing."""

BLOCKS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))
"""(first bit, number of bits) of each block; four differing bits leave at least two of the six equal."""


def thumb_array(thumbs: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Converts a column of thumbnails to numpy arrays.

    Args:
        thumbs: a pyarrow column of 64 bytes each, some empty.

    Returns:
        `(grey levels (n, 64) uint8, (n,) bool)`; the second is False where a thumbnail is missing.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    present = compute.equal(compute.binary_length(thumbs), 64).to_numpy(zero_copy_only=False).astype(bool)
    if present.all():
        return fixed_bytes(thumbs, 64), present
    result = np.zeros((len(present), 64), np.uint8)
    result[present] = fixed_bytes(thumbs.filter(pa.array(present)), 64)
    return result, present


def near_pairs(thumbs: np.ndarray, usable: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """Finds every pair of near images of which at least one is new.

    Args:
        thumbs: `(n, 64) uint8`.
        usable: `(n,) bool`, False where a thumbnail is missing.
        is_new: `(n,) bool`, True for new images.

    Returns:
        `(pairs, 2) int64`, indices of the two images; each pair once, ascending.
    """
    likely = np.nonzero(usable & ~_flat(thumbs))[0]
    if not is_new[likely].any():
        return np.zeros((0, 2), np.int64)
    bits, new = search_bits(thumbs[likely]), is_new[likely]
    found = [_in_table(bits, new, one, other) for one, other in combinations(BLOCKS, 2)]
    pairs = np.unique(np.concatenate(found), axis=0)
    pairs = likely[pairs]
    kept = []
    for start in range(0, len(pairs), 2**18):
        part = pairs[start : start + 2**18]
        kept.append(part[are_near(thumbs[part[:, 0]], thumbs[part[:, 1]])])
    return np.concatenate(kept) if kept else np.zeros((0, 2), np.int64)


def search_bits(thumbs: np.ndarray) -> np.ndarray:
    """Returns the 64 bits by which near images are searched, `(n,) uint64`.

    The sums are integers below 2**24, so float32 gives the same bits on every machine.
    """
    sums = [thumbs[start : start + 2**16].astype(np.float32) @ _projections() for start in range(0, len(thumbs), 2**16)]
    packed = [np.packbits(part > 0, axis=1).view(">u8").ravel() for part in sums]
    return np.concatenate(packed).astype(np.uint64) if packed else np.zeros(0, np.uint64)


@cache
def _projections() -> np.ndarray:
    """Returns weights of the areas in 64 sums of neighbour differences, `(64, 64) float32`."""
    areas = np.arange(64).reshape(8, 8)
    beside = np.stack([areas[:, :-1].ravel(), areas[:, 1:].ravel()])
    below = np.stack([areas[:-1].ravel(), areas[1:].ravel()])
    first, second = np.concatenate([beside, below], axis=1)
    count = len(first)
    signs = np.stack([np.where(permutation(0, each, count) < count // 2, 1.0, -1.0) for each in range(64)], axis=1)
    weights = np.zeros((64, 64), np.float32)
    np.add.at(weights, first, signs)
    np.add.at(weights, second, -signs)
    return weights


def are_near(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compares thumbnails row by row, `(n,) bool`.

    The mean of each is subtracted, and the second is scaled to the contrast of the first.
    """
    a, b = (thumbs.astype(np.float32) for thumbs in (one, other))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    gain = np.clip((a * b).sum(axis=1) / np.maximum((b * b).sum(axis=1), 1e-6), 1 / MAX_GAIN, MAX_GAIN)
    difference = np.abs(a - gain[:, None] * b)
    limit = MAX_SHARE**2 * np.square(a).mean(axis=1) + ROUNDING**2
    near: np.ndarray = np.where(
        _partly_empty(one) | _partly_empty(other),
        np.square(difference).mean(axis=1) <= limit,
        difference.mean(axis=1) <= MAX_GREY,
    )
    return near


def _partly_empty(thumbs: np.ndarray) -> np.ndarray:
    """Tests which thumbnails show drawings on an empty background, `(n,) bool`."""
    areas = np.pad(thumbs.reshape(-1, 8, 8).astype(np.int16), ((0, 0), (1, 1), (1, 1)), mode="edge")
    middle = areas[:, 1:-1, 1:-1]
    empty = np.ones(middle.shape, bool)
    for down in range(3):
        for across in range(3):
            empty &= np.abs(middle - areas[:, down : down + 8, across : across + 8]) <= EMPTY_GREY
    result: np.ndarray = empty.sum(axis=(1, 2)) > EMPTY_AREAS
    return result


def _flat(thumbs: np.ndarray) -> np.ndarray:
    """Tests which images are flat, `(n,) bool`.

    Works in parts, because the sums need more memory than the grey levels.
    """
    parts = [thumbs[start : start + 2**16].std(axis=1) < FLAT_GREY for start in range(0, len(thumbs), 2**16)]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def _in_table(hashes: np.ndarray, new: np.ndarray, one: tuple[int, int], other: tuple[int, int]) -> np.ndarray:
    """Finds pairs within `MAX_BITS` whose two blocks are equal."""
    key = (_block(hashes, one) << np.uint64(other[1])) | _block(hashes, other)
    # Every pair includes a new image, so rows whose key no new image has are dropped: most recorded images.
    has_new = np.zeros(1 << (one[1] + other[1]), bool)
    has_new[key[new]] = True
    rows = np.nonzero(has_new[key])[0]
    rows = rows[np.argsort(key[rows], kind="stable")]
    key, value, fresh = key[rows], hashes[rows], new[rows]
    index = np.arange(len(rows) - 1)
    parts = []
    step = 1
    while len(index):
        index = index[index + step < len(rows)]
        index = index[key[index] == key[index + step]]
        close = np.bitwise_count(value[index] ^ value[index + step]) <= MAX_BITS
        chosen = index[close & (fresh[index] | fresh[index + step])]
        if len(chosen):
            parts.append(np.sort(np.stack([rows[chosen], rows[chosen + step]], axis=1), axis=1))
        step += 1
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)


def _block(hashes: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    first, bits = block
    return (hashes >> np.uint64(first)) & np.uint64((1 << bits) - 1)
