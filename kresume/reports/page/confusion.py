"""Counts which class was taken for which, before and after, and chooses what of it a page can show.

    confusion = confusion_of(source)
    confusion.after[3, 5]           # images of class 3 that the run's model calls 5

Up to `MOST_CLASSES` classes are shown in full. Of more, the page shows those that take part in most mistakes, and one row
and column for all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kresume.evaluation.answers import Answers
from kresume.reports.page.source import Compared

MOST_CLASSES = 24
"""Classes up to which the matrix is shown in full."""
CONDENSED = 16
"""Classes that are shown of more."""
MOST_PAIRS = 12
OTHERS = "all others"


@dataclass(frozen=True)
class Pair:
    """Images of one class that are taken for another: how many before and after."""

    label: int
    answer: int
    before: int | None
    after: int


@dataclass(frozen=True, eq=False)
class Confusion:
    """Which class was taken for which.

    Attributes:
        names: of the rows and columns; the last may be `OTHERS`.
        group: `(classes + 1,)` row of each class; the last entry is for an answer that is no class of the run.
        after: `(names, names)` images by true class (row) and answer (column).
        before: the same for the other model; None without its answers.
        pairs: the most frequent mistakes of either, largest first.
        classes: how many classes there are.
    """

    names: tuple[str, ...]
    group: np.ndarray
    after: np.ndarray
    before: np.ndarray | None
    pairs: tuple[Pair, ...]
    classes: int

    @property
    def condensed(self) -> bool:
        """Returns True if some classes are only part of `OTHERS`."""
        return self.classes > MOST_CLASSES

    @property
    def difference(self) -> np.ndarray | None:
        """Returns after minus before."""
        return None if self.before is None else self.after - self.before


def counts(answers: Answers, classes: int) -> np.ndarray:
    """Counts images by label and answer, `(classes, classes + 1)`.

    The last column is an answer that is no class.
    """
    chosen = np.where(answers.chosen < 0, classes, answers.chosen)
    flat = np.bincount(answers.labels * (classes + 1) + chosen, minlength=classes * (classes + 1))
    return flat.reshape(classes, classes + 1)


def confusion_of(source: Compared) -> Confusion | None:
    """Returns the confusion of both models; None without the answers of the run's model."""
    after, before = source.after.answers, source.before_answers
    if after is None or not len(after):
        return None
    classes = len(source.classes)
    now = counts(after, classes)
    was = counts(before, classes) if before is not None else None
    shown = _shown(now if was is None else now + was)
    no_class = int(now[:, -1].sum() + (was[:, -1].sum() if was is not None else 0)) > 0
    names = [source.classes[index] for index in shown]
    group = np.full(classes + 1, len(names))
    group[shown] = np.arange(len(names))
    if len(names) < classes or no_class:
        names.append(OTHERS if len(names) < classes else "another class")
    return Confusion(
        tuple(names), group, _grouped(now, group, len(names)), None if was is None else _grouped(was, group, len(names)),
        _pairs(now, was), classes,
    )  # fmt: skip


def _shown(total: np.ndarray) -> np.ndarray:
    """Returns the classes to show, in their order: all, or those in most mistakes."""
    classes = len(total)
    if classes <= MOST_CLASSES:
        return np.arange(classes)
    wrong = total[:, :classes].copy()
    np.fill_diagonal(wrong, 0)
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1) + total[:, classes]
    return np.sort(np.argsort(-mistakes, kind="stable")[:CONDENSED])


def _grouped(matrix: np.ndarray, group: np.ndarray, size: int) -> np.ndarray:
    grouped = np.zeros((size, size), np.int64)
    rows, columns = np.meshgrid(group[:-1], group, indexing="ij")
    np.add.at(grouped, (np.minimum(rows, size - 1), np.minimum(columns, size - 1)), matrix)
    return grouped


def _pairs(now: np.ndarray, was: np.ndarray | None) -> tuple[Pair, ...]:
    wrong = now if was is None else np.maximum(now, was)
    wrong = wrong[:, :-1].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [divmod(int(index), wrong.shape[1]) for index in order]
    return tuple(
        Pair(label, answer, None if was is None else int(was[label, answer]), int(now[label, answer]))
        for label, answer in pairs
        if wrong[label, answer] > 0
    )
