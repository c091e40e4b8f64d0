"""Counts the images of a run: per class and origin, what trains, and what was set aside."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.images.conflicts import TWO_LABELS
from kresume.reports.page.source import Source
from kresume.runs import BROKE

MOST_LISTED = 50
"""Files of a list that the page shows."""


@dataclass(frozen=True)
class ClassCount:
    """The images of one class; of each origin how many there are and how many train."""

    name: str
    is_new: bool
    old: int
    old_train: int
    new: int
    new_train: int
    share: float | None

    @property
    def total(self) -> int:
        """Returns the number of images of both origins."""
        return self.old + self.new

    @property
    def train(self) -> int:
        """Returns the number of training images of both origins."""
        return self.old_train + self.new_train


@dataclass(frozen=True)
class Listed:
    """A list of files, cut to the first ones.

    Attributes:
        count: how many there are; None if it was not recorded.
        rows: path and words about it.
    """

    count: int | None
    rows: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Counts:
    """Images of a run.

    Attributes:
        classes: one row per class, in the order of the outputs.
        total: the sums over all classes.
        shares: what an epoch was made of, by origin, from 0 to 1.
        sources: the options that named images, with their paths.
        duplicates: files whose content also exists under another path.
        leaks: newcomers close to an image of the other split.
        conflicts: files whose content has two labels.
        relabels: images with another label than in the parent.
        quarantine: files that could not be used.
        broken: files that could no longer be read while the run trained.
        waiting: what watched sources held for the next generation at the last look.
        seen: validation images that the first checkpoint was probably trained on.
        generations: images of each generation, the first one's first.
    """

    classes: tuple[ClassCount, ...]
    total: ClassCount
    shares: Mapping[str, float]
    sources: tuple[tuple[str, str], ...]
    duplicates: Listed
    leaks: Listed
    conflicts: Listed
    relabels: Listed
    quarantine: Listed
    broken: Listed
    waiting: Listed
    seen: int
    generations: tuple[int, ...] = ()


def counts_of(source: Source) -> Counts:
    """Counts the images at the end of training."""
    record = source.run.record
    last: Mapping[str, Any] = source.lines[-1] if source.lines else {}
    shares: Mapping[str, Any] = last.get("shares") or {}
    rows = _classes(source, shares.get("classes") or {})
    merged = record.merged
    options = record.options
    named = [(f"--{name}", str(path)) for name in ("data", "add", "val") for path in (options.get(name) or ()) if path]
    broken = [(_path_of(source, event.get("sha256", "")), str(event.get("reason", ""))) for event in _broke(source)]
    waiting, first = source.run.waiting()
    return Counts(
        rows,
        _sum(rows),
        dict(shares.get("origins") or {}),
        tuple(named),
        Listed(record.images.get("duplicates")),
        _listed(merged.get("leaks"), merged.get("leaks_count"), "near {}: {}"),
        _listed(merged.get("conflicts"), merged.get("conflicts_count"), "{}, and {} elsewhere"),
        _listed(merged.get("relabels"), merged.get("relabels_count"), "{} -> {}"),
        _quarantine(source),
        Listed(len(broken), tuple(broken[:MOST_LISTED])),
        Listed(waiting, tuple(first[:MOST_LISTED])),
        int(source.manifest.seen[source.manifest.is_val].sum()) if source.manifest is not None else 0,
        tuple(np.bincount(source.manifest.origins).tolist()) if source.manifest is not None else (),
    )


def _classes(source: Source, shares: Mapping[str, float]) -> tuple[ClassCount, ...]:
    manifest, names = source.manifest, source.classes
    if manifest is None:
        return ()
    is_new = source.is_new(manifest.origins)

    def count(mask: np.ndarray) -> np.ndarray:
        return np.bincount(manifest.labels[mask], minlength=len(names))

    train = ~manifest.is_val
    columns = count(~is_new), count(~is_new & train), count(is_new), count(is_new & train)
    added = set(source.run.record.new_classes)
    rows = zip(names, np.stack(columns, axis=1).tolist(), strict=True)
    return tuple(
        ClassCount(name, name in added, old, kept, new, used, shares.get(name)) for name, (old, kept, new, used) in rows
    )


def _sum(rows: tuple[ClassCount, ...]) -> ClassCount:
    def total(name: str) -> int:
        return sum(getattr(row, name) for row in rows)

    return ClassCount("all", False, total("old"), total("old_train"), total("new"), total("new_train"), None)


def _listed(rows: Any, count: Any, words: str) -> Listed:
    if rows is None:
        return Listed(None)
    shown = tuple((str(path), words.format(*rest)) for path, *rest in rows[:MOST_LISTED])
    return Listed(int(count if count is not None else len(rows)), shown)


def _quarantine(source: Source) -> Listed:
    """Lists the files that could not be used, without those of two labels, which have a list of their own."""
    path = source.run.path / "quarantine.csv"
    if not path.is_file():
        return Listed(source.run.record.images.get("quarantined"))
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [(row.get("path") or "", row.get("reason") or "") for row in csv.DictReader(file)]
    rows = [row for row in rows if not row[1].startswith(TWO_LABELS)]
    return Listed(len(rows), tuple(rows[:MOST_LISTED]))


def _broke(source: Source) -> list[dict[str, Any]]:
    return source.run.events(BROKE)


def _path_of(source: Source, sha256: str) -> str:
    if source.everything is None:
        return sha256[:12]
    rows = np.nonzero(source.everything.sha256s == sha256.encode())[0]
    return source.everything.found(rows[:1])[0].name if len(rows) else sha256[:12]
