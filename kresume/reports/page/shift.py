"""Measures how the new pictures differ from the old ones.

    measures = shift_of(source, reader)
    measures[0].name, measures[0].effect, describe(measures)

A shift is the usual reason when old accuracy falls. Brightness and contrast come from the thumbnails of 8x8 grey levels that
the table of images holds, so none is read. Size and aspect come from the table, too. Sharpness needs
pixels: a sample is read as the model sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kresume.images.manifest import Manifest
from kresume.images.near import thumb_array
from kresume.images.order import permutation
from kresume.images.reader import PictureReader
from kresume.reports.page.source import rows_of

BINS = 20
SAMPLE = 256
"""Pictures of each origin whose sharpness is measured: the effect is then known within 0.05."""
PART = 32
"""Pictures that are read between two looks at the clock."""
SECONDS = 3.0
"""Time for pictures that are not in the cache; fewer are measured then."""
MOST = 20_000
"""Pictures of each origin that are compared by other measures: a test of a million takes seconds."""
FEWEST = 8
"""Pictures of each origin without which nothing is compared."""
SURE = 0.01
"""A difference counts below this p-value: five measures are compared, so 0.05 would find one too often."""
SMALL, MEDIUM, LARGE = 0.56, 0.64, 0.71
"""Vargha and Delaney 2000: the share of pairs from which an effect is called small, medium and large."""


@dataclass(frozen=True)
class Measure:
    """One property of the pictures, of old and of new ones.

    Attributes:
        name: the property.
        unit: of its values.
        more: the adjective for new pictures with higher values.
        less: the adjective for lower values.
        edges: `BINS + 1` borders of the histograms.
        old: share of the old pictures in each bin.
        new: share of the new pictures.
        medians: of old and new pictures.
        counts: how many pictures of each were measured.
        effect: the share of (old, new) pairs in which the new picture has the higher value, ties counted half.
        p: of the Mann-Whitney test.
        digits: decimals to show.
    """

    name: str
    unit: str
    more: str
    less: str
    edges: tuple[float, ...]
    old: tuple[float, ...]
    new: tuple[float, ...]
    medians: tuple[float, float]
    counts: tuple[int, int]
    effect: float
    p: float
    digits: int = 0

    @property
    def size(self) -> float:
        """Returns the effect's distance from none, between 0 and 0.5."""
        return abs(self.effect - 0.5)

    @property
    def strength(self) -> str:
        """Returns the effect in one word."""
        share = 0.5 + self.size
        if self.p >= SURE or share < SMALL:
            return "none"
        return "large" if share >= LARGE else "medium" if share >= MEDIUM else "small"

    @property
    def words(self) -> str:
        """Returns the difference in words."""
        old, new = (f"{value:,.{self.digits}f}{self.unit}" for value in self.medians)
        if self.strength == "none":
            return f"no difference beyond noise (median {old} and {new})"
        adjective = self.more if self.effect > 0.5 else self.less
        return (
            f"new pictures are {adjective}: median {new} against {old}; "
            f"in {100 * (0.5 + self.size):.0f} % of pairs ({self.strength} effect)"
        )


def describe(measures: Sequence[Measure]) -> str:
    """Returns the largest difference in words."""
    if not measures:
        return ""
    largest = max(measures, key=lambda measure: (measure.strength != "none", measure.size))
    if largest.strength == "none":
        return "The new pictures look like the old ones: no measured property differs beyond noise."
    old, new = (f"{value:,.{largest.digits}f}{largest.unit}" for value in largest.medians)
    adjective = largest.more if largest.effect > 0.5 else largest.less
    return (
        f"The largest difference: new pictures are {adjective}. {largest.name.capitalize()} has a median of {new}, against "
        f"{old} for the old ones. Of a new and an old picture drawn at random, the new one is {adjective} in "
        f"{100 * (0.5 + largest.size):.0f} % of draws (50 % would be no difference): a {largest.strength} effect."
    )


