"""Finds the files of a list whose names it spells otherwise than the disk does.

    files = Spellings()
    path, facts = files.locate("/data/a.JPG", "/data/a.JPG")        # "/data/a.jpg"

Lists are written on other machines: Windows turns slashes and takes any case, a Mac decomposes letters with accents.
"""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Iterator

from kresume.addresses import is_remote
from kresume.images.sources.names import PICTURES
from kresume.storage import locations

SHARP = "\N{LATIN SMALL LETTER SHARP S}"


class Spellings:
    """Remembers which names the folders of a list hold, so that each folder is read once."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, str | None]] = {}
        self._folders: dict[str, str] = {}

    def locate(self, path: str, bare: str) -> tuple[str, os.stat_result]:
        """Returns the path and the facts of a listed file.

        It is the one that is named, else without the blanks around it, with Windows' slashes turned, with the ending that the
        list leaves out, or the only one whose name differs in case or in the Unicode form alone.

        Args:
            path: the path.
            bare: the path without the blanks around the listed name.

        Raises:
            OSError, ValueError: there is none.
        """
        try:
            return path, locations.stat(path)
        except OSError as error:
            for other in dict.fromkeys(self._others(bare)):
                with contextlib.suppress(OSError):
                    return other, locations.stat(other)
            raise error

    def _others(self, bare: str) -> Iterator[str]:
        turned = bare.replace("\\", "/")
        stem, end = os.path.splitext(turned)
        yield from (bare, turned)
        if end.lower() in PICTURES:
            yield from (f"{stem}{end.lower()}", f"{stem}{end.upper()}")
        else:
            yield from (f"{turned}{each}" for each in sorted(PICTURES))
        if not is_remote(turned):
            yield self._alike(turned)

    def _alike(self, path: str) -> str:
        """Returns the path of names that differ in case and Unicode form alone, or the same path."""
        folder, name = os.path.split(path)
        if not name or not folder:
            return path
        if folder not in self._folders:
            self._folders[folder] = folder if os.path.isdir(folder) else self._alike(folder)
        folder = self._folders[folder]
        if folder not in self._names:
            self._names[folder] = _names_in(folder)
        return os.path.join(folder, self._names[folder].get(_folded(name)) or name)


def differ_in_spelling(listed: str, there: str) -> bool:
    """Returns True if two paths differ in case or Unicode form, and in nothing else."""
    return listed != there and _folded(listed) == _folded(there)


def _names_in(folder: str) -> dict[str, str | None]:
    """Returns the names in a folder by what they have in common with those alike; None for several alike."""
    found: dict[str, str | None] = {}
    with contextlib.suppress(OSError, ValueError):
        for name in os.listdir(folder):
            key = _folded(name)
            found[key] = None if key in found else name
    return found


def _folded(name: str) -> str:
    # `casefold` alone would equate Straße and Strasse.
    composed = unicodedata.normalize("NFC", name).replace("\N{LATIN CAPITAL LETTER SHARP S}", SHARP)
    return SHARP.join(part.casefold() for part in composed.split(SHARP))
