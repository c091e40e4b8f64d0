"""Accesses files on a disk, or behind a scheme such as `gs://`.

    head = read_range("gs://bucket/shard.tar", 512, 6412)
    for entry in entries("/data/old"): ...

Local paths use the operating system's fast calls; only paths with a scheme use `remote_paths`.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from kresume.addresses import MUST_BE_HERE, begins_as_address, is_remote
from kresume.errors import ImagesError, UsageError
from kresume.storage.remote_paths import remote_path
from kresume.storage.stores import is_on_drive

Version = tuple[int, int, int]
"""Size in bytes, modification time in nanoseconds, and the stamp of a file; see `version`."""
SPREAD = 0x9E3779B97F4A7C15
"""Spreads the numbers of files over all bits, so that they do not cancel a difference of times."""
MAX_FILE_BYTES = 256 * 2**20
"""Limit for one image file: a video in a class folder must not fill the memory before its first bytes are checked."""


class Entry(Protocol):
    """Declares what `os.DirEntry` and remote entries have in common."""

    @property
    def name(self) -> str:
        """Returns the last part of the path."""

    @property
    def path(self) -> str:
        """Returns the folder's path and the name."""

    def is_dir(self) -> bool:
        """Returns True if it is a folder."""

    def is_file(self) -> bool:
        """Returns True if it is a file."""

    def stat(self) -> Any:
        """Returns size and modification time."""


def cache_root() -> Path:
    """Returns the user's own cache folder: `$KRESUME_CACHE`, or `~/.cache/kresume` if it is not set."""
    given = os.environ.get("KRESUME_CACHE")
    if given and begins_as_address(given):
        raise UsageError(f"KRESUME_CACHE={given}: {MUST_BE_HERE}")
    return Path(given) if given else Path.home() / ".cache" / "kresume"


@dataclass(frozen=True)
class _Stat:
    st_size: int
    st_mtime_ns: int
    stamp: int


@dataclass(frozen=True)
class _RemoteEntry:
    name: str
    path: str
    place: Any

    def is_dir(self) -> bool:
        return bool(self.place.is_dir())

    def is_file(self) -> bool:
        return not self.is_dir()

    def stat(self) -> Any:
        return stat(self.path)


def absolute(path: str) -> str:
    """Returns the absolute path; keeps a path with a scheme."""
    return path.rstrip("/") if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def join(folder: str, name: str) -> str:
    """Joins `folder` and `name`, unless `name` is absolute."""
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{folder}/{name}" if is_remote(folder) else os.path.normpath(os.path.join(folder, name))


def parent(path: str) -> str:
    """Returns the folder that holds a path."""
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def exists(path: str) -> bool:
    """Returns True if the path exists."""
    return bool(remote_path(path).exists()) if is_remote(path) else os.path.exists(path)


def is_folder(path: str) -> bool:
    """Returns True if the path is a folder."""
    return bool(remote_path(path).is_dir()) if is_remote(path) else os.path.isdir(path)


def stat(path: str) -> Any:
    """Returns size in bytes and modification time in nanoseconds.

    Raises:
        OSError: if the path does not exist.
    """
    if not is_remote(path):
        return os.stat(path)
    return _of_store(remote_path(path).stat())


def _of_store(facts: Any) -> _Stat:
    """Returns what a store says of a file."""
    tag = getattr(facts, "tag", "")
    stamp = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8]) % 2**63 if tag else 0
    return _Stat(int(facts.length), int((facts.mtime or 0) * 1e9), stamp)


def version(facts: Any) -> Version:
    """Returns what tells a changed file from one that was read: size, modification time, and a stamp.

    The stamp is made of the change time and the number of the file, which programs do not set: of two files of one size and
    one modification time, each in the other's place, both have new ones. Changed permissions change it, too, and cost
    another look at the content. It is 0 where a store tells neither, and on a drive in user space (Google Drive): that may
    number its files anew with each mount, and all would be read again.

    Args:
        facts: from `stat`, or from an entry of a folder.
    """
    if isinstance(facts, _Stat):
        return facts.st_size, facts.st_mtime_ns, facts.stamp
    stamp = 0 if is_on_drive(facts.st_dev) else (facts.st_ctime_ns ^ facts.st_ino * SPREAD) % 2**63
    return facts.st_size, facts.st_mtime_ns, stamp