def shift_of(manifest: Manifest, new: np.ndarray, reader: PictureReader | None) -> tuple[Measure, ...]:
    """Measures old and new pictures.

    Args:
        manifest: the images.
        new: `(n,) bool`, which of them are new.
        reader: reads a sample for sharpness; None leaves it out.

    Returns:
        The measures; empty if there are too few old or new pictures.
    """
    if min(int(new.sum()), int((~new).sum())) < FEWEST:
        return ()
    thumbs, usable = thumb_array(manifest.table.column("thumb"))
    brightness = thumbs.mean(axis=1, dtype=np.float32)
    squares = np.einsum("ij,ij->i", thumbs, thumbs, dtype=np.float32)  # exact: below 2 ** 24
    contrast = np.sqrt(np.maximum(squares / thumbs.shape[1] - brightness**2, 0.0))
    width, height = (manifest.table.column(name).to_numpy().astype(float) for name in ("width", "height"))
    measures = [
        _measure("brightness", "", "brighter", "darker", brightness, new, usable),
        _measure("contrast", "", "richer in contrast", "flatter in contrast", contrast, new, usable, digits=1),
        _sharpness(manifest, new, reader),
        _measure("shorter side", " px", "larger", "smaller", np.minimum(width, height), new, width > 0),
        _measure(
            "aspect",
            "",
            "wider",
            "narrower",
            width / np.maximum(height, 1),
            new,
            np.minimum(width, height) > 0,
            digits=2,
        ),
    ]
    return tuple(measure for measure in measures if measure is not None)


def _sharpness(
    manifest: Manifest,
    new: np.ndarray,
    reader: PictureReader | None,
    clock: Callable[[], float] = time.monotonic,
) -> Measure | None:
    if reader is None:
        return None
    chosen = [rows[permutation(0, 0, len(rows))[:SAMPLE]] for rows in (np.nonzero(~new)[0], np.nonzero(new)[0])]
    # Old and new in turn, so that the time limit leaves as many of each.
    turn = np.concatenate([np.arange(len(rows)) / len(rows) for rows in chosen])
    rows = np.concatenate(chosen)[np.argsort(turn, kind="stable")]
    values = np.full(len(rows), np.nan)
    start = clock()
    for at in range(0, len(rows), PART):
        part = rows[at : at + PART]
        pictures, broken = reader.attempt(rows_of(reader.manifest, manifest.sha256s[part]))
        values[at : at + len(part)] = sharpness(pictures)
        values[[at + index for index in broken]] = np.nan
        if clock() - start > SECONDS:
            break
    return _measure("sharpness", "", "sharper", "blurrier", values, new[rows], np.isfinite(values), digits=1)


def sharpness(pictures: np.ndarray) -> np.ndarray:
    """Returns the spread of the Laplacian of each picture, in grey levels.

    A measure of focus from Pech-Pacheco and others 2000, "Diatom autofocusing in brightfield microscopy", as the root of
    their variance.

    Args:
        pictures: `(n, height, width, 3) uint8`.
    """
    grey = pictures.astype(np.float32).mean(axis=-1)
    inner = grey[:, 1:-1, 1:-1]
    laplacian = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * inner
    return np.asarray(laplacian.std(axis=(1, 2)))


def _some(values: np.ndarray) -> np.ndarray:
    return values[permutation(0, 0, len(values))[:MOST]] if len(values) > MOST else values


def _measure(
    name: str,
    unit: str,
    more: str,
    less: str,
    values: np.ndarray,
    new: np.ndarray,
    usable: np.ndarray,
    digits: int = 0,
) -> Measure | None:
    """Compares the values of old and new pictures; None if there are too few."""
    usable = usable & np.isfinite(values)
    parts = _some(values[usable & ~new]), _some(values[usable & new])
    if min(map(len, parts)) < FEWEST:
        return None
    from scipy.stats import mannwhitneyu

    low, high = np.quantile(np.concatenate(parts), (0.005, 0.995))
    span = max(float(high - low), 1e-6 + abs(float(high)) * 0.02)
    edges = np.linspace(low - 0.05 * span, low + 1.05 * span, BINS + 1)
    shares = [np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] / len(part) for part in parts]
    test = mannwhitneyu(parts[1], parts[0], method="asymptotic") if np.ptp(np.concatenate(parts)) else None
    return Measure(
        name,
        unit,
        more,
        less,
        tuple(edges.tolist()),
        tuple(shares[0].tolist()),
        tuple(shares[1].tolist()),
        (float(np.median(parts[0])), float(np.median(parts[1]))),
        (len(parts[0]), len(parts[1])),
        float(test.statistic) / len(parts[0]) / len(parts[1]) if test is not None else 0.5,
        float(test.pvalue) if test is not None else 1.0,
        digits,
    )
