"""Puts files into folders on a disk or at an address, and tells which contents are there already.

place = place_of("s3://bucket/sorted")
place.prepare(["rose", "unsure"], "unsure/.kresume-unsure")
if not place.holds(sha256, len(data)):
    place.write("rose/1.jpg", data, mtime_ns)
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from kresume.addresses import as_address, begins_as_address, normal
from kresume.errors import ImagesError, UsageError
from kresume.spelling import option
from kresume.storage import atomic
from kresume.storage.stores import store_of

MARKED = "kresume leaves this folder out where it reads class folders.\n"


def check_place(path: str | os.PathLike[str], *, links: bool) -> None:
    """Checks that pictures can be put into a folder, before they are predicted.

    Args:
        path: a local path or an address.
        links: True if they are linked.

    Raises:
        UsageError: they are linked, which an address cannot hold, or the scheme is unknown.
        MissingPackage: the scheme needs a package.
        ImagesError: the address cannot be read.
    """
    if not begins_as_address(path):
        return
    address = as_address(path)
    if links:
        raise UsageError(
            f"{option('sort', address)}: pictures are copied to an address, it holds no links: leave {option('link', True)} "
            "out, or give a folder on this machine"
        )
    try:
        store_of(address).names(deep=False)
    except OSError as error:
        raise ImagesError(f"{address} cannot be read ({error}): give another folder") from error


def place_of(path: str | os.PathLike[str]) -> DiskPlace | BucketPlace:
    """Returns the place at a path or an address."""
    return BucketPlace(normal(as_address(path))) if begins_as_address(path) else DiskPlace(Path(path))


class DiskPlace:
    """Is a folder on a disk.

    Args:
        path: it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path: Path | str = path
        self._folder = path
        self._known: set[str] = set()

    def prepare(self, folders: Sequence[str], mark: str) -> None:
        """Creates the folders and the mark, and reads the contents of files that are there.

        Raises:
            OSError: it cannot be written.
        """
        for name in folders:
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        if not (self._folder / mark).exists():
            (self._folder / mark).write_text(MARKED, encoding="utf-8")
        unread = Path(mark).name
        for folder, _, names in os.walk(self._folder):
            for name in names:
                if name != unread and not name.startswith(atomic.TEMPORARY_PREFIX):
                    self._known.add(_digest(os.path.join(folder, name)))

    def holds(self, sha256: str, size: int) -> bool:
        """Returns True if a file has this content."""
        return sha256 in self._known

    def is_taken(self, name: str) -> bool:
        """Returns True if there is a file of this name."""
        return os.path.lexists(self._folder / name)

    def at(self, name: str) -> Path | str:
        """Returns the path of a file."""
        return self._folder / name

    def link(self, name: str, source: str, sha256: str) -> bool:
        """Links a file; returns True if only a symbolic link was possible.

        Raises:
            OSError: it cannot be written.
        """
        target = self._folder / name
        target.parent.mkdir(exist_ok=True)
        symbolic = False
        try:
            os.link(os.path.realpath(source), target)
        except OSError:
            os.symlink(os.path.realpath(source), target)
            symbolic = True
        self._known.add(sha256)
        return symbolic

    def write(self, name: str, data: bytes, sha256: str, mtime_ns: int) -> None:
        """Writes a file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        target = self._folder / name
        target.parent.mkdir(exist_ok=True)
        with atomic.new_file(target) as temporary:
            temporary.write_bytes(data)
            os.utime(temporary, ns=(mtime_ns, mtime_ns))
        self._known.add(sha256)


class BucketPlace:
    """Is a folder at an address.

    Only files of the size of a picture that is to be put are read and compared with it.

    Args:
        address: with a scheme.
    """

    def __init__(self, address: str) -> None:
        self.path: Path | str = address
        self._store = store_of(address)
        self._names: set[str] = set()
        self._unread: dict[int, list[str]] = defaultdict(list)
        self._known: set[str] = set()

    def prepare(self, folders: Sequence[str], mark: str) -> None:
        """Lists the files that are there, and writes the mark; a bucket has no folders.

        Raises:
            OSError: it cannot be read or written.
        """
        for name, size in self._store.names().items():
            self._names.add(name)
            self._unread[size].append(name)
        if mark not in self._names:
            self._store.write(mark, MARKED.encode())
            self._names.add(mark)

    def holds(self, sha256: str, size: int) -> bool:
        """Returns True if a file has this content.

        Raises:
            OSError: a file of this size cannot be read.
        """
        while sha256 not in self._known and self._unread[size]:
            self._known.add(hashlib.sha256(self._store.read(self._unread[size].pop())).hexdigest())
        return sha256 in self._known

    def is_taken(self, name: str) -> bool:
        """Returns True if there is a file of this name."""
        return name in self._names

    def at(self, name: str) -> Path | str:
        """Returns the address of a file."""
        return f"{self.path}/{name}"

    def link(self, name: str, source: str, sha256: str) -> bool:
        """Raises ValueError: `check_place` refuses links at an address."""
        raise ValueError(f"{self.path} holds no links")

    def write(self, name: str, data: bytes, sha256: str, mtime_ns: int) -> None:
        """Writes a file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        self._store.write(name, data)
        self._names.add(name)
        self._known.add(sha256)


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # a link to a file that is gone
        return ""
