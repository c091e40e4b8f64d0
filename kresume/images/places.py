"""Decides where a known image is read from, if it is given again.

    places = current_places(parent, given, known, rows, files_of)      # None: it stays where it is recorded

A copy of an image moves nothing while the image is where it was: who deletes the copy later must not lose it. `--data` says
where the old images are now, and what is no longer at its place is read from where it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kresume.images.conflicts import Given
from kresume.images.manifest import Manifest
from kresume.images.sources.found import Found, key_of_row
from kresume.images.sources.tables import still_there
from kresume.storage import locations

COLUMNS = ["path", "bytes", "mtime_ns", "stamp", "offset", "length", "coding", "sha256"]
"""Columns by which `still_there` finds out if an image is where it was recorded."""


def current_places(
    parent: Manifest, given: Given, known: np.ndarray, rows: np.ndarray, files_of: Callable[[int], np.ndarray]
) -> list[Found | None]:
    """Returns where each known image is now.

    Args:
        parent: the recorded images.
        given: the given ones.
        known: `(n,)` contents that both have.
        rows: index of the parent's row of every content.
        files_of: returns the indices of the given images of a content, ascending.

    Returns:
        One given image for each content; None for one that stays where it is recorded.
    """
    folders: dict[str, set[str]] = {}
    return [
        _place(given, files_of(int(content)), record, folders)
        for content, record in zip(known, parent.table.select(COLUMNS).take(rows[known]).to_pylist(), strict=True)
    ]


def _place(given: Given, files: np.ndarray, record: Mapping[str, Any], folders: dict[str, set[str]]) -> Found | None:
    key = key_of_row(record)
    found: list[Found] = [given.images[file].found for file in files]
    old = [each for each, file in zip(found, files, strict=True) if given.roles[file] == Given.DATA]
    same = [each for each in found if each.key == key]
    if not same and not old and _is_named(record["path"], folders) and still_there(record):
        return None
    return (same or old or found)[0]


def _is_named(path: str, folders: dict[str, set[str]]) -> bool:
    """Tests whether a file's folder names it. Each folder is read once, also one that moved."""
    folder = locations.parent(path)
    if folder not in folders:
        try:
            folders[folder] = {entry.name for entry in locations.entries(folder)}
        except (OSError, ValueError):  # ValueError: no folder can have this name
            folders[folder] = set()
    return path.rpartition("/")[2] in folders[folder]
