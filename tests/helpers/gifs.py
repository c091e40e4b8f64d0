"""Writes GIF files frame by frame, also those that Pillow does not write: frames beside or beyond their screen."""

import struct
from collections.abc import Sequence

import numpy as np

COLOURS = np.random.default_rng(6).integers(30, 256, (256, 3)).astype(np.uint8)


def gif(screen: tuple[int, int], frames: Sequence[tuple[int, int, int, int]], transparent=None, before=b"") -> bytes:
    """Returns a GIF of random pixels.

    Args:
        screen: width and height of the logical screen.
        frames: left, top, width and height of each frame.
        transparent: the transparent index of all frames; every fourth pixel has it.
        before: extension blocks before the first frame.
    """
    rng = np.random.default_rng(7)
    made = b"GIF89a" + struct.pack("<HHBBB", *screen, 0xF7, 0, 0) + COLOURS.tobytes() + before
    for left, top, width, height in frames:
        indices = rng.integers(1, 256, width * height)
        if transparent is not None:
            made += b"!\xf9\x04" + struct.pack("<BHB", 1, 0, transparent) + b"\0"
            indices[::4] = transparent
        made += b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x08" + blocks(_codes(indices))
    return made + b";"


def blocks(data: bytes) -> bytes:
    """Cuts data into sub-blocks of at most 255 bytes."""
    parts = [data[start : start + 255] for start in range(0, len(data), 255)]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def _codes(indices: np.ndarray) -> bytes:
    """Returns LZW codes of nine bits: the table is cleared before it needs ten."""
    codes = []
    for start in range(0, len(indices), 200):
        codes += [256, *indices[start : start + 200].tolist()]
    bits = np.array([[code >> bit & 1 for bit in range(9)] for code in [*codes, 257]], np.uint8)
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()
