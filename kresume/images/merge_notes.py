"""Describes what merging found: known images, old ones that nobody recorded, classes without images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kresume.images.conflicts import Given, Labels
from kresume.images.manifest import Manifest
from kresume.images.splits import Row
from kresume.spelling import counted, option


def describe_known(given: Given, inverse: np.ndarray, rows: np.ndarray, parent: Manifest, labels: Labels) -> list[str]:
    """Returns a note on images that were given as new and that the parent has.

    Those with another label have their own.
    """
    contents = np.unique(inverse[given.roles == Given.ADD])
    known = [
        row
        for content, row in zip(contents, rows[contents], strict=True)
        if row >= 0 and content not in labels.by_content
    ]
    if not known:
        return []
    one, validating = len(known) == 1, int(parent.is_val[known].sum())
    sides = (
        f"; {validating:,} of them {'validates' if validating == 1 else 'validate'}, as before" if validating else ""
    )
    return [
        f"{counted(len(known), 'image')} of {option('add')} {'is' if one else 'are'} among the parent's already, and "
        f"{'counts' if one else 'count'} once, as {'it was' if one else 'they were'}{sides}"
    ]


def describe_unrecorded(newcomers: Sequence[Row], generation: int) -> list[str]:
    """Returns a note on images that were given as old ones, which the parent does not have."""
    count = sum(row["origin"] < generation for row in newcomers if row["side"] is not None)
    if not count:
        return []
    return [
        f"{counted(count, 'image')} of {option('data')}, not among those that the parent was trained or scored on, "
        f"{'counts' if count == 1 else 'count'} as old all the same; with {option('add')}, as new"
    ]


def describe_absent(merged: Manifest) -> list[str]:
    """Returns notes on classes without images, and on those without images to train on."""
    names = np.array(merged.classes)
    count, trained = (np.bincount(merged.labels[rows], minlength=len(names)) for rows in (slice(None), ~merged.is_val))
    absent, validating = names[count == 0], names[(count > 0) & (trained == 0)]
    notes = [f"no image of {', '.join(absent)}: a prediction of it is never right"] if len(absent) else []
    if len(validating) and trained.any():
        notes.append(f"no image of {', '.join(validating)} trains, all of them validate: the model may forget it")
    return notes
