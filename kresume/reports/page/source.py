"""Reads what a report is made from: one run, or two runs on the images that both scored.

    source = read_run("runs/2-signs")           # the parent against the result
    source = read_pair("runs/2-signs", "runs/3-signs")

A part that cannot be read is named in `missing`, and the report is made without it: a run of an earlier version has no
answers, and a folder of pictures may be gone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kresume import runs
from kresume.checkpoints.run import find_run, split
from kresume.errors import ImagesError, RunError
from kresume.evaluation import answers as answers_file
from kresume.evaluation.answers import NO_CLASS, Answers, on_same_images
from kresume.evaluation.caches import open_cache
from kresume.images.manifest import Manifest
from kresume.images.reader import PictureReader
from kresume.images.scans import FOLDER, manifest_of, read_scans, remembered
from kresume.reports.generation import Generation
from kresume.reports.lineage import Lineage, lineage_of
from kresume.values.decode_spec import DecodeSpec


@dataclass(frozen=True)
class Side:
    """One of the two models that a report compares.

    Attributes:
        name: shown to the user.
        scores: of all, old and new images, and of each class; None if unknown.
        answers: its answers to the validation images; None if they were not kept.
    """

    name: str
    scores: Mapping[str, Any] | None = None
    answers: Answers | None = None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Holds what a page says about one model, or two on the same images.

    Attributes:
        after: the model that the page is about.
        before: the model that it is compared with; None for none.
        classes: names of the classes, in the order of the outputs.
        generation: images with a lower origin are old.
        everything: every image, for names and pictures; None if unreadable.
        spec: how its pictures are decoded.
        cache: where decoded pictures are: a folder, `"off"`, or None for the usual one.
        other: the run that a run is compared with instead of its parent.
        missing: what could not be read, in words.
        images_called: what the images are, for the user.
    """

    after: Side
    before: Side | None
    classes: tuple[str, ...]
    generation: int
    everything: Manifest | None
    spec: DecodeSpec
    cache: str | None = None
    other: runs.Run | None = None
    missing: tuple[str, ...] = ()
    images_called: str = "images"

    @property
    def before_answers(self) -> Answers | None:
        """Returns the other model's answers; None unless they are to the very images of the own answers."""
        found, own = self.before.answers if self.before else None, self.after.answers
        same = found is not None and own is not None and np.array_equal(found.hashes, own.hashes)
        return found if same else None

    def is_new(self, origins: np.ndarray) -> np.ndarray:
        """Returns which images came in with the model's own generation, `(n,) bool`."""
        return origins >= self.generation

    def reader(self) -> PictureReader | None:
        """Returns a reader of the pictures as the model sees them; None without a table of images."""
        if self.everything is None:
            return None
        return PictureReader(self.everything, self.spec, open_cache(self.spec, self.cache, writes=False))


@dataclass(frozen=True, kw_only=True)
class Source(Compared):
    """Holds all that the report of a run is made from.

    Attributes:
        run: the run that the report is about.
        lines: the line of each epoch.
        manifest: its images at the end of training; None if unreadable.
        step: the step of the run's own model.
        lineage: the run and the runs that it descends from.
        ancestors: these runs, the nearest first.
    """

    run: runs.Run
    lines: tuple[Mapping[str, Any], ...]
    manifest: Manifest | None
    step: int | None
    lineage: Lineage
    ancestors: tuple[runs.Run, ...]

    @property
    def own(self) -> Generation | None:
        """Returns the run as a generation of its lineage; None if its record is damaged in part."""
        return next((each for each in self.lineage.generations if _same(each.path, self.run.path)), None)


def find(path: str) -> tuple[runs.Run, str]:
    """Finds the run that `RUN`, `RUN@best` or a folder of runs names.

    Returns:
        The run, and the text behind `@`.

    Raises:
        KresumeError: there is none.
    """
    run = find_run(path)
    return (run if run is not None else runs.open_run(path)), split(path)[1]


def read_run(run: runs.Run, which: str = "") -> Source:
    """Reads a run: its parent against its result, or against the step that `which` names.

    Args:
        run: finished or not.
        which: `"last"`, `"best"` or a step; empty for the result, or the newest epoch of an unfinished run.

    Raises:
        RunError: no epoch ended at that step.
    """
    missing: list[str] = []
    lines = tuple(runs.read_metrics(run.metrics))
    step, scores = _scores(run, lines, which)
    manifest, everything = _images(run, missing)
    own = step is not None and step == run.result_step()
    after = Side(run.path.name, scores, _answers(run, "after", missing) if own else None)
    before = _parent(run, _answers(run, "before", missing))
    if before is not None and before.answers is not None and after.answers is not None:
        # A file that broke meanwhile is in one of them only.
        theirs, ours = on_same_images(before.answers, after.answers)
        if len(ours) == len(after.answers):
            before, after = replace(before, answers=theirs), replace(after, answers=ours)
    if after.answers is None and scores is not None and scores["all"]["images"]:
        missing.append(
            "answers to single images: they are kept since version 0.2, and only those of a run's result"
            if own
            else f"answers to single images: they are kept for the result, and not for step {step:,}"
        )
    line = lineage_of(run)
    older = tuple(runs.open_run(each.path) for each in line.generations if not _same(each.path, run.path))
    return Source(
        after=after,
        before=before,
        classes=run.record.card.classes,
        generation=run.generation,
        everything=everything,
        spec=run.record.card.spec,
        cache=run.record.options.get("cache"),
        missing=tuple(missing),
        images_called="validation images",
        run=run,
        lines=lines,
        manifest=manifest,
        step=step,
        lineage=line,
        ancestors=older,
    )


