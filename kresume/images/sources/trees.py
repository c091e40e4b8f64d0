"""Shows the folders of disks, buckets and archives in one way, for one set of rules.

    folders, files = OnDisk("old/").entries("")
    folders, files = InArchive(["set/cat/1.jpg", "set/dog/1.jpg"]).entries("set")

Names of the operating system's own files are left out, and those that begin with a dot.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kresume.addresses import is_remote
from kresume.images.sources.names import (
    PICTURES,
    UNSURE,
    ending,
    hidden,
    is_dotted_folder,
    is_dotted_picture,
    may_be_picture,
)
from kresume.storage import locations


class Tree(Protocol):
    """Declares folders with files and folders in them."""

    @property
    def root(self) -> str:
        """Returns the path of the folder that holds everything."""

    def entries(self, path: str) -> tuple[list[Any], list[Any]]:
        """Returns the visible folders and files of a folder, each sorted by name.

        Each has a `name` and a `path`. A link to a file that is gone is a file.
        """

    def dotted(self, path: str) -> int:
        """Counts pictures left out for a dot that begins a name; valid after `entries`."""

    def is_unsure(self, path: str) -> bool:
        """Returns True if `kresume predict --sort` was not sure of the pictures in a folder."""

    def real(self, path: str) -> str:
        """Returns a folder's path with links followed."""

    def above(self, path: str) -> frozenset[str]:
        """Returns the folders that hold a folder, with links followed."""

    def leads_up(self, path: str, above: frozenset[str]) -> bool:
        """Returns True if a folder is a link to one of those above it."""

    def is_link(self, path: str) -> bool:
        """Returns True if a folder is a link that may not be followed."""


DEEPEST = 100
"""A member of an archive in more folders than this is left out: nobody writes one but to break a reader."""


