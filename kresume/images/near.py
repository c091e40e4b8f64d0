"""Near-duplicates: pictures that are one picture saved twice, found among a million without comparing each with each.

    pairs = near_pairs(phash, thumbs, is_new)       # (k, 2) rows, at least one of each pair new

Two pictures are near when their difference hashes differ in at most `MAX_BITS` of 64 bits, and their 8x8 thumbnails, each
less its own mean and brought to one contrast, by at most `MAX_GREY` grey levels on average. The hash alone would be wrong: on
1,473 photographs of hands before one background 230 pairs lie within 4 bits, 102 of them different signs; none of these is
within 3 grey levels. Copies saved again at JPEG quality 50, at half the size, or 1.1 times as bright are all found; of copies
cut by 2 % on each side one in seven (scripts/bench/near.py).

The search is multi-index hashing (Norouzi, Punjani, Fleet 2012, "Fast search in Hamming space with multi-index hashing"):
64 bits cut into six blocks, of which two pictures within four bits share at least two whole ones.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from kresume.images.manifest import fixed_bytes

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BITS = 4
MAX_GREY = 3.0
MAX_GAIN = 1.25
FLAT_GREY = 2.0
"""A picture whose areas vary less is flat: it has no likeness that would mean anything."""

BLOCKS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))
"""(first bit, bits): one more than two blocks stay whole when four bits differ."""


def thumb_array(thumbs: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The thumbnails of a table's column as numbers.

    Args:
        thumbs: a pyarrow column of 64 bytes each, some empty.

    Returns:
        `(grey levels (n, 64) uint8, whether there is one (n,) bool)`.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    present = compute.equal(compute.binary_length(thumbs), 64).to_numpy(zero_copy_only=False).astype(bool)
    if present.all():
        return fixed_bytes(thumbs, 64), present
    result = np.zeros((len(present), 64), np.uint8)
    result[present] = fixed_bytes(thumbs.filter(pa.array(present)), 64)
    return result, present


def near_pairs(phash: np.ndarray, thumbs: np.ndarray, usable: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """Finds every pair of near pictures of which at least one is new.

    Args:
        phash: `(n,) uint64`.
        thumbs: `(n, 64) uint8`.
        usable: `(n,) bool`, False where there is no thumbnail.
        is_new: `(n,) bool`.

    Returns:
        `(pairs, 2) int64`, each pair once, ascending.
    """
    grey = np.nonzero(usable & ~_flat(thumbs))[0]
    if not is_new[grey].any():
        return np.zeros((0, 2), np.int64)
    hashes, new = phash[grey], is_new[grey]
    found = [_in_table(hashes, new, one, other) for one, other in combinations(BLOCKS, 2)]
    pairs = np.unique(np.concatenate(found), axis=0)
    pairs = grey[pairs]
    kept = []
    for start in range(0, len(pairs), 2**18):
        part = pairs[start : start + 2**18]
        kept.append(part[_grey_difference(thumbs[part[:, 0]], thumbs[part[:, 1]]) <= MAX_GREY])
    return np.concatenate(kept) if kept else np.zeros((0, 2), np.int64)


def _grey_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean differences of thumbnails, `(n,) float32`, each less its mean and the other brought to the same contrast."""
    a, b = (thumbs.astype(np.float32) for thumbs in (one, other))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    gain = np.clip((a * b).sum(axis=1) / np.maximum((b * b).sum(axis=1), 1e-6), 1 / MAX_GAIN, MAX_GAIN)
    difference: np.ndarray = np.abs(a - gain[:, None] * b).mean(axis=1)
    return difference


def _flat(thumbs: np.ndarray) -> np.ndarray:
    """Which pictures are flat, `(n,) bool`; in parts, since the sums are wider than the grey levels."""
    parts = [thumbs[start : start + 2**16].std(axis=1) < FLAT_GREY for start in range(0, len(thumbs), 2**16)]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def _in_table(hashes: np.ndarray, new: np.ndarray, one: tuple[int, int], other: tuple[int, int]) -> np.ndarray:
    """Pairs within `MAX_BITS` whose two blocks are equal."""
    key = (_block(hashes, one) << np.uint64(other[1])) | _block(hashes, other)
    # Only keys that a new picture has can give a pair: most recorded pictures leave here.
    has_new = np.zeros(1 << (one[1] + other[1]), bool)
    has_new[key[new]] = True
    rows = np.nonzero(has_new[key])[0]
    rows = rows[np.argsort(key[rows], kind="stable")]
    key, value, fresh = key[rows], hashes[rows], new[rows]
    place = np.arange(len(rows) - 1)
    parts = []
    step = 1
    while len(place):
        place = place[place + step < len(rows)]
        place = place[key[place] == key[place + step]]
        close = np.bitwise_count(value[place] ^ value[place + step]) <= MAX_BITS
        chosen = place[close & (fresh[place] | fresh[place + step])]
        if len(chosen):
            parts.append(np.sort(np.stack([rows[chosen], rows[chosen + step]], axis=1), axis=1))
        step += 1
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)


def _block(hashes: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    first, bits = block
    return (hashes >> np.uint64(first)) & np.uint64((1 << bits) - 1)
