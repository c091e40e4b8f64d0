"""Decides which label holds if images with the same content have several.

    decided = decide_labels(parent, given, inverse, rows, "quarantine")
    decided.by_content[3], decided.conflicts, decided.notes("quarantine")

If an image has another label than recorded, and is no longer at the old place, the new label replaces the old one: the file is
gone or holds another picture now, or its archive was made again. If it has both labels, or is given with two, that is a
conflict: it is left out, unless `on_conflict` chooses a label.

A class folder that still says what it said when the image was recorded says nothing new: a label that corrected it since
holds, however often the folder is given again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kresume.images.manifest import LOCATION, Manifest
from kresume.images.prepare import Image
from kresume.images.sources.found import ONE_LABEL, STREAM_CODINGS, Found, canonical, key_of
from kresume.images.sources.tables import is_there
from kresume.spelling import counted, option
from kresume.storage import locations

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
        members: indices of the given images, ascending.
        row: index of the parent's row, -1 for none.
    """

    members: np.ndarray
    row: int


@dataclass(frozen=True)
class Labels:
    """Holds the labels of contents that have several.

    Attributes:
        by_content: the label that holds, None to leave the image out, by the index of the content.
        conflicts: files whose content has two labels, as (path, label, other label).
        undecided: those of them whose image is left out.
        relabels: images that now have another label and no longer the old one, as (path, old label, label).
        kept: images whose recorded label holds against that of their folder, as (path, the folder's, the recorded).
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
                f" ({option('on-conflict', 'new')} uses the newer label, where one is newer)"
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
            path, folder, label = self.kept[0]
            notes.append(
                f"{counted(len(self.kept), 'image', 'keeps', 'keep')} the label that corrected "
                f"{'its folder' if len(self.kept) == 1 else 'their folders'} before; the first is {path} ({label}; its folder "
                f"still says {folder}): {option('on-conflict', 'new')} takes the folders' labels"
            )
        return notes


def decide_labels(
    parent: Manifest | None, given: Given, inverse: np.ndarray, rows: np.ndarray, on_conflict: OnConflict
) -> Labels:
    """Decides the label of every content that has several.

    Args:
        parent: the parent's manifest, None for none.
        given: the given images.
        inverse: index of the content of each given image.
        rows: index of the parent's row of each content, -1 for none.
        on_conflict: `"quarantine"` uses neither label, `"old"` keeps the older label, `"new"` uses the newer one.
    """
    labels, recorded = _label_codes(parent, given, rows)
    conflicts: list[tuple[str, str, str]] = []
    undecided: list[tuple[str, str, str]] = []
    relabels: list[tuple[str, str, str]] = []
    kept: list[tuple[str, str, str]] = []
    by_content: dict[int, str | None] = {}
    for content, members in _contradictions(labels, recorded, inverse, rows, len(rows)).items():
        before, group = len(conflicts), _Group(members, int(rows[content]))
        by_content[content] = _judge(group, parent, given, on_conflict, conflicts, relabels, kept)
        if by_content[content] is None:
            undecided += conflicts[before:]
    return Labels(by_content, tuple(conflicts), tuple(undecided), tuple(relabels), tuple(kept))


def _label_codes(parent: Manifest | None, given: Given, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps labels to integers.

    Returns:
        `(codes of the given images, codes of the parent's row for each content)`, -1 if the parent has no row.
    """
    codes: dict[str, int] = {}
    labels = np.array([codes.setdefault(image.found.label, len(codes)) for image in given.images], np.int64)
    recorded = np.full(len(rows), -1, np.int64)
    known = np.nonzero(rows >= 0)[0]
    if parent is not None and len(known):
        names = parent.table.column("label").take(rows[known]).to_pylist()
        recorded[known] = [codes.setdefault(name, len(codes)) for name in names]
    return labels, recorded