@dataclass(frozen=True)
class OnDisk:
    """Holds the folders of a disk or a bucket.

    Attributes:
        root: the folder that holds everything.
        follow_links: False does not enter folders behind symbolic links.
    """

    root: str
    follow_links: bool = True
    _dotted: dict[str, list[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def entries(self, path: str) -> tuple[list[Any], list[Any]]:
        """Returns the visible folders and files of a folder, each sorted by name."""
        entries = list(locations.entries(path))
        visible = [entry for entry in entries if not hidden(entry.name)]
        if len(visible) < len(entries):
            self._dotted[path] = [entry for entry in entries if entry.name.startswith(".")]
        folders = [entry for entry in visible if entry.is_dir()]
        return folders, [entry for entry in visible if entry.is_file() or self._leads_nowhere(entry)]

    def dotted(self, path: str) -> int:
        """Counts the pictures of a folder that are left out for a dot; those in folders of such names, too."""
        return sum(
            _count_pictures(entry.path) if entry.is_dir() else entry.is_file() and is_dotted_picture(entry.name)
            for entry in self._dotted.get(path, ())
            if not entry.is_dir() or (is_dotted_folder(entry.name) and not os.path.islink(entry.path))
        )

    def _leads_nowhere(self, entry: Any) -> bool:
        return not is_remote(entry.path) and os.path.islink(entry.path) and not os.path.exists(entry.path)

    def is_unsure(self, path: str) -> bool:
        """Returns True if `kresume predict --sort` was not sure of the pictures in a folder."""
        return locations.exists(locations.join(path, UNSURE))

    def real(self, path: str) -> str:
        """Returns a folder's path with links followed."""
        return path if is_remote(path) else os.path.realpath(path)

    def above(self, path: str) -> frozenset[str]:
        """Returns the folders that hold a folder, with links followed."""
        return frozenset() if is_remote(path) else frozenset(map(str, Path(os.path.realpath(path)).parents))

    def leads_up(self, path: str, above: frozenset[str]) -> bool:
        """Returns True if a folder is a link to one of those above it."""
        return not is_remote(path) and os.path.islink(path) and os.path.realpath(path) in above

    def is_link(self, path: str) -> bool:
        """Returns True if a folder is a link that may not be followed."""
        return not self.follow_links and os.path.islink(path)


def _count_pictures(path: str) -> int:
    """Counts the pictures in a folder at any depth, without links; 0 if it cannot be read."""
    try:
        entries = [entry for entry in locations.entries(path) if not entry.name.startswith("._")]
    except OSError:
        return 0
    return sum(
        (not os.path.islink(entry.path) and _count_pictures(entry.path))
        if entry.is_dir()
        else ending(entry.name) in PICTURES
        for entry in entries
    )


@dataclass(frozen=True, slots=True)
class Member:
    """Names a file or a folder in an archive.

    Attributes:
        name: the last part of its path.
        path: a file's name in the archive, letter for letter; a folder's parts, joined by slashes.
    """

    name: str
    path: str


def pieces_of(name: str) -> list[str]:
    """Returns the folders and the file in a member's name.

    Old programs for Windows write backslashes, and then no slashes. What leads out of the archive does not count, up to the
    last `..`, as when GNU tar unpacks it.
    """
    separated = name if "/" in name else name.replace("\\", "/")
    pieces = [piece for piece in separated.split("/") if piece not in {"", "."}]
    return pieces[len(pieces) - pieces[::-1].index("..") :] if ".." in pieces else pieces


class InArchive:
    """Holds the folders that the names of an archive's members make, if there may be a picture in them.

    Args:
        names: names of members. `tar cf x.tar .` writes names such as `./cat/1.png`.

    Attributes:
        apart: counts, by ending, other files in folders without pictures.
    """

    root = ""

    def __init__(self, names: Iterable[str]) -> None:
        self._folders: dict[str, tuple[dict[str, Member], dict[str, Member]]] = {"": ({}, {})}
        self._unsure: set[str] = set()
        self.apart: Counter[str] = Counter()
        self._dotted: Counter[str] = Counter()
        others = []
        for name in names:
            pieces = pieces_of(name)
            if pieces and pieces[-1] == UNSURE:
                self._unsure.add("/".join(pieces[:-1]))
            if not pieces or len(pieces) > DEEPEST:
                continue
            if any(map(hidden, pieces)):
                self._count_dotted(pieces)
                continue
            if may_be_picture(pieces[-1]):
                self._make(pieces[:-1])
                self._folders["/".join(pieces[:-1])][1][name] = Member(pieces[-1], name)
            else:
                others.append((name, pieces))
        for name, pieces in others:
            if (folder := "/".join(pieces[:-1])) in self._folders:
                self._folders[folder][1][name] = Member(pieces[-1], name)
            else:
                self.apart[ending(pieces[-1])] += 1

    def _count_dotted(self, pieces: list[str]) -> None:
        """Counts a picture that is left out for a dot, under the last folder above the first such name."""
        first = next(index for index, piece in enumerate(pieces) if hidden(piece))
        *folders, name = pieces[first:]
        if all(is_dotted_folder(each) or not hidden(each) for each in folders) and (
            is_dotted_picture(name) or (not hidden(name) and ending(name) in PICTURES)
        ):
            self._make(pieces[:first])  # it is a folder on a disk, too
            self._dotted["/".join(pieces[:first])] += 1

    def _make(self, pieces: list[str]) -> None:
        """Makes a folder and those above it."""
        for depth, piece in enumerate(pieces):
            path = "/".join(pieces[: depth + 1])
            if path not in self._folders:
                self._folders["/".join(pieces[:depth])][0][path] = Member(piece, path)
                self._folders[path] = ({}, {})

    def entries(self, path: str) -> tuple[list[Any], list[Any]]:
        """Returns the visible folders and files of a folder, each sorted by name."""
        folders, files = self._folders[path]
        return sorted(folders.values(), key=_by_name), sorted(files.values(), key=_by_name)

    def dotted(self, path: str) -> int:
        """Counts the pictures of a folder that are left out for a dot; those in folders of such names, too."""
        return self._dotted[path]

    def is_unsure(self, path: str) -> bool:
        """Returns True if `kresume predict --sort` was not sure of the pictures in a folder."""
        return path in self._unsure

    def real(self, path: str) -> str:
        """Returns the path: a member of an archive is no link."""
        return path

    def above(self, path: str) -> frozenset[str]:
        """Returns nothing: no link leads there."""
        return frozenset()

    def leads_up(self, path: str, above: frozenset[str]) -> bool:
        """Returns False: a member of an archive is no link."""
        return False

    def is_link(self, path: str) -> bool:
        """Returns False: a member of an archive is no link."""
        return False


def _by_name(member: Member) -> tuple[str, str]:
    return member.name, member.path
