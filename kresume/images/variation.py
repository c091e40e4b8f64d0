"""Decodes half of the images with another interpolation, chosen by seed and position.

    varied = Varied(PictureReader(manifest, replace(spec, interpolation="bilinear"), cache), seed=0)
    pictures = varied(rows, position, pictures)

It is for models that other loaders will feed. Interpolations that skip pixels give other images than those that
average, and a model trained on only one of them is worse on the other. Which images are drawn depends on (seed,
position) alone, so an interrupted run draws the same ones as an uninterrupted run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kresume.values.decode_spec import DecodeSpec

GOLDEN, FIRST, SECOND = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def other_spec(spec: DecodeSpec) -> DecodeSpec:
    """Returns the spec of the second decoding.

    It is Keras's default interpolation, or area averages if that is the first.
    """
    return replace(spec, interpolation="area" if spec.interpolation == "bilinear" else "bilinear")


def draw_half(seed: int, position: int, count: int) -> np.ndarray:
    """Draws half of the positions from `position` on, `(count,) bool`.

    Each draw is a pure function of (seed, position): the top bit of SplitMix64 (Steele, Lea and Flood, Fast Splittable
    Pseudorandom Number Generators, 2014).
    """
    with np.errstate(over="ignore"):
        state = _mixed(np.array([seed], np.uint64)) + GOLDEN * np.arange(
            position + 1, position + count + 1, dtype=np.uint64
        )
        return np.asarray(_mixed(state) >> np.uint64(63), bool)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * FIRST
    state = (state ^ (state >> np.uint64(27))) * SECOND
    return np.asarray(state ^ (state >> np.uint64(31)))


class Varied:
    """Replaces half of the images by the same ones in a second decoding.

    Args:
        reader: a `PictureReader` of the second decoding.
        seed: seed of the run.
    """

    def __init__(self, reader: Any, seed: int) -> None:
        self._reader = reader
        self._seed = seed

    def __call__(self, rows: np.ndarray, position: int, pictures: np.ndarray) -> np.ndarray:
        """Returns the batch that begins at `position`, with the drawn images replaced.

        An image whose file can no longer be read keeps its first decoding.
        """
        drawn = np.nonzero(draw_half(self._seed, position, len(rows)))[0]
        others, broken = self._reader.attempt(rows[drawn])
        kept = [index for index in range(len(drawn)) if index not in broken]
        result = pictures.copy()
        result[drawn[kept]] = others[kept]
        return result
