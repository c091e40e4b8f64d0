"""Finds the same bytes given for validation and for training, or on another side than recorded.

recorded = Recorded.of(parent, rows, unique, back)
both = given_for_both(given, inverse, recorded, left_out)     # (path, other path, "validates" | "trains" | ...)
describe_both(both)                                           # notes for the user
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kresume.images.away import WAS
from kresume.images.conflicts import Given
from kresume.images.manifest import TRAIN, VAL, Manifest
from kresume.images.splits import Row
from kresume.spelling import counted

STILL_VALIDATES = "still validates"


@dataclass(frozen=True)
class Recorded:
    """Holds what is recorded of the given images.

    Attributes:
        is_val: `(contents,) int8`: 1 for validation, 0 for training, -1 for a content that is not recorded.
        back: recorded path by content, of those that are back.
        parent: the parent's images; None if there are none.
        rows: `(contents,)` row of each in the parent, -1 for none.
    """

    is_val: np.ndarray
    back: Mapping[int, str]
    parent: Manifest | None
    rows: np.ndarray

    @classmethod
    def of(cls, parent: Manifest | None, rows: np.ndarray, unique: np.ndarray, back: Sequence[Row]) -> Recorded:
        """Collects it; `unique` are the SHA-256s of the contents, ascending."""
        is_val = np.full(len(rows), -1, np.int8)
        if parent is not None:
            is_val[rows >= 0] = parent.is_val[rows[rows >= 0]]
        places = np.searchsorted(unique, np.array([row["sha256"] for row in back], "S64")).tolist()
        for place, row in zip(places, back, strict=True):
            is_val[place] = row["side"] == VAL
        return cls(is_val, {place: row[WAS] for place, row in zip(places, back, strict=True)}, parent, rows)

    def path(self, content: int) -> str:
        """Returns the recorded path of a content."""
        if self.parent is None or content in self.back:
            return self.back[content]
        return self.parent.paths(self.rows[content : content + 1])[0]


def given_for_both(
    given: Given, inverse: np.ndarray, recorded: Recorded, left_out: Collection[int]
) -> tuple[tuple[str, str, str], ...]:
    """Finds exact leaks: the same bytes given for validation and for training.

    A recorded split holds; otherwise the image validates.

    Args:
        given: the given images.
        inverse: index of each one's content.
        recorded: what is recorded of the contents.
        left_out: contents that are not used.

    Returns:
        (path, other path, outcome) of each.
    """
    validates = (given.roles == Given.VAL) | np.array([image.found.split == VAL for image in given.images], bool)
    trains = np.array([image.found.split == TRAIN for image in given.images], bool) & ~validates
    validating = np.full(len(recorded.is_val), -1)
    validating[inverse[validates]] = np.nonzero(validates)[0]
    used = np.ones(len(recorded.is_val), bool)
    used[list(left_out)] = False
    doubled = used & (recorded.is_val < 0) & (validating >= 0)
    kept_training = used & (recorded.is_val == 0) & (validating >= 0)
    kept_validating = used & (recorded.is_val == 1) & (validating < 0)
    found = []
    for index in np.nonzero(~validates & doubled[inverse])[0]:
        other = given.images[validating[inverse[index]]].found.name
        found.append((given.images[index].found.name, other, "validates"))
    for content in np.nonzero(kept_training)[0].tolist():
        found.append((given.images[validating[content]].found.name, recorded.path(content), "trains"))
    for index in np.nonzero(trains & kept_validating[inverse])[0]:
        found.append((given.images[index].found.name, recorded.path(int(inverse[index])), STILL_VALIDATES))
    return tuple(found)


def describe_both(both: Sequence[tuple[str, str, str]]) -> list[str]:
    """Returns a note on each kind of what `given_for_both` found."""
    notes = []
    for outcome, text in (
        ("validates", "given for training and for validation, used for validation"),
        ("trains", "given for validation, but recorded for training, and still used for training"),
        (STILL_VALIDATES, "in a folder for training, but recorded for validation, and still used for validation"),
    ):
        if named := [path for path, _, became in both if became == outcome]:
            notes.append(f"{counted(len(named), 'image')}: {text}; the first is {named[0]}")
    return notes
