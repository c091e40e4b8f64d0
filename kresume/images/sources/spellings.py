"""Finds the files of a list whose names it spells otherwise than the disk does.

    files = Spellings()
    path, facts = files.locate("/data/a.JPG", "/data/a.JPG")        # "/data/a.jpg"

Lists are written on other machines: Windows turns slashes and takes any case, a Mac decomposes letters with accents.
"""

from __future__ import annotations

import contextlib
import errno
import os
import unicodedata
from collections.abc import Iterator

from kresume.addresses import is_remote
from kresume.images.sources.names import PICTURES
from kresume.storage import locations

AMBIGUOUS = "several files there differ from it in case, Unicode form or ending alone"
SHARP = "\N{LATIN SMALL LETTER SHARP S}"


class Spellings:
    """Remembers which names the folders of a list hold, so that each folder is read once."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, str | None]] = {}
        self._folders: dict[str, str] = {}

    def locate(self, path: str, bare: str) -> tuple[str, os.stat_result]:
        """Returns the path and the facts of a listed file.

        It is the one that is named, else without the blanks around it, with Windows' slashes turned, with the ending that the
        list leaves out, or the only one whose name differs in case or in the Unicode form alone; also with both.

        Args:
            path: the path.
            bare: the path without the blanks around the listed name.

        Raises:
            OSError, ValueError: there is none, or several that differ in case or Unicode form alone.
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
            yield from self._with_endings(turned)
        if not is_remote(turned):
            yield self._alike(turned)

    def _with_endings(self, path: str) -> Iterator[str]:
        """Yields a path with each ending that a list may leave out; on a disk in any case.

        Raises:
            OSError: several files have the name and such an ending, and differ in case or Unicode form alone.
        """
        folder, name = os.path.split(path)
        endings = sorted(PICTURES)
        if is_remote(path) or not name or not folder:
            yield from (f"{path}{each}" for each in (*endings, *map(str.upper, endings)))
            return
        folder, names = self._folder_alike(folder)
        for each in endings:
            there = names.get(_folded(f"{name}{each}"), "")
            if there is None:
                raise OSError(errno.ENOENT, AMBIGUOUS, path)
            if there:
                yield os.path.join(folder, there)
        if not names:  # a folder that may be entered and not listed
            yield from (f"{path}{each}" for each in endings)

    def _alike(self, path: str) -> str:
        """Returns the path of names that differ in case and Unicode form alone, or the same path.

        Raises:
            OSError: the names of several files do.
        """
        folder, name = os.path.split(path)
        if not name or not folder:
            return path
        folder, names = self._folder_alike(folder)
        there = names.get(_folded(name), name)
        if there is None:
            raise OSError(errno.ENOENT, AMBIGUOUS, path)
        return os.path.join(folder, there)

    def _folder_alike(self, folder: str) -> tuple[str, dict[str, str | None]]:
        """Returns a folder, or the one whose path differs in case and Unicode form alone, and its names."""
        if folder not in self._folders:
            self._folders[folder] = folder if os.path.isdir(folder) else self._alike(folder)
        folder = self._folders[folder]
        if folder not in self._names:
            self._names[folder] = _names_in(folder)
        return folder, self._names[folder]


def differ_in_spelling(listed: str, there: str) -> bool:
    """Returns True if paths differ in case or Unicode form, apart from an ending left out."""
    pairs = ((listed, there), (listed, os.path.splitext(there)[0]))
    return listed not in {other for _, other in pairs} and any(_folded(one) == _folded(other) for one, other in pairs)


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
