"""Finds the same bytes given for validation and for training, or on another side than recorded.

recorded = recorded_sides(parent, rows, unique, back)
both = given_for_both(given, inverse, recorded, left_out)     # (path, other path, "validates" | "trains" | ...)
describe_both(both)                                           # notes for the user
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from kresume.images.away import WAS
from kresume.images.conflicts import Given
from kresume.images.manifest import TRAIN, VAL, Manifest
from kresume.images.splits import Row
from kresume.spelling import counted

STILL_VALIDATES = "still validates"


def recorded_sides(
    parent: Manifest | None, rows: np.ndarray, unique: np.ndarray, back: Sequence[Row]
) -> dict[int, tuple[str, str]]:
    """Returns the recorded split and path by content, of the parent's images and of those that are back."""
    known = np.nonzero(rows >= 0)[0]
    found: dict[int, tuple[str, str]] = {}
    if parent is not None and len(known):
        sides = np.where(parent.is_val[rows[known]], VAL, TRAIN).tolist()
        found |= dict(zip(known.tolist(), zip(sides, parent.paths(rows[known]), strict=True), strict=True))
    places = np.searchsorted(unique, np.array([row["sha256"] for row in back], "S64")).tolist()
    return found | {place: (row["side"], row[WAS]) for place, row in zip(places, back, strict=True)}


def given_for_both(
    given: Given,
    inverse: np.ndarray,
    recorded: Mapping[int, tuple[str, str]],
    left_out: Collection[int],
) -> tuple[tuple[str, str, str], ...]:
    """Finds exact leaks: the same bytes given for validation and for training.

    A recorded split holds; otherwise the image validates.

    Args:
        given: the given images.
        inverse: index of each one's content.
        recorded: split and path of the contents that are recorded.
        left_out: contents that are not used.

    Returns:
        (path, other path, outcome) of each.
    """
    validates = (given.roles == Given.VAL) | np.array([image.found.split == VAL for image in given.images], bool)
    trains = np.array([image.found.split == TRAIN for image in given.images], bool) & ~validates
    validating = {int(inverse[index]): index for index in np.nonzero(validates)[0].tolist()}
    found = []
    for index in np.nonzero(~validates)[0].tolist():
        content = int(inverse[index])
        if content in validating and content not in recorded and content not in left_out:
            found.append((given.images[index].found.name, given.images[validating[content]].found.name, "validates"))
    for content, index in sorted(validating.items()):
        side, path = recorded.get(content, (VAL, ""))
        if side == TRAIN and content not in left_out:
            found.append((given.images[index].found.name, path, "trains"))
    for index in np.nonzero(trains)[0].tolist():
        content = int(inverse[index])
        side, path = recorded.get(content, (TRAIN, ""))
        if side == VAL and content not in validating and content not in left_out:
            found.append((given.images[index].found.name, path, STILL_VALIDATES))
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
