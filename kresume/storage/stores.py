"""Reads and writes the files below an address: a bucket through fsspec, or a drive that is mounted.

    store = store_of("s3://bucket/runs/1-signs")
    store.write("run.json", data)                # whole or not at all
    store.names()                                # {"run.json": 812, "snapshots/step-00000010/meta.json": 934}

Buckets have no folders and no renames. A file is written whole or not at all, and `create` writes one only if it does
not exist. On a drive a file is written under a temporary name, flushed, renamed and its size compared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import shutil
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from kresume.addresses import OFF, VARIABLE, is_remote, normal
from kresume.errors import MissingPackage, UsageError
from kresume.storage import atomic

PACKAGES = {
    "gs": ("gcsfs", "kresume[gcs]"),
    "gcs": ("gcsfs", "kresume[gcs]"),
    "s3": ("s3fs", "kresume[s3]"),
    "az": ("adlfs", "adlfs"),
    "abfs": ("adlfs", "adlfs"),
}
"""The package behind a scheme, and what to install for it."""
DRIVE = "/content/drive/"
"""Where Colab mounts the user's own drive."""
MOUNTS, DEVICES = "/proc/mounts", "/proc/self/mountinfo"
NO_DRIVES = frozenset({"fuseblk", "fuse.fuse-overlayfs", "fuse.lxcfs", "fusectl", "fuse.portal", "fuse.snapfuse"})
"""File systems of this kind that are local disks, or none."""


class Store(Protocol):
    """Declares what mirrors and fetches need of a place. Every method raises OSError if the place refuses."""

    address: str

    def names(self, *, deep: bool = True) -> dict[str, int]:
        """Lists the files below the address with their sizes; `deep=False` only those directly below it."""

    def read(self, name: str) -> bytes:
        """Reads a file; raises FileNotFoundError if it does not exist."""

    def fetch(self, name: str, path: Path) -> None:
        """Copies a file to a local path, which must not be in use."""

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, or replaces it."""

    def send(self, name: str, path: Path) -> None:
        """Writes a file from a local path, or replaces it."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless it exists; returns False if it does."""

    def remove(self, name: str) -> None:
        """Removes a file, which may be gone already."""

    def move(self, address: str) -> None:
        """Moves every file to another address of the same kind."""


Method = TypeVar("Method", bound=Callable[..., Any])


def _refusing(method: Method) -> Method:
    """Makes a library's own exceptions OSErrors."""

    @wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except OSError:
            raise
        except Exception as error:  # every library has its own classes
            raise OSError(f"{type(error).__name__}: {error}") from error

    return cast(Method, call)