def _contradictions(
    labels: np.ndarray, recorded: np.ndarray, inverse: np.ndarray, rows: np.ndarray, count: int
) -> dict[int, np.ndarray]:
    """Finds contents with more than one label.

    Returns:
        Indices of the given images that hold each such content, by the index of the content.
    """
    lowest, highest = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(lowest, inverse, labels)
    np.maximum.at(highest, inverse, labels)
    differs = lowest != highest
    differs |= (rows >= 0) & (lowest != recorded)
    chosen = np.nonzero(differs)[0]
    if not len(chosen):
        return {}
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], [chosen, chosen + 1])
    return {
        int(content): np.sort(order[start:end])
        for content, start, end in zip(chosen, bounds[0], bounds[1], strict=True)
    }


def _judge(
    group: _Group,
    parent: Manifest | None,
    given: Given,
    on_conflict: OnConflict,
    conflicts: list[tuple[str, str, str]],
    relabels: list[tuple[str, str, str]],
    kept: list[tuple[str, str, str]],
) -> str | None:
    """Chooses the label of a content with several; None leaves it out.

    Appends to `conflicts`, `relabels` or `kept`.
    """
    images = [given.images[index] for index in group.members]
    record: dict[str, Any] = {}
    if group.row >= 0 and parent is not None:
        record = {name: parent.table.column(name)[group.row].as_py() for name in ("label", "sha256", *LOCATION)}
    if record and on_conflict != "new":
        telling = [image for image in images if not _says_nothing_new(image.found, images, record)]
        if not telling:
            told = next(image.found for image in images if image.found.label != record["label"])
            kept.append((told.name, told.label, str(record["label"])))
            return str(record["label"])
        images = telling
    named = list(dict.fromkeys(image.found.label for image in images))
    before = named[0]
    if record:
        before = str(record["label"])
        if named == [before]:
            return before  # others say nothing new
        key = key_of(record["path"], record["offset"], record["length"])
        # A list, or a label in a record, may have been corrected for the image at its place; "old" says that it was not.
        corrected = on_conflict != "old" and any(image.found.key == key for image in images)
        if len(named) == 1 and (corrected or not _still_there(record)):
            relabels.append((images[0].found.name, before, named[0]))
            return str(named[0])
    conflicts += [(image.found.name, image.found.label, before) for image in images if image.found.label != before]
    if on_conflict == "quarantine":
        return None
    if group.row >= 0:
        others = [label for label in named if label != before]
        return before if on_conflict == "old" else others[0] if len(others) == 1 else None
    # Only newcomers: `--data` is old and `--add` is new. Two labels within one of them have no order.
    by_role = {
        role: {given.images[index].found.label for index in group.members if given.roles[index] == role}
        for role in (Given.DATA, Given.ADD)
    }
    asked = by_role[Given.DATA if on_conflict == "old" else Given.ADD]
    other = by_role[Given.ADD if on_conflict == "old" else Given.DATA]
    return next(iter(asked)) if len(asked) == 1 and other else None


def _says_nothing_new(found: Found, images: Sequence[Image], record: Mapping[str, Any]) -> bool:
    """Returns True if an image's class folder is as it was, and another label corrects it.

    It has corrected it since, or a list does now. A copy in another folder corrects nothing: the image then has two labels.
    """
    if not _is_in_its_folder(found, record):
        return False
    if found.label != record["label"]:
        # If a folder gave the recorded label, too, nothing was corrected: the image has moved between nested folders.
        folders = (record["member"] or record["path"]).split("/")[:-1]
        return record["label"] not in map(canonical, folders)
    return any(image.found.label != found.label and image.found.key == found.key for image in images)


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


def _still_there(record: Mapping[str, Any]) -> bool:
    """Returns True if the recorded place of an image still holds it.

    In a changed archive that is compressed as a whole it counts as there: to look would unpack everything before it.
    """
    try:
        facts = locations.stat(record["path"])
    except (OSError, ValueError):  # ValueError: no file can have this name
        return False
    if (facts.st_size, facts.st_mtime_ns) == (record["bytes"], record["mtime_ns"]):
        return True
    return record["coding"] in STREAM_CODINGS or is_there(record)
