"""Keeps a model's answer to every image, for scores, comparisons of two models and the report.

    answers = answers_from(task, probabilities, labels, origins, hashes, classes)
    write(run.answers("after"), answers)
    before = read(run.answers("before"))                 # None if that run has none
    one, other = on_same_images(before, answers)         # rows in the same order

A run holds `answers/before.parquet`, the parent's answers to the validation images, and `answers/after.parquet`, those of
its result. Both name classes in the order of the run's own model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kresume.images.manifest import read_table, write_table
from kresume.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
MARK = "kresume_answers"
TOP = 5
"""Classes that are kept of each image, the most probable ones."""
NO_CLASS = -1
"""Stands for a class that is not among `classes`: another model may choose one."""
FEWEST = 20
"""Images from which on it is told that all of them get one class."""
PART = 4096
"""Images whose classes are sorted at once: a copy of their probabilities is held in memory."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers, one row per image.

    Attributes:
        classes: names of the classes, in the order of the probabilities.
        hashes: `(n,) str`, SHA-256 of each image's content as in the manifest.
        labels: `(n,) int32`, true classes, as indices into `classes`.
        origins: `(n,) int32`, the generation that added each image.
        top: `(n, k) int32`, classes by falling probability, the lowest index first where two are equal; k is 5, or the
            number of classes. The first one is the model's answer; `NO_CLASS` if that is not among `classes`.
        top_scores: `(n, k) float32`, their probabilities.
        label_scores: `(n,) float32`, the probability of the true class.
        losses: `(n,) float32`, the loss in nats; NaN for a model that gives labels without probabilities.
    """

    classes: tuple[str, ...]
    hashes: np.ndarray
    labels: np.ndarray
    origins: np.ndarray
    top: np.ndarray
    top_scores: np.ndarray
    label_scores: np.ndarray
    losses: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def chosen(self) -> np.ndarray:
        """Returns the answers, `(n,) int32`."""
        return np.asarray(self.top[:, 0])

    @property
    def right(self) -> np.ndarray:
        """Returns which answers are right, `(n,) bool`."""
        return np.asarray(self.chosen == self.labels)

    def describe_sameness(self) -> str:
        """Says that all images get one class, as a model does that learns nothing; empty if they do not."""
        if len(self) < FEWEST or len(np.unique(self.labels)) < 2 or len(np.unique(self.chosen)) > 1:
            return ""
        name = self.classes[self.chosen[0]] if self.chosen[0] != NO_CLASS else "that none of them has"
        return f"all {len(self):,} images get the class {name}, so the model tells none of them apart"

    def at(self, rows: np.ndarray) -> Answers:
        """Returns these rows, given as indices or as a mask."""
        columns = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "classes"}
        return replace(self, **columns)


def answers_from(
    task: Task,
    probabilities: np.ndarray,
    labels: np.ndarray,
    origins: np.ndarray,
    hashes: np.ndarray,
    classes: Sequence[str],
    *,
    chosen: np.ndarray | None = None,
    confidences: np.ndarray | None = None,
    losses: bool = True,
    lacks: Sequence[str] = (),
) -> Answers:
    """Returns the answers that probabilities give.

    Args:
        task: judges the predictions.
        probabilities: `(n, classes)`.
        labels: `(n,)` true classes.
        origins: `(n,)` generations.
        hashes: `(n,)` SHA-256s, as text or as the manifest's bytes.
        classes: their names.
        chosen: `(n,)` the answers, if the model also chooses classes that are not among `classes`; None for those that
            the probabilities give.
        confidences: `(n,)` the probabilities of the answers; needed for those that are not among `classes`.
        losses: False if the model gives no probabilities.
        lacks: the classes that the model does not have: with the probability 0 they might be among the first five.
    """
    count, width = len(labels), min(TOP, len(classes))
    probabilities = np.asarray(probabilities).reshape(count, -1 if count else len(classes))
    if chosen is None:
        chosen = task.answers(probabilities)
    top = np.zeros((count, width), np.int32)
    for start in range(0, count, PART):
        part = slice(start, start + PART)
        top[part] = _sorted_classes(probabilities[part], chosen[part], width)
    if lacks:
        top[np.isin(top, [list(classes).index(name) for name in lacks])] = NO_CLASS
    rows = np.arange(count)
    scores = np.where(top == NO_CLASS, np.nan, probabilities[rows[:, None], np.maximum(top, 0)])
    if confidences is not None:
        scores[:, 0] = confidences
    return Answers(
        classes=tuple(classes),
        hashes=np.asarray(hashes).astype("U64"),
        labels=np.asarray(labels, np.int32),
        origins=np.asarray(origins, np.int32),
        top=top,
        top_scores=scores.astype(np.float32),
        label_scores=probabilities[rows, labels].astype(np.float32),
        losses=(task.image_losses(probabilities, labels) if losses else np.full(count, np.nan)).astype(np.float32),
    )


def _sorted_classes(probabilities: np.ndarray, chosen: np.ndarray, width: int) -> np.ndarray:
    """Returns the most probable classes of each row, the chosen one first.

    One pass for each of few classes is faster than sorting a thousand, and the lowest index wins where two are equal.
    """
    left, rows = np.array(probabilities, np.float64), np.arange(len(probabilities))
    found = [np.asarray(chosen)]
    for _ in range(width - 1):
        known = found[-1] != NO_CLASS
        left[rows[known], found[-1][known]] = -np.inf
        found.append(left.argmax(axis=-1))
    return np.stack(found, axis=-1)


def on_same_images(one: Answers, other: Answers) -> tuple[Answers, Answers]:
    """Returns the answers to the images that both have, in the order of the first."""
    if np.array_equal(one.hashes, other.hashes):
        return one, other
    _, mine, theirs = np.intersect1d(one.hashes, other.hashes, return_indices=True)
    order = np.argsort(mine)
    return one.at(mine[order]), other.at(theirs[order])


def write(path: Path, answers: Answers) -> None:
    """Writes answers as Parquet, atomically; equal answers give equal bytes."""
    import pyarrow as pa

    def lists(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    columns = {
        "sha256": pa.array(answers.hashes.tolist(), pa.string()),
        "label": pa.array(answers.labels),
        "origin": pa.array(answers.origins),
        "top": lists(answers.top),
        "top_scores": lists(answers.top_scores),
        "label_score": pa.array(answers.label_scores),
        "loss": pa.array(answers.losses),
    }
    write_table(path, pa.table(columns), MARK, {"format": FORMAT, "classes": list(answers.classes)})


def read(path: Path) -> Answers | None:
    """Reads answers that `write` wrote; None if there is no such file, as in runs of earlier versions.

    Raises:
        ImagesError: the file is damaged, of another kind, or of a later version.
    """
    if not path.is_file():
        return None
    table, facts = read_table(path, MARK, FORMAT, what="table of answers")
    count = len(table)

    def lists(name: str) -> np.ndarray:
        column = table.column(name).combine_chunks()
        return np.asarray(column.flatten().to_numpy()).reshape(count, column.type.list_size)

    return Answers(
        classes=tuple(facts["classes"]),
        hashes=np.array(table.column("sha256").to_pylist(), "U64"),
        labels=table.column("label").to_numpy(),
        origins=table.column("origin").to_numpy(),
        top=lists("top"),
        top_scores=lists("top_scores"),
        label_scores=table.column("label_score").to_numpy(),
        losses=table.column("loss").to_numpy(),
    )
