"""Decides which label holds if images with the same content have several.

    decided = decide_labels((parent, away), given, inverse, rows, "quarantine")
    decided.by_content[3], decided.conflicts, decided.notes("quarantine")

If an image has another label than recorded, and is no longer at the old place, the new label replaces the old one: the file is
gone or holds another picture now, or its archive was made again. If it has both labels, or is given with two, that is a
conflict: it is left out, unless `on_conflict` chooses a label.

What was said before says nothing new, however often it is given again (`said_before.py`): the corrected label holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kresume.images.manifest import LOCATION
from kresume.images.prepare import Image
from kresume.images.said_before import Said, replaced_by, says_nothing_new
from kresume.images.sources.found import ONE_LABEL, Found, key_of_row
from kresume.images.sources.tables import still_there
from kresume.spelling import counted, option

if TYPE_CHECKING:
    import pyarrow as pa

OnConflict = Literal["quarantine", "old", "new"]
TWO_LABELS = "the same image also has the label "
"""Begins the reason for which an image of two labels is set aside."""


@dataclass(frozen=True)
class Given:
    """Holds every given image, its role, and whether its label is news, in the order val, data, add.

    `val` comes first, so that an image given for both validates.
    """

    images: list[Image]
    roles: np.ndarray
    news: np.ndarray

    VAL, DATA, ADD = 0, 1, 2


@dataclass(frozen=True)
class _Group:
    """Holds the files of one content that has more than one label.

    Attributes:
        members: what the given files say.
        record: what the parent, or else an earlier generation, recorded of it; empty for nothing.
        away: True if the parent does not have it: if anything is recorded, an earlier generation has it.
    """

    members: Sequence[Said]
    record: Mapping[str, Any]
    away: bool


@dataclass(frozen=True)
class Correction:
    """Holds the columns `replaced` and `source` of an image whose label is corrected."""

    replaced: str
    source: str


@dataclass(frozen=True)
class _Verdict:
    """Holds the label of a content, None to leave it out, and what it adds to the fields of `Labels`."""

    label: str | None
    conflicts: tuple[tuple[str, str, str], ...] = ()
    relabel: tuple[str, str, str] | None = None
    kept: tuple[str, str, str] | None = None
    correction: Correction | None = None


@dataclass(frozen=True)
class Labels:
    """Holds the labels of contents that have several.

    Attributes:
        by_content: the label that holds, None to leave the image out, by the index of the content.
        conflicts: files whose content has two labels, as (path, label, other label).
        undecided: those of them whose image is left out.
        relabels: images that now have another label and no longer the old one, as (path, old label, label).
        kept: images whose recorded label holds against one that it corrected, as (path, the corrected, the recorded).
        corrections: what else changes in the rows of relabelled images, by the index of the content.
    """

    by_content: Mapping[int, str | None]
    conflicts: tuple[tuple[str, str, str], ...]
    undecided: tuple[tuple[str, str, str], ...]
    relabels: tuple[tuple[str, str, str], ...]
    kept: tuple[tuple[str, str, str], ...] = ()
    corrections: Mapping[int, Correction] = field(default_factory=dict)

    @property
    def left_out(self) -> set[int]:
        """Returns the indices of the contents that are left out."""
        return {content for content, label in self.by_content.items() if label is None}

    def notes(self, on_conflict: OnConflict) -> list[str]:
        """Returns messages for the user."""
        notes = []
        if self.undecided:
            path, label, other = self.undecided[0]
            within = (
                f" (when training, {option('on-conflict', 'new')} uses the newer label, where one is newer)"
                if on_conflict == "quarantine"
                else f" ({option('on-conflict', on_conflict)} cannot tell which label is older)"
            )
            notes.append(
                f"{counted(len(self.left_out), 'image', 'has', 'have')} two labels and "
                f"{'is' if len(self.left_out) == 1 else 'are'} left out{within}; the first is {path} "
                f"({label} and {other}): {ONE_LABEL}"
            )
        left_out = set(self.undecided)
        if decided := [each for each in self.conflicts if each not in left_out]:
            path, label, other = decided[0]
            notes.append(
                f"{counted(len(decided), 'file', 'has', 'have')} two labels, the {on_conflict} one is used; the "
                f"first is {path} "
                f"({label} and {other})"
            )
        told = {(path, other, label) for path, label, other in self.conflicts}
        if alone := [each for each in self.relabels if each not in told]:
            path, before, now = alone[0]
            notes.append(
                f"{counted(len(alone), 'image', 'has', 'have')} a new label; the first is {path} ({before} -> {now})"
            )
        if self.kept:
            path, given, label = self.kept[0]
            notes.append(
                f"{counted(len(self.kept), 'image', 'keeps', 'keep')} the label that corrected "
                f"{'its source' if len(self.kept) == 1 else 'their sources'} before; the first is {path} ({label}; its source "
                f"still says {given}): {option('on-conflict', 'new')} takes the sources' labels"
            )
        return notes


def decide_labels(
    tables: tuple[pa.Table | None, pa.Table | None],
    given: Given,
    inverse: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray],
    on_conflict: OnConflict,
) -> Labels:
    """Decides the label of every content that has several.

    Args:
        tables: the parent's rows, and those of the images that only earlier generations have; None for none.
        given: the given images.
        inverse: index of the content of each given image.
        rows: index of the row of each content in either table, -1 for none.
        on_conflict: `"quarantine"` uses neither label, `"old"` keeps the older label, `"new"` uses the newer one.
    """
    labels, recorded = _label_codes(tables, given, rows)
    judged = {}
    for content, members in _contradictions(labels, recorded, inverse).items():
        away = int(rows[0][content]) < 0
        record = _record(tables[away], int(rows[away][content]))
        files = [Said(given.images[index].found, int(given.roles[index]), bool(given.news[index])) for index in members]
        judged[content] = _judge(_Group(files, record, away), on_conflict)
    return Labels(
        {content: each.label for content, each in judged.items()},
        tuple(conflict for each in judged.values() for conflict in each.conflicts),
        tuple(conflict for each in judged.values() if each.label is None for conflict in each.conflicts),
        tuple(each.relabel for each in judged.values() if each.relabel is not None),
        tuple(each.kept for each in judged.values() if each.kept is not None),
        {content: each.correction for content, each in judged.items() if each.correction is not None},
    )


def _label_codes(
    tables: tuple[pa.Table | None, pa.Table | None], given: Given, rows: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Maps labels to integers.

    Returns:
        `(codes of the given images, codes of the recorded label of each content)`, -1 if none is recorded.
    """
    codes: dict[str, int] = {}
    labels = np.array([codes.setdefault(image.found.label, len(codes)) for image in given.images], np.int64)
    recorded = np.full(len(rows[0]), -1, np.int64)
    for table, its in zip(tables, rows, strict=True):
        known = np.nonzero((its >= 0) & (recorded < 0))[0]
        if table is not None and len(known):
            names = table.column("label").take(its[known]).to_pylist()
            recorded[known] = [codes.setdefault(name, len(codes)) for name in names]
    return labels, recorded


