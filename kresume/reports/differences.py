"""Compares two runs: their options, what was decided, their images and their results.

    print(compare_runs("runs/2-signs", "runs/3-signs"))

Images are compared by content. This imports neither Keras nor TensorFlow nor JAX.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kresume.checkpoints.run import find_run
from kresume.class_renames import describe_renames, in_metrics, in_options, renamed
from kresume.errors import ImagesError, RunError
from kresume.evaluation.renamed_since import renames_between
from kresume.images.manifest import Manifest
from kresume.images.scans import manifest_of
from kresume.reports.generation import Change, compare_options, decisions, read_generation, shown
from kresume.reports.run_tree import percent
from kresume.runs import Run

MOST_CLASSES = 10
"""Classes that are printed; `--json` has all."""


@dataclass(frozen=True)
class Images:
    """The images of two runs, compared by content.

    Attributes:
        before: images of the first run.
        after: images of the second run.
        both: images that both have.
        removed: images that only the first has.
        added: images that only the second has.
        relabelled: images of both under another label.
        moved: images of both on another side: training or validation.
        classes: images of each class, `[before, after]`.
        validation: validation images of the first, of the second, and of both.
    """

    before: int
    after: int
    both: int
    removed: int
    added: int
    relabelled: int
    moved: int
    classes: Mapping[str, tuple[int, int]]
    validation: tuple[int, int, int]


@dataclass(frozen=True)
class Differences:
    """Holds what differs between two runs.

    Attributes:
        before: path of the first run.
        after: path of the second run.
        options: options that differ, as they were given or inherited, else their defaults.
        decisions: decisions that differ, given or not: rate, batch size, pixels ...
        versions: versions of packages that differ.
        images: their images; None if a manifest cannot be read.
        trouble: why not, or empty.
        results: scores by name: `{"all.accuracy": [before, after], "classes.rose.recall": [...]}`.
        renamed: what classes of the first run are called in the second, where one descends from the other.
    """

    before: str
    after: str
    options: tuple[Change, ...]
    decisions: tuple[Change, ...]
    versions: tuple[Change, ...]
    images: Images | None
    trouble: str
    results: Mapping[str, tuple[float | None, float | None]]
    renamed: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            **vars(self),
            **{name: [vars(each) for each in getattr(self, name)] for name in ("options", "decisions", "versions")},
            "images": vars(self.images) if self.images else None,
            "results": {name: list(pair) for name, pair in self.results.items()},
        }

    def __str__(self) -> str:
        lines = [f"{self.before} -> {self.after}"]
        for title, body in (
            ("options", _aligned(self.options)),
            ("decided", _aligned(self.decisions)),
            ("versions", _aligned(self.versions)),
            ("images", self._images()),
            ("results", self._results()),
        ):
            lines += ["", title, *(f"  {line}" for line in body)]
        return "\n".join(lines)

    def _images(self) -> Iterator[str]:
        images = self.images
        if images is None:
            yield f"not compared: {self.trouble}"
            return
        yield (
            f"{images.before:,} -> {images.after:,}: {images.both:,} in both, {images.removed:,} only before, "
            f"{images.added:,} only after"
        )
        if self.renamed:
            yield f"classes renamed: {describe_renames(self.renamed)}"
        if images.relabelled or images.moved:
            yield f"of both: {images.relabelled:,} under another label, {images.moved:,} on another side of the split"
        changed = {name: pair for name, pair in images.classes.items() if pair[0] != pair[1]}
        ordered = sorted(changed.items(), key=lambda item: -abs(item[1][1] - item[1][0]))
        for name, (before, after) in ordered[:MOST_CLASSES]:
            yield f"{name}: {before:,} -> {after:,}"
        if len(ordered) > MOST_CLASSES:
            yield f"and {len(ordered) - MOST_CLASSES:,} more classes"

    def _results(self) -> Iterator[str]:
        if not any(None not in pair for pair in self.results.values()):
            yield "no scores of both"
            return
        if self.images is not None:
            first, second, both = self.images.validation
            same = "the same" if first == second == both else f"{both:,} of them the same"
            yield (
                f"on {first:,} and {second:,} validation images, {same}"
                if first != second or both != first
                else (f"on the same {both:,} validation images")
            )
        accuracies = {name: pair for name, pair in self.results.items() if name.endswith(".accuracy")}
        for name, pair in accuracies.items():
            subset = name.partition(".")[0]
            yield _points(subset if subset == "all" else f"{subset} (of each run's own {subset} images)", pair)
        recalls = {
            name.split(".", 1)[1].rpartition(".")[0]: pair
            for name, pair in self.results.items()
            if name.startswith("classes.") and name.endswith(".recall") and None not in pair and pair[0] != pair[1]
        }
        ordered = sorted(recalls.items(), key=lambda item: -abs((item[1][1] or 0) - (item[1][0] or 0)))
        for name, pair in ordered[:MOST_CLASSES]:
            yield _points(f"recall of {name}", pair)


def compare_runs(before: str | Path, after: str | Path) -> Differences:
    """Compares two runs.

    Args:
        before: a run, or a folder of runs: its newest accepted one.
        after: the same.

    Raises:
        RunError: one of them is no run, or cannot be read.
    """
    one, other = _run(before), _run(after)
    names = renames_between(one, other)
    before_now = replace(one.record, options=in_options(one.record.options, names))
    images, trouble = None, ""
    try:
        images = _compare_images(manifest_of(one.path), manifest_of(other.path), names)
    except ImagesError as error:
        trouble = str(error)
    return Differences(
        str(one.path),
        str(other.path),
        tuple(compare_options(before_now, other.record, frozenset({"out"}))),
        tuple(_compare(decisions(one.record), decisions(other.record))),
        tuple(_compare(_versions(one), _versions(other))),
        images,
        trouble,
        _compare_results(one, other, names),
        names,
    )


def _run(path: str | Path) -> Run:
    run = find_run(os.fspath(path))
    if run is None:
        raise RunError(f"no run at {path}: give the directories of two runs (`kresume log FOLDER` lists runs)")
    return run


def _versions(run: Run) -> dict[str, Any]:
    fingerprint = run.record.fingerprint
    python = {"python": fingerprint.get("python")} if fingerprint.get("python") else {}
    return {**python, **(fingerprint.get("packages") or {})}


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    names = dict.fromkeys((*before, *after))
    return [Change(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def _compare_images(one: Manifest, other: Manifest, renames: Mapping[str, str]) -> Images:
    """Compares images by content; classes have the names of the second run."""
    before = renamed(one.classes, renames)
    _, rows, others = np.intersect1d(one.sha256s, other.sha256s, return_indices=True)
    labels = np.array(before)[one.labels[rows]], np.array(other.classes)[other.labels[others]]
    counts = [
        dict(zip(classes, np.bincount(each.labels, minlength=len(classes)), strict=True))
        for classes, each in ((before, one), (other.classes, other))
    ]
    names = dict.fromkeys((*before, *other.classes))
    return Images(
        before=len(one),
        after=len(other),
        both=len(rows),
        removed=len(one) - len(rows),
        added=len(other) - len(rows),
        relabelled=int((labels[0] != labels[1]).sum()),
        moved=int((one.is_val[rows] != other.is_val[others]).sum()),
        classes={name: (int(counts[0].get(name, 0)), int(counts[1].get(name, 0))) for name in names},
        validation=(
            int(one.is_val.sum()),
            int(other.is_val.sum()),
            int((one.is_val[rows] & other.is_val[others]).sum()),
        ),
    )


def _compare_results(one: Run, other: Run, renames: Mapping[str, str]) -> dict[str, tuple[float | None, float | None]]:
    found = [{in_metrics(name, renames): value for name, value in _results_of(one).items()}, _results_of(other)]
    return {name: (found[0].get(name), found[1].get(name)) for name in dict.fromkeys((*found[0], *found[1]))}


def _results_of(run: Run) -> dict[str, float]:
    """Returns every score of a run's result, or of an unfinished run's last epoch, by the metric's name."""
    scores: dict[str, Any] = dict(read_generation(run, None, None).scores["after"] or {})
    classes = run.record.result.scores.get("classes") if run.record.result else None
    scores |= {f"classes.{name}": facts for name, facts in (classes or {}).items()}
    return {
        f"{subset}.{metric}": value
        for subset, facts in scores.items()
        for metric, value in facts.items()
        if metric != "images" and value is not None
    }


def _points(name: str, pair: tuple[float | None, float | None]) -> str:
    before, after = pair
    moved = f"  ({100 * (after - before):+.1f} points)" if before is not None and after is not None else ""
    return f"{name}: {percent(before)} -> {percent(after)}{moved}"


def _aligned(changes: tuple[Change, ...]) -> list[str]:
    width = max((len(change.name) for change in changes), default=0)
    return [f"{each.name:<{width}}  {shown(each.before)} -> {shown(each.after)}" for each in changes] or ["the same"]
