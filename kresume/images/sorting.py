"""Puts pictures into class folders by prediction, for a person to correct and to train on.

    with SortedFolder(Path("sorted"), classes, links=False) as sorted_folder:
        sorted_folder.put(read, "rose")
        sorted_folder.put(read, None)             # unsure

Nothing is overwritten: another content of the same name gets its hash as a suffix. A content that is anywhere in the folder
already is not put there again, so a picture that somebody moved to the right class stays there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kresume.addresses import is_remote
from kresume.errors import ImagesError, UsageError
from kresume.images.read_ahead import Read
from kresume.images.sorted_places import place_of
from kresume.images.sources.found import Found
from kresume.images.sources.names import NOT_PICTURES, UNSURE, ending, hidden
from kresume.spelling import option
from kresume.storage import refusals

NAME_BYTES = 200
"""Longest name of a file that is put, in bytes; file systems allow 255."""
ENDINGS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "HEIF": ".heic",
}
"""Endings for pictures whose name has none, by Pillow's name of the format."""


@dataclass
class SortedFolder:
    """A folder with one folder per class, and one for pictures that the model is not sure of.

    Attributes:
        path: the folder, or its address.
        classes: the names of the classes.
        links: True links files instead of copying them: a hard link, or a symbolic one to another drive.
        counts: pictures that were put, by folder.
        doubles: pictures whose content was there already.
        symbolic: pictures of which only a symbolic link was possible.
    """

    path: str | Path
    classes: Sequence[str]
    links: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    doubles: int = 0
    symbolic: int = 0

    def __post_init__(self) -> None:
        self._place = place_of(self.path)
        self.path = self._place.path
        wrong = [name for name in self.classes if not _is_folder_name(name)]
        if wrong:
            raise UsageError(
                f"{option('sort', str(self.path))}: {wrong[0]!r} is a class whose name cannot be that of a folder; leave "
                f"{option('sort')} out and use the table of predictions"
            )
        if isinstance(self.path, Path) and self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{option('sort', str(self.path))} is a file: give a folder, existing or new")
        lower = {name.lower() for name in self.classes}
        self.unsure = next(name for name in _names("unsure") if name not in lower)

    def prepare(self) -> None:
        """Creates the class folders, and reads which contents are there already.

        Raises:
            ImagesError: the folder cannot be written.
        """
        try:
            self._place.prepare((*self.classes, self.unsure), f"{self.unsure}/{UNSURE}")
        except OSError as error:
            raise ImagesError(
                f"{self.path} cannot be written ({refusals.reason(error)}): {refusals.way_on(error)} another folder"
            ) from error

    def put(self, read: Read, label: str | None) -> str | Path | None:
        """Puts a picture into the folder of a class.

        Args:
            read: the picture with its bytes.
            label: the class; None if the model is not sure.

        Returns:
            The new file; None if its content is in the folder already.

        Raises:
            ImagesError: it cannot be written.
        """
        if read.data is None or not isinstance(read.item, Found):
            raise ValueError("the bytes of a picture that is sorted are kept")
        folder = label if label is not None else self.unsure
        try:
            if self._place.holds(read.sha256, len(read.data)):
                self.doubles += 1
                return None
            name = self._free(folder, _file_name(read), read.sha256)
            if self.links and _is_file_of_its_own(read.item):
                self.symbolic += self._place.link(name, read.item.path, read.sha256)
            else:
                self._place.write(name, read.data, read.sha256, read.item.mtime_ns)
        except OSError as error:
            raise ImagesError(
                f"{self._place.at(folder)} cannot be written ({refusals.reason(error)}): "
                f"{refusals.remedy(error) or 'make room'}, and run the same command again; what is there already is not copied "
                "again"
            ) from error
        self.counts[folder] = self.counts.get(folder, 0) + 1
        return self._place.at(name)

    def _free(self, folder: str, name: str, sha256: str) -> str:
        """Returns a name that is not taken: the picture's own, else with a part of its hash."""
        stem, kind = os.path.splitext(name)
        for length in (0, 8, 16, 64):
            free = f"{folder}/{stem}-{sha256[:length]}{kind}" if length else f"{folder}/{name}"
            if not self._place.is_taken(free):
                return free
        raise FileExistsError(f"{name} and its names with a hash exist")

    def __str__(self) -> str:
        done = sum(self.counts.values())
        unsure = self.counts.get(self.unsure, 0)
        verb = "linked" if self.links else "copied"
        where = f"{done - unsure:,} into class folders, {unsure:,} into {self.unsure}/"
        parts = [f"{self.path}: {done:,} pictures {verb}: {where}"]
        if self.doubles:
            parts.append(f"{self.doubles:,} were there already")
        if self.symbolic:
            parts.append(f"{self.symbolic:,} are symbolic links, because their files are on another drive")
        return "; ".join(parts)


def _is_file_of_its_own(found: Found) -> bool:
    """Returns False for a member of an archive and a remote file, which are copied."""
    return found.length < 0 and not found.coding and not is_remote(found.path)


def _names(first: str) -> Iterator[str]:
    yield first
    number = 2
    while True:
        yield f"{first}-{number}"
        number += 1


def _is_folder_name(name: str) -> bool:
    """Returns True if class folders of this name are possible, and read as that class."""
    return bool(name) and name == name.strip() and not hidden(name) and not re.search(r"[/\\\0]", name)


def _file_name(read: Read) -> str:
    """Returns a plain file name for a picture, whatever an archive calls it."""
    found = read.item
    name = (
        (found.member if isinstance(found, Found) and found.member else found.path)
        .replace("\\", "/")
        .rpartition("/")[2]
    )
    name = re.sub(r"[\0-\x1f\x7f:*?\"<>|]", "_", name).strip(" ")
    if not name.strip(".") or hidden(name):
        name = f"picture-{read.sha256[:8]}{ending(name) if name.strip('.') else ''}"
    stem, kind = os.path.splitext(name)
    if not kind or kind.lower() in NOT_PICTURES or len(kind) > 10:
        stem, kind = name, ENDINGS.get(read.format, "")
    while len(f"{stem}{kind}".encode()) > NAME_BYTES:
        stem = stem[:-1]
    return f"{stem}{kind}"
