"""Decides which label holds if images with the same content have several.

    decided = decide_labels((parent, away), given, inverse, rows, "quarantine")
    decided.by_content[3], decided.conflicts, decided.notes("quarantine")

If an image has another label than recorded, and is no longer at the old place, the new label replaces the old one: the file is
gone or holds another picture now, or its archive was made again. If it has both labels, or is given with two, that is a
conflict: it is left out, unless `on_conflict` chooses a label.

What was said before says nothing new, however often it is given again: a class folder that is as it was when the image was
recorded, and an old source whose label was corrected since. The corrected label holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kresume.images.manifest import LOCATION
from kresume.images.prepare import Image
from kresume.images.sources.found import ONE_LABEL, Found, canonical, key_of
from kresume.images.sources.tables import still_there
from kresume.spelling import counted, option
from kresume.storage import locations

if TYPE_CHECKING:
    import pyarrow as pa

OnConflict = Literal["quarantine", "old", "new"]
TWO_LABELS = "the same image also has the label "
"""Begins the reason for which an image of two labels is set aside."""


@dataclass(frozen=True)
class Given:
    """Holds every given image and its role, in the order val, data, add.

    `val` comes first, so that an image given for both validates.
    """

    images: list[Image]
    roles: np.ndarray

    VAL, DATA, ADD = 0, 1, 2


@dataclass(frozen=True)
class _Group:
    """Holds the files of one content that has more than one label.

    Attributes:
        members: the given files and their roles.
        record: what the parent, or else an earlier generation, recorded of it; empty for nothing.
        away: True if only an earlier generation has it.
    """

    members: Sequence[tuple[Found, int]]
    record: Mapping[str, Any]
    away: bool


@dataclass(frozen=True)
class _Verdict:
    """Holds the label of a content, None to leave it out, and what it adds to the fields of `Labels`."""

    label: str | None
    conflicts: tuple[tuple[str, str, str], ...] = ()
    relabel: tuple[str, str, str] | None = None
    kept: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Labels:
    """Holds the labels of contents that have several.

    Attributes:
        by_content: the label that holds, None to leave the image out, by the index of the content.
        conflicts: files whose content has two labels, as (path, label, other label).
        undecided: those of them whose image is left out.
        relabels: images that now have another label and no longer the old one, as (path, old label, label).
        kept: images whose recorded label holds against one that it corrected, as (path, the corrected, the recorded).
    """

    by_content: Mapping[int, str | None]
    conflicts: tuple[tuple[str, str, str], ...]
    undecided: tuple[tuple[str, str, str], ...]
    relabels: tuple[tuple[str, str, str], ...]
    kept: tuple[tuple[str, str, str], ...] = ()

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
        if self.relabels:
            path, before, now = self.relabels[0]
            notes.append(
                f"{counted(len(self.relabels), 'image', 'has', 'have')} a new label; the first is {path} ({before} -> {now})"
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
        files = [(given.images[index].found, int(given.roles[index])) for index in members]
        judged[content] = _judge(_Group(files, record, away), on_conflict)
    return Labels(
        {content: each.label for content, each in judged.items()},
        tuple(conflict for each in judged.values() for conflict in each.conflicts),
        tuple(conflict for each in judged.values() if each.label is None for conflict in each.conflicts),
        tuple(each.relabel for each in judged.values() if each.relabel is not None),
        tuple(each.kept for each in judged.values() if each.kept is not None),
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
    return {name: table.column(name)[row].as_py() for name in ("label", "replaced", "sha256", *LOCATION)}


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
    members, record = group.members, group.record
    if record and on_conflict != "new":
        telling = [(found, role) for found, role in members if not _says_nothing_new(found, role, members, record)]
        if not telling:
            told = next(found for found, _ in members if found.label != record["label"])
            return _Verdict(str(record["label"]), kept=(told.name, told.label, str(record["label"])))
        members = telling
    files = [found for found, _ in members]
    named = list(dict.fromkeys(found.label for found in files))
    before = named[0]
    if record:
        before = str(record["label"])
        if named == [before]:
            return _Verdict(before)  # others say nothing new
        key = _key_of(record)
        # A list, or a label in a record, may have been corrected for the image at its place; "old" says that it was not.
        corrected = on_conflict != "old" and any(found.key == key for found in files)
        if len(named) == 1 and (group.away or corrected or not still_there(record)):
            return _Verdict(named[0], relabel=(files[0].name, before, named[0]))
    conflicts = tuple((found.name, found.label, before) for found in files if found.label != before)
    recorded = before if record and not group.away else None  # of one that is away only what is given now counts
    return _Verdict(_chosen(members, named, recorded, on_conflict), conflicts)


def _chosen(
    members: Sequence[tuple[Found, int]], named: Sequence[str], recorded: str | None, on_conflict: OnConflict
) -> str | None:
    """Returns the label that `on_conflict` chooses among several, None if it chooses none.

    Args:
        members: the files and their roles.
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
    by_role = {role: {found.label for found, its in members if its == role} for role in (Given.DATA, Given.ADD)}
    asked = by_role[Given.DATA if on_conflict == "old" else Given.ADD]
    other = by_role[Given.ADD if on_conflict == "old" else Given.DATA]
    return next(iter(asked)) if len(asked) == 1 and other else None


def _key_of(record: Mapping[str, Any]) -> str:
    return key_of(record["path"], record["offset"], record["length"])


def _says_nothing_new(found: Found, role: int, members: Sequence[tuple[Found, int]], record: Mapping[str, Any]) -> bool:
    """Returns True if a label was said before, and another one corrects it.

    It has corrected it since, or a newer source does now. A copy in another folder corrects nothing: the image then has two
    labels.
    """
    corrected_now = any(other.label != found.label and other.key == found.key for other, _ in members)
    if _is_in_its_folder(found, record):
        if found.label == record["label"]:
            return corrected_now
        # If a folder gave the recorded label, too, nothing was corrected: the image has moved between nested folders.
        folders = (record["member"] or record["path"]).split("/")[:-1]
        return record["label"] not in map(canonical, folders)
    if role == Given.ADD:
        return False
    if found.label == record["label"]:
        corrects = [other for other, its in members if its == Given.ADD and other.label != found.label]
        return found.key == _key_of(record) and any(other.key == found.key for other in corrects)
    return bool(found.label == record["replaced"])


def _is_in_its_folder(found: Found, record: Mapping[str, Any]) -> bool:
    """Returns True if the label is that of a class folder in which the image was when it was recorded."""
    source = f"{locations.absolute(found.source)}/"
    if not found.member and not found.path.startswith(source):
        return False  # a list says the label
    place, was = (found.member, record["member"]) if found.member else (found.path[len(source) :], record["path"])
    parts = place.split("/")
    return any(
        canonical(part) == found.label and f"/{was}".endswith(f"/{'/'.join(parts[index:])}")
        for index, part in enumerate(parts[:-1])
    )