def entries(path: str) -> list[Entry]:
    """Lists the entries of a folder, sorted by name."""
    if is_remote(path):
        inner = (_RemoteEntry(place.name, f"{path}/{place.name}", place) for place in remote_path(path).iterdir())
        return sorted(inner, key=lambda entry: entry.name)
    with os.scandir(path) as found:
        return cast(list[Entry], sorted(found, key=lambda entry: entry.name))


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Opens a file for reading bytes, with `seek`."""
    file: Any = remote_path(path).open("rb") if is_remote(path) else open(path, "rb")  # noqa: SIM115  # closed below
    try:
        yield file
    finally:
        file.close()


@contextmanager
def unpacked(path: str, coding: str) -> Iterator[IO[bytes]]:
    """Opens a file as a decompressed stream.

    Seeking forwards is cheap, seeking backwards is expensive.

    Args:
        path: path of the file.
        coding: `""`, `"gzip"`, `"bz2"` or `"xz"`.
    """
    with opened(path) as file:
        if not coding:
            yield file
            return
        openers: dict[str, Any] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
        stream = openers[coding](file)
        try:
            yield stream
        finally:
            stream.close()


def stream_coding(head: bytes) -> str:
    """Detects the compression of a whole file from its first bytes; `""` for none."""
    marks = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "xz"))
    return next((coding for mark, coding in marks if head.startswith(mark)), "")


def read_range(path: str, offset: int = 0, length: int = -1, coding: str = "") -> bytes:
    """Reads the bytes of one image.

    Args:
        path: path of the file that holds it.
        offset: where the image begins.
        length: number of bytes, -1 for the whole file.
        coding: `""`, `"deflate"`, or the compression of a whole file. The last is expensive, because everything before
            the range is decompressed; read several ranges with `read_stream`.

    Returns:
        The bytes of the image, decompressed.

    Raises:
        OSError, EOFError: if the file cannot be read.
        ImagesError: if the image exceeds the size limit, ends too early, or cannot be decompressed.
    """
    if coding not in {"", "deflate"}:
        return next(read_stream(path, coding, [(offset, length)]))
    with opened(path) as file:
        if length < 0:
            # Check the size first: reading up to the limit would allocate the limit for every small file.
            size = stat(path).st_size if is_remote(path) else os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ImagesError(f"larger than {MAX_FILE_BYTES // 2**20} MB, the limit for one image")
            return file.read()
        if length > MAX_FILE_BYTES:
            raise ImagesError(f"{length:,} bytes, more than {MAX_FILE_BYTES // 2**20} MB, the limit for one image")
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise ImagesError(f"the file ends {length - len(data):,} bytes too early")
    return inflate(data) if coding == "deflate" else data


def inflate(data: bytes) -> bytes:
    """Decompresses a member of a zip, up to the size limit of one image.

    Raises:
        ImagesError: if the data are damaged, or exceed the limit when decompressed.
    """
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        result = unpacker.decompress(data, MAX_FILE_BYTES)
    except zlib.error as error:
        raise ImagesError(f"its packed bytes are damaged ({error})") from error
    if unpacker.unconsumed_tail:
        raise ImagesError(f"it unpacks to more than {MAX_FILE_BYTES // 2**20} MB, the limit for one image")
    if not unpacker.eof:
        raise ImagesError("its packed bytes end too early")
    return result


def read_stream(path: str, coding: str, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
    """Reads ranges of a file that is compressed as a whole, in one pass.

    Args:
        path: path of the file.
        coding: one of `STREAM_CODINGS`.
        ranges: (offset, length) in the decompressed data, ascending.

    Yields:
        The bytes of each range.

    Raises:
        OSError, EOFError: if the file cannot be read or decompressed.
    """
    with unpacked(path, coding) as stream:
        for offset, length in ranges:
            try:
                stream.seek(offset)
                data = stream.read(min(length, MAX_FILE_BYTES))
            except (lzma.LZMAError, zlib.error) as error:
                raise OSError(
                    f"{path} is damaged before byte {offset + length:,} of what it unpacks to ({error})"
                ) from error
            if len(data) != length:
                raise EOFError(f"{path} ends before byte {offset + length:,} of what it unpacks to")
            yield data
