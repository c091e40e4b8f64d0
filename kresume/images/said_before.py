"""Tells labels that were said before, and corrected, from those that are news.

    says_nothing_new(Said(found, role, news=False), others, record, "quarantine")

Folders and lists are given again every week, and go on saying what they said. Three kinds of labels say nothing new: that of a
class folder which is as it was when the image was recorded, an old one that a newer source corrects now, and, of an old list
or archive, one that was corrected since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kresume.class_names import canonical
from kresume.images.sources.found import Found, key_of_row
from kresume.storage import locations


@dataclass(frozen=True)
class Said:
    """Holds what one file says of an image.

    Attributes:
        found: the file, with its label.
        role: `Given.VAL`, `Given.DATA` or `Given.ADD`.
        news: True if its source is new (`--add`), False for one of old images and for one that validates.
    """

    found: Found
    role: int
    news: bool


def says_nothing_new(said: Said, every: Sequence[Said], record: Mapping[str, Any], *, corrects: bool) -> bool:
    """Returns True if a label was said before, and another one corrects it.

    A copy in another folder corrects nothing: the image then has two labels.

    Args:
        said: the label of one file.
        every: those of all files of the image.
        record: the recorded image.
        corrects: False if no newer source is to correct it (`--on-conflict old`).
    """
    found, in_folder = said.found, _is_in_its_folder(said.found, record)
    if found.label == record["label"]:
        return corrects and _is_corrected_now(said, every, record, in_folder=in_folder)
    if in_folder:
        # If a folder gave the recorded label, too, nothing was corrected: the image has moved between nested folders.
        return record["label"] not in map(canonical, _folders(record["member"] or record["path"]))
    if said.news or is_of_a_folder(found) or _is_its_source(found, record):
        return False  # a move, or a source that changes its own word
    return found.label in labels_in(record["replaced"])


def _is_its_source(found: Found, record: Mapping[str, Any]) -> bool:
    """Returns True if the recorded label is from the source that a file is from."""
    return locations.absolute(found.source) == locations.absolute(record["source"])


def _is_corrected_now(said: Said, every: Sequence[Said], record: Mapping[str, Any], *, in_folder: bool) -> bool:
    others = [each for each in every if each.found.label != said.found.label and each.found.key == said.found.key]
    if in_folder:
        return bool(others)
    at_its_place = said.found.key == key_of_row(record)
    return not said.news and at_its_place and any(each.news for each in others)


def _is_in_its_folder(found: Found, record: Mapping[str, Any]) -> bool:
    """Returns True if the label is that of a class folder in which the image was when it was recorded."""
    parts = _place(found).split("/")
    was = record["member"] if found.member else record["path"]
    return any(
        canonical(part) == found.label and f"/{was}".endswith(f"/{'/'.join(parts[index:])}")
        for index, part in enumerate(parts[:-1])
    )


def is_of_a_folder(found: Found) -> bool:
    """Returns True if the label is that of a class folder in which the image is."""
    return found.label in map(canonical, _folders(_place(found)))


def _place(found: Found) -> str:
    """Returns the place of an image below its source; empty if a list says the label."""
    source = f"{locations.absolute(found.source)}/"
    return found.member or (found.path[len(source) :] if found.path.startswith(source) else "")


def _folders(place: str) -> list[str]:
    return place.split("/")[:-1]


def labels_in(replaced: str) -> list[str]:
    """Reads the column `replaced`: the labels that were corrected, the first one first."""
    return [str(label) for label in json.loads(replaced)] if replaced else []


def replaced_by(found: Found, record: Mapping[str, Any]) -> str:
    """Returns the column `replaced` of an image whose label a file corrects.

    A class folder to which the image has moved, and a source that changes its own word, leave nothing to hold against them.

    Args:
        found: the file that says the new label.
        record: the recorded image.
    """
    before = labels_in(record["replaced"])
    if not _is_its_source(found, record) and not is_of_a_folder(found):
        before.append(record["label"])
    left = [label for label in dict.fromkeys(before) if label != found.label]
    return json.dumps(left, ensure_ascii=False) if left else ""
