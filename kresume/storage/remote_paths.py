"""Reads images behind a scheme: `gs://` through `etils.epath`, every other one through fsspec.

    place = remote_path("s3://bucket/old")
    [inner.name for inner in place.iterdir()]

Where TensorFlow is installed, epath reads through it, and TensorFlow knows no scheme but `gs`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

from kresume.storage.stores import file_system

TAGS = ("ETag", "etag", "generation", "md5Hash", "content_md5")
"""Names under which stores tell a text that changes with a file's content."""


@dataclass(frozen=True)
class Facts:
    """Size and time of a file.

    Attributes:
        length: in bytes.
        mtime: seconds since 1970; 0 if the store does not tell it.
        tag: changes with the content, as the store says it; empty if it does not.
    """

    length: int
    mtime: float
    tag: str = ""


@dataclass(frozen=True)
class FsspecPath:
    """Is a path that fsspec knows, with those methods of `epath.Path` that images need.

    Attributes:
        address: the path with its scheme.
        fs: the file system.
        info: what a listing told of it; None if it was not listed.
    """

    address: str
    fs: Any
    info: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Returns the last part of the path."""
        return self.address.rstrip("/").rpartition("/")[2]

    def exists(self) -> bool:
        """Returns True if there is a file or folder."""
        return bool(self.fs.exists(self.address))

    def is_dir(self) -> bool:
        """Returns True if it is a folder."""
        return self.info["type"] == "directory" if self.info is not None else bool(self.fs.isdir(self.address))

    def iterdir(self) -> Iterator[FsspecPath]:
        """Yields what is directly in the folder."""
        for info in self.fs.ls(self.address, detail=True):
            name = str(info["name"]).rstrip("/").rpartition("/")[2]
            if name != self.name or info["type"] == "directory":  # a folder's own empty object is none of its files
                yield FsspecPath(f"{self.address.rstrip('/')}/{name}", self.fs, info)

    def stat(self) -> Facts:
        """Returns size and time."""
        info = self.info if self.info is not None else self.fs.info(self.address)
        tag = next((str(info[name]) for name in TAGS if info.get(name)), "")
        return Facts(int(info.get("size") or 0), _seconds(info), tag)

    def open(self, mode: str) -> IO[bytes]:
        """Opens it for reading."""
        return cast(IO[bytes], self.fs.open(self.address, mode))


def remote_path(path: str) -> Any:
    """Returns the path of an image or folder behind a scheme.

    Raises:
        MissingPackage, UsageError: the scheme needs a package, or is unknown.
    """
    if path.startswith("gs://"):
        from etils import epath

        return epath.Path(path)
    return FsspecPath(path, file_system(path))


def _seconds(info: Mapping[str, Any]) -> float:
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            try:
                value = datetime.datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return 0.0