def _same(path: str, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def read_pair(one: runs.Run, other: runs.Run, which: tuple[str, str] = ("", "")) -> Source:
    """Reads two runs, `one` against `other`, on the images that both have scored.

    Labels and classes are those of the second; a class that only the first has counts as another class.

    Raises:
        RunError: an `@` names an epoch that does not exist.
    """
    first, second = read_run(one, which[0]), read_run(other, which[1])
    before = replace(first.after, name=one.path.name)
    after = second.after
    missing = tuple(dict.fromkeys((*first.missing, *second.missing)))
    if before.answers is not None and after.answers is not None:
        ours, theirs = on_same_images(in_classes(before.answers, other.record.card.classes), after.answers)
        ours = replace(ours, labels=theirs.labels, origins=theirs.origins)
        left_out = len(before.answers) + len(after.answers) - 2 * len(theirs)
        before, after = replace(before, answers=ours), replace(after, answers=theirs)
        if left_out:
            missing += (f"{left_out:,} validation images that only one of the runs has are left out",)
        if not len(theirs):
            missing += ("the runs have no validation image in common: their answers cannot be compared",)
            before, after = replace(before, answers=None), replace(after, answers=None)
    return replace(second, before=before, after=after, other=one, missing=missing)


def in_classes(answers: Answers, classes: tuple[str, ...]) -> Answers:
    """Returns the same answers in the order of other classes; `NO_CLASS` where one is missing."""
    if answers.classes == classes:
        return answers
    index_of = {name: index for index, name in enumerate(classes)}
    to_new = np.array([*(index_of.get(name, NO_CLASS) for name in answers.classes), NO_CLASS], np.int32)
    return replace(answers, classes=classes, labels=to_new[answers.labels], top=to_new[answers.top])


def _scores(
    run: runs.Run, lines: tuple[Mapping[str, Any], ...], which: str
) -> tuple[int | None, Mapping[str, Any] | None]:
    """Returns the step that a report is about, and its scores."""
    result = run.record.result
    if which == "" and result is not None:
        return result.step, result.scores
    if which in {"", "last"}:
        return (int(lines[-1]["step"]), lines[-1]) if lines else (None, None)
    best = run.best_step()
    if which == "best" and best is None:
        raise RunError(f"{run.path}@best: the run has no best epoch, because {run.why_no_best()}: use {run.path}@last")
    wanted = str(best) if which == "best" and best is not None else which
    for line in lines:
        if str(line["step"]) == wanted:
            return int(line["step"]), line
    known = ", ".join(str(line["step"]) for line in lines) or "none"
    raise RunError(
        f"{run.path}@{which}: no epoch ended there, so nothing was scored; the steps with scores are {known}"
    )


def _answers(run: runs.Run, which: Any, missing: list[str]) -> Answers | None:
    try:
        return answers_file.read(run.answers(which))
    except ImagesError as error:
        missing.append(str(error))
        return None


def _images(run: runs.Run, missing: list[str]) -> tuple[Manifest | None, Manifest | None]:
    try:
        manifest = manifest_of(run.path)
        return manifest, remembered(run.path) if read_scans(run.path / FOLDER) else manifest
    except ImagesError as error:
        missing.append(str(error))
        return None, None


def _parent(run: runs.Run, answers: Answers | None) -> Side | None:
    """Returns the parent as a side of the comparison; None for a new model or one that was not scored."""
    if run.record.before is None:
        return None
    path = run.parent_path()
    return Side(path.name if path is not None else "before", run.record.before, answers)


def rows_of(manifest: Manifest | None, hashes: np.ndarray) -> np.ndarray:
    """Returns the row of each image in the table, -1 for one that it does not have."""
    if manifest is None or not len(manifest):
        return np.full(len(hashes), -1)
    order = np.argsort(manifest.sha256s, kind="stable")
    wanted = hashes.astype("S64")
    rank = np.minimum(np.searchsorted(manifest.sha256s, wanted, sorter=order), len(order) - 1)
    return np.where(manifest.sha256s[order[rank]] == wanted, order[rank], -1)