def _record(table: pa.Table | None, row: int) -> dict[str, Any]:
    """Returns what is recorded of an image; empty for row -1."""
    if table is None or row < 0:
        return {}
    return {name: table.column(name)[row].as_py() for name in ("label", "replaced", "source", "sha256", *LOCATION)}


def _contradictions(labels: np.ndarray, recorded: np.ndarray, inverse: np.ndarray) -> dict[int, np.ndarray]:
    """Finds contents with more than one label.

    Returns:
        Indices of the given images that hold each such content, by the index of the content.
    """
    count = len(recorded)
    lowest, highest = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(lowest, inverse, labels)
    np.maximum.at(highest, inverse, labels)
    differs = lowest != highest
    differs |= (recorded >= 0) & (lowest != recorded)
    chosen = np.nonzero(differs)[0]
    if not len(chosen):
        return {}
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], [chosen, chosen + 1])
    return {
        int(content): np.sort(order[start:end])
        for content, start, end in zip(chosen, bounds[0], bounds[1], strict=True)
    }


def _judge(group: _Group, on_conflict: OnConflict) -> _Verdict:
    """Chooses the label of a content with several."""
    members, record, label = group.members, group.record, str(group.record.get("label", ""))
    if record and on_conflict != "new":
        corrects = on_conflict != "old"
        members = [each for each in members if not says_nothing_new(each, group.members, record, corrects=corrects)]
    if record and all(each.found.label == label for each in members):
        told = next(each.found for each in group.members if each.found.label != label)
        return _Verdict(label, kept=(told.name, told.label, label))
    files = [each.found for each in members]
    named = list(dict.fromkeys(found.label for found in files))
    if record and len(named) == 1 and (group.away or _is_corrected(files, record, on_conflict)):
        return _corrected(files[0], record)
    recorded = label if record and not group.away else None  # of one that is away only what is given now counts
    before = recorded or named[0]
    conflicts = tuple((found.name, found.label, before) for found in files if found.label != before)
    chosen = _chosen(members, named, recorded, on_conflict)
    if record and chosen not in {None, label}:
        return replace(_corrected(next(found for found in files if found.label == chosen), record), conflicts=conflicts)
    return _Verdict(chosen, conflicts)


def _is_corrected(files: Sequence[Found], record: Mapping[str, Any], on_conflict: OnConflict) -> bool:
    """Returns True if another label corrects the recorded one.

    It is said of the same place, or the image has left its place. A list, or a label in a record, may have been corrected for
    the image at its place; `"old"` says that it was not.
    """
    key = key_of_row(record)
    return (on_conflict != "old" and any(found.key == key for found in files)) or not still_there(record)


def _corrected(found: Found, record: Mapping[str, Any]) -> _Verdict:
    """Returns the verdict that a file's label replaces the recorded one."""
    correction = Correction(replaced_by(found, record), found.source)
    return _Verdict(found.label, relabel=(found.name, str(record["label"]), found.label), correction=correction)


def _chosen(members: Sequence[Said], named: Sequence[str], recorded: str | None, on_conflict: OnConflict) -> str | None:
    """Returns the label that `on_conflict` chooses among several, None if it chooses none.

    Args:
        members: the files.
        named: their labels.
        recorded: the label that the parent recorded, None for an image that it does not have.
        on_conflict: as in `decide_labels`.
    """
    if on_conflict == "quarantine":
        return None
    if recorded is not None:
        others = [label for label in named if label != recorded]
        return recorded if on_conflict == "old" else others[0] if len(others) == 1 else None
    # Only newcomers: `--data` is old and `--add` is new. Two labels within one of them have no order.
    by_role = {role: {each.found.label for each in members if each.role == role} for role in (Given.DATA, Given.ADD)}
    asked = by_role[Given.DATA if on_conflict == "old" else Given.ADD]
    other = by_role[Given.ADD if on_conflict == "old" else Given.DATA]
    return next(iter(asked)) if len(asked) == 1 and other else None