class Bucket:
    """Is a folder of a bucket, or of anything else that fsspec knows.

    Args:
        address: with a scheme.
        fs: the file system of fsspec; None opens that of the scheme.
    """

    def __init__(self, address: str, fs: Any = None) -> None:
        self.address = normal(address)
        self._fs = fs or file_system(self.address)
        self._root = str(self._fs._strip_protocol(self.address)).rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @_refusing
    def names(self, *, deep: bool = True) -> dict[str, int]:
        self._fs.invalidate_cache()
        try:
            if deep:
                found = self._fs.find(self._root, detail=True)
            else:
                found = {facts["name"]: facts for facts in self._fs.ls(self._root, detail=True)}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        below = f"{self._root}/"  # gcsfs of 2024 lists runs/10 for runs/1, too
        inside = {path.removeprefix(below): facts for path, facts in found.items() if path.startswith(below)}
        return {
            name: int(facts["size"] or 0)
            for name, facts in sorted(inside.items())
            if name and not name.endswith("/") and facts.get("type", "file") == "file"
        }

    @_refusing
    def exists(self) -> bool:
        """Returns True if a file or anything below it has this address."""
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._root))

    @_refusing
    def read(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(self._path(name)))

    @_refusing
    def fetch(self, name: str, path: Path) -> None:
        self._fs.get_file(self._path(name), str(path))

    @_refusing
    def write(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(self._path(name), data)

    @_refusing
    def send(self, name: str, path: Path) -> None:
        self._fs.put_file(str(path), self._path(name))

    @_refusing
    def create(self, name: str, data: bytes) -> bool:
        created = self._create(name, data)
        if created and not self._creates_once() and self._create(name, data):
            self.remove(name)
            raise OSError(
                f"{type(self._fs).__module__.partition('.')[0]} writes a file that should only be created over one that is "
                f"there, so two machines could train one run in {self.address}: install its newest version, or train in a "
                "folder and copy it"
            )
        return created

    def _create(self, name: str, data: bytes) -> bool:
        try:
            self._fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def _creates_once(self) -> bool:
        """Returns True if the file system says that it can create what is absent alone; others are tried out.

        Older ones accept the argument and ignore it.
        """
        write = getattr(self._fs, "_pipe_file", None) or self._fs.pipe_file
        return "mode" in inspect.signature(write).parameters

    @_refusing
    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    @_refusing
    def move(self, address: str) -> None:
        other = Bucket(address, self._fs)
        names = self.names()
        for name in names:
            self._fs.cp_file(self._path(name), other._path(name))
        for name in names:
            self.remove(name)


class Mount:
    """Is a folder on a drive that is mounted: slow, and it may drop out.

    Args:
        folder: its absolute path.
    """

    def __init__(self, folder: str) -> None:
        self.address = normal(folder)
        self._folder = Path(self.address)

    def names(self, *, deep: bool = True) -> dict[str, int]:
        found = {}
        for folder, folders, files in os.walk(self._folder):
            if not deep:
                folders.clear()
            folders[:] = [name for name in folders if not name.startswith(atomic.TEMPORARY_PREFIX)]
            for name in files:
                if not name.startswith(atomic.TEMPORARY_PREFIX):
                    path = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):
                        found[path.relative_to(self._folder).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def fetch(self, name: str, path: Path) -> None:
        shutil.copyfile(self._folder / name, path)

    def write(self, name: str, data: bytes) -> None:
        atomic.write_bytes(self._folder / name, data)
        self._compare(name, len(data))

    def send(self, name: str, path: Path) -> None:
        with atomic.new_file(self._folder / name) as temporary:
            shutil.copyfile(path, temporary)
        self._compare(name, path.stat().st_size)

    def create(self, name: str, data: bytes) -> bool:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        path = self._folder / name
        path.unlink(missing_ok=True)
        for folder in path.relative_to(self._folder).parents:
            with contextlib.suppress(OSError):  # it holds other files
                (self._folder / folder).rmdir()

    def move(self, address: str) -> None:
        self._folder.rename(address)

    def _compare(self, name: str, size: int) -> None:
        found = (self._folder / name).stat().st_size
        if found != size:
            raise OSError(f"{self._folder / name} has {found:,} bytes after {size:,} were written: is the drive full?")


def store_of(address: str) -> Store:
    """Opens the place of an address, or of a path on a drive.

    Raises:
        MissingPackage: the scheme needs a package that is not installed.
        UsageError: the scheme is unknown.
    """
    return Bucket(address) if is_remote(address) else Mount(address)


def free_address(address: str) -> str:
    """Returns the first `ADDRESS.before-N` that holds nothing, for what is moved aside."""
    number = 1
    while store_of(aside := f"{address}.before-{number}").names():
        number += 1
    return aside


def file_system(address: str) -> Any:
    """Opens the file system of an address.

    Raises:
        MissingPackage: the scheme needs a package that is not installed.
        UsageError: the scheme is unknown.
    """
    scheme = address.partition("://")[0]
    package, install = PACKAGES.get(scheme, ("", ""))
    needed = next((name for name in ("fsspec", package) if name and importlib.util.find_spec(name) is None), None)
    if needed is not None:
        raise MissingPackage(f"{scheme}:// needs the package {needed}: pip install '{install or needed}'")
    import fsspec

    # A library that logs every attempt with its trace would hide the one line of the error.
    logging.getLogger(package or scheme).addHandler(logging.NullHandler())
    try:
        return fsspec.get_filesystem_class(scheme)(use_listings_cache=False)
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise UsageError(
            f"{address}: {scheme}:// is unknown ({error}): give a local path, or an address that begins with {known}"
        ) from error
    except ImportError as error:
        raise MissingPackage(f"{scheme}:// needs another package: {error}") from error
    except Exception as error:  # credentials that cannot be read, each library with its own class
        raise UsageError(
            f"{address} cannot be opened ({type(error).__name__}: {error}): are the credentials set?"
        ) from error


def is_slow_drive(path: str, mounts: str | None = None) -> bool:
    """Returns True for a path on Google Drive or another drive in user space (FUSE).

    Args:
        path: it may not exist yet.
        mounts: the table of mounts; None reads the system's.
    """
    if os.environ.get(VARIABLE) == OFF or is_remote(path):
        return False
    real = os.path.realpath(os.path.expanduser(path))
    if real.startswith(DRIVE):
        return True
    if mounts is None:
        try:
            mounts = Path(MOUNTS).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].encode().decode("unicode_escape", errors="replace")  # a space is written \040
        if (real == point or real.startswith(f"{point.rstrip('/')}/")) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind.startswith("fuse") and kind not in NO_DRIVES


@lru_cache(maxsize=256)
def is_on_drive(device: int) -> bool:
    """Returns True for the number of a device (`st_dev`) that is a drive in user space (FUSE).

    Source: `proc_pid_mountinfo(5)` of the Linux manual.
    """
    try:
        lines = Path(DEVICES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kinds = [line.partition(" - ")[2].split(" ")[0] for line in lines if line.split(" ")[2:3] == [wanted]]
    return any(kind.startswith("fuse") and kind not in NO_DRIVES for kind in kinds)
