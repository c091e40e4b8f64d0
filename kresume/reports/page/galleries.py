"""Chooses the pictures of a page: newly right or wrong, confident mistakes, some of each cell.

    chosen = choose(source, confusion)
    chosen.galleries[0].rows            # rows of the answers, the most telling first
    chosen.cells["after"][(3, 5)]

Every list is cut, so a page of a thousand classes or fifty thousand images stays small; the counts are of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kresume.evaluation.answers import Answers
from kresume.reports.page.confusion import Confusion
from kresume.reports.page.source import Compared

MOST_IN_GALLERY = 60
MOST_IN_CELL = 24
MOST_PICTURES = 1200
"""Pictures with details in the page, over all lists."""
CONFIDENT = 0.8
"""Probability from which a mistake is called confident."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """A list of pictures.

    Attributes:
        key: its name in the page.
        title: its heading.
        about: what it shows, in words.
        count: how many images belong to it.
        sure: of how many of them the model is sure; None where that is not the point.
        rows: rows of the answers, the most telling first; at most `MOST_IN_GALLERY`.
    """

    key: str
    title: str
    about: str
    count: int
    rows: tuple[int, ...]
    sure: int | None = None


Cells = Mapping[tuple[int, int], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Chosen:
    """The pictures of a page.

    Attributes:
        galleries: the lists.
        cells: rows of each cell (row, column) of the confusion: by `after` and `before` those in it, by `came` and `left`
            those that are only in the cell after, or only before.
        moved: by `came` and `left`, how many images each cell has of these.
        pairs: rows of the pictures of each confused pair (label, answer), by `after` and `before`.
        rows: all rows, the most important first, each once.
    """

    galleries: tuple[Gallery, ...]
    cells: Mapping[str, Cells]
    moved: Mapping[str, Mapping[tuple[int, int], int]]
    pairs: Mapping[str, Cells]
    rows: tuple[int, ...]


def choose(source: Compared, confusion: Confusion | None) -> Chosen:
    """Chooses the pictures of a page."""
    after = source.after.answers
    if after is None or confusion is None:
        return Chosen((), {}, {}, {}, ())
    before = source.before_answers
    galleries = tuple(_galleries(before, after))
    sides = {"after": after} | ({"before": before} if before is not None else {})
    wanted = {(pair.label, pair.answer) for pair in confusion.pairs}
    pairs = {name: _by_pair(answers, wanted) for name, answers in sides.items()}
    columns = {name: _columns(answers, confusion) for name, answers in sides.items()}
    row = np.minimum(confusion.group[after.labels], len(confusion.names) - 1)
    cells = {name: _by_key(row, columns[name], answers) for name, answers in sides.items()}
    moved: dict[str, Mapping[tuple[int, int], int]] = {}
    if before is not None:
        rows = np.nonzero(columns["after"] != columns["before"])[0]
        for name, side in (("came", "after"), ("left", "before")):
            column = columns[side][rows]
            cells[name] = _renamed(_by_key(row[rows], column, sides[side].at(rows)), rows)
            moved[name] = Counter(zip(row[rows].tolist(), column.tolist(), strict=True))
    order = _in_turn([*(gallery.rows for gallery in galleries), *_lists(pairs), *_lists(cells)])[:MOST_PICTURES]
    kept = set(order)
    return Chosen(galleries, _within(cells, kept), moved, _within(pairs, kept), order)


def _galleries(before: Answers | None, after: Answers) -> Iterator[Gallery]:
    right = after.right
    sure = after.top_scores[:, 0]
    if before is not None:
        yield _gallery(
            "gained",
            "Newly right",
            "Only the new model gets these right. The largest gain in the probability of the true class comes first.",
            ~before.right & right,
            before.label_scores - after.label_scores,
        )
        yield _gallery(
            "lost",
            "Newly wrong",
            "These were right before and are wrong now. The largest fall in the probability of the true class comes first.",
            before.right & ~right,
            after.label_scores - before.label_scores,
        )
    confident = int((~right & (np.nan_to_num(sure) >= CONFIDENT)).sum())
    yield replace(
        _gallery(
            "mistakes",
            "Most confident mistakes",
            "All that the model gets wrong, the surest first. Each at the top is a candidate for a wrong label: look at the "
            "picture. If the label is wrong, move the file to the right class folder and give the folder again; if the "
            "picture is useless, --drop it.",
            ~right,
            -sure,
        ),
        sure=confident,
    )


def _gallery(key: str, title: str, about: str, mask: np.ndarray, order: np.ndarray) -> Gallery:
    rows = np.nonzero(mask)[0]
    ranked = rows[np.argsort(order[rows], kind="stable")]
    return Gallery(key, title, about, len(rows), tuple(ranked[:MOST_IN_GALLERY].tolist()))


def _columns(answers: Answers, confusion: Confusion) -> np.ndarray:
    """Returns the column of each image in the confusion; NO_CLASS is -1, the last entry of the group."""
    return np.asarray(np.minimum(confusion.group[answers.chosen], len(confusion.names) - 1))


def _renamed(cells: Cells, rows: np.ndarray) -> Cells:
    """Replaces indices into `rows` by the rows."""
    return {key: tuple(int(rows[index]) for index in indices) for key, indices in cells.items()}


def _by_pair(answers: Answers, wanted: set[tuple[int, int]]) -> Cells:
    codes = answers.labels.astype(np.int64) * (int(answers.chosen.max(initial=0)) + 2) + answers.chosen
    asked = [label * (int(answers.chosen.max(initial=0)) + 2) + answer for label, answer in wanted]
    rows = np.nonzero(np.isin(codes, asked))[0]
    found = _renamed(_by_key(answers.labels[rows], answers.chosen[rows], answers.at(rows)), rows)
    return {key: indices for key, indices in found.items() if key in wanted}


def _by_key(first: np.ndarray, second: np.ndarray, answers: Answers) -> Cells:
    """Groups rows by two indices; in each the surest mistakes and the least sure right answers come first."""
    sure = np.nan_to_num(answers.top_scores[:, 0])
    order = np.lexsort((np.where(answers.right, sure, -sure), second, first))
    found: dict[tuple[int, int], list[int]] = {}
    for index in order.tolist():
        rows = found.setdefault((int(first[index]), int(second[index])), [])
        if len(rows) < MOST_IN_CELL:
            rows.append(index)
    return {key: tuple(rows) for key, rows in found.items()}


def _lists(cells: Mapping[str, Cells]) -> Iterator[tuple[int, ...]]:
    """Yields the lists of the cells, mistakes before right answers."""
    for wanted in (False, True):
        for side in cells.values():
            yield from (rows for (row, column), rows in side.items() if (row == column) == wanted)


def _in_turn(lists: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Takes from each list in turn, so that every list has pictures before one has all of its own."""
    found: dict[int, None] = {}
    for depth in range(max(map(len, lists), default=0)):
        for rows in lists:
            if depth < len(rows):
                found.setdefault(rows[depth])
    return tuple(found)


def _within(cells: Mapping[str, Cells], kept: set[int]) -> dict[str, Cells]:
    return {
        name: {key: tuple(row for row in rows if row in kept) for key, rows in side.items()}
        for name, side in cells.items()
    }
