"""Writes that happen whole or not at all.

    write_json(run / "run.json", facts)                     # temporary file, flushed, renamed over
    with new_directory(snapshots / "step-00001200") as tmp:  # the name appears when all of it is on disk
        (tmp / "state.safetensors").write_bytes(...)

A crash at any instant leaves the old file or the new one, never half of either: POSIX `rename` is atomic, and each file
is flushed to the disk before the rename and its directory after it, so the order also holds through a power cut.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".tmp-"
ABANDONED_SECONDS = 24 * 3600.0


def flush_file(path: Path) -> None:
    """Asks the disk to hold `path`'s bytes before we go on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: Path) -> None:
    """Asks the disk to hold the names in `path`. A no-op where directories cannot be opened (Windows)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems refuse fsync on a directory, after the rename has been done
        import errno

        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A name in the same directory (so that a rename stays on one file system) that no reader looks at."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; when the block ends without an exception it becomes `path`, flushed.

    Replaces `path` if it stands. On an exception the temporary file is removed and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        flush_file(temporary)
        os.replace(temporary, path)
        flush_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def temporary_copy(path: Path, ending: str) -> Iterator[Path]:
    """Yields a copy of a file under another ending, for readers that look at names; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="kresume-") as folder:
        copy = Path(folder) / f"{path.name}{ending}"
        shutil.copyfile(path, copy)
        yield copy


@contextmanager
def new_directory(path: Path, replaced: Path | None = None) -> Iterator[Path]:
    """Yields a temporary directory; when the block ends without an exception it becomes `path`, every file flushed.

    Args:
        path: its name in the end.
        replaced: where to move what stands at `path` by then; directories cannot be renamed over each other, so a crash may
            find the old one under this name and no `path`. None refuses what stands.

    Raises:
        FileExistsError: `path` stands already, and `replaced` is None; what is in it is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and replaced is None:
        raise FileExistsError(f"{path} stands already; a finished directory is never written over")
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                flush_file(file)
        flush_directory(temporary)
        if replaced is not None and path.exists():
            os.rename(path, replaced)
        os.rename(temporary, path)
        flush_directory(path.parent)
    except BaseException:
        if replaced is not None and replaced.exists() and not path.exists():
            with contextlib.suppress(OSError):
                os.rename(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all. NaN is refused: no JSON reader agrees on it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: it holds no JSON; the message names the file and the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} holds no valid JSON: {error}") from error


def append_line(path: Path, line: str) -> None:
    """Appends one line in a single write and flushes it. A reader must still expect a torn line where a crash was."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab+") as file:
            if before:
                file.seek(-1, os.SEEK_END)
            torn = before > 0 and file.read(1) != b"\n"  # or this line would be lost with the torn one
            file.write(b"\n" * torn + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # Whole or not at all: whoever tries again must not find half of it, or all of it, in the file.
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        raise


def modified(path: Path) -> str:
    """When a file was last written, in UTC, as ISO 8601 to the second."""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(directory: Path, but: str = "") -> None:
    """Removes the temporary files and directories that a killed process left in `directory`. Holder of the lock only.

    Args:
        directory: where they are.
        but: the name of a file whose temporary ones stay: somebody may be writing it.
    """
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
        if not but or not leftover.name.startswith(f"{TEMPORARY_PREFIX}{but}"):
            _remove(leftover)


def remove_abandoned(directory: Path, name: str | None = None) -> None:
    """Removes those that are older than a day: where nobody holds a lock, a process may be at work on a younger one.

    Args:
        directory: where they are.
        name: of what they were to become, in a folder that holds other people's files; None in a folder of ours.
    """
    pattern = re.compile(
        f"{re.escape(TEMPORARY_PREFIX + name)}-[0-9a-f]{{8}}" if name else f"{re.escape(TEMPORARY_PREFIX)}.*"
    )
    for leftover in directory.iterdir() if directory.is_dir() else ():
        if not pattern.fullmatch(leftover.name):
            continue
        with contextlib.suppress(OSError):  # another process was faster, or it is not ours to touch
            if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
                _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
