"""Writes files and directories atomically.

    write_json(run / "run.json", facts)                     # temporary file, flushed, renamed over
    with new_directory(snapshots / "step-00001200") as tmp:  # the name appears when all of it is on disk
        (tmp / "state.safetensors").write_bytes(...)

A crash at any time leaves either the old file or the new one, never a partial file. POSIX `rename` is atomic. Each file
and each folder in a new directory is flushed to disk before the rename, and the parent directory after it. When these
functions return, what they wrote survives a power cut; `scripts/bench/powercut.py` tries every instant.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kresume.addresses import BUCKETS, MUST_BE_HERE
from kresume.errors import UsageError
from kresume.storage import refusals

TEMPORARY_PREFIX = ".tmp-"
ABANDONED_SECONDS = 24 * 3600.0


def flush_file(path: Path) -> None:
    """Flushes a file's bytes to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: Path) -> None:
    """Flushes the names in a directory to disk.

    Does nothing where directories cannot be opened (Windows).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems refuse fsync on a directory; the rename is done
        import errno

        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Creates a directory and its missing parents, and flushes the name of each.

    Without that, a power cut could remove a new directory with all flushed files in it.

    Raises:
        UsageError: the path is an address that was taken for a local one: no folder `s3:` is created.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    if any(f"{folder.name}/".lower() in BUCKETS for folder in missing):
        raise UsageError(f"{path}: {MUST_BE_HERE}")
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_directory(folder.parent)


def remove_directories(paths: Iterable[Path]) -> None:
    """Removes directories, each whole or not at all, as far as readers see.

    A removal that is interrupted must not leave a directory that has its name and misses files. So all get temporary
    names, which are flushed before their content goes.
    """
    gone = [(path, temporary_beside(path)) for path in paths]
    for path, temporary in gone:
        path.rename(temporary)
    for parent in {path.parent for path, _ in gone}:
        flush_directory(parent)
    for _, temporary in gone:
        shutil.rmtree(temporary, ignore_errors=True)


def set_mode(path: Path, mode: int) -> None:
    """Changes the mode of a file or folder that a library made, if the file system has modes."""
    if path.stat().st_mode != mode:
        with contextlib.suppress(OSError):
            path.chmod(mode)


def temporary_beside(path: Path) -> Path:
    """Returns an unused temporary name in the directory of `path`.

    The same directory keeps the rename on one file system. Readers ignore such names.
    """
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes `path`, flushed, if the block succeeds.

    Replaces an existing `path`. On an exception the temporary file is removed and `path` is unchanged. What a library
    raises on a full disk becomes an OSError that names `path`.
    """
    make_directory(path.parent)
    temporary = temporary_beside(path)
    try:
        yield temporary
        flush_file(temporary)
        os.replace(temporary, path)
        flush_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a read-only file system refuses this, too
            temporary.unlink(missing_ok=True)
        if (refused := refusals.named(error, path, temporary)) is not None:
            raise refused from error
        raise


@contextmanager
def temporary_copy(path: Path, ending: str) -> Iterator[Path]:
    """Yields a temporary copy of a file under another ending.

    For readers that depend on the ending.
    """
    with tempfile.TemporaryDirectory(prefix="kresume-") as folder:
        copy = Path(folder) / f"{path.name}{ending}"
        shutil.copyfile(path, copy)
        yield copy


@contextmanager
def new_directory(path: Path, replaced: Path | None = None) -> Iterator[Path]:
    """Yields a temporary directory that becomes `path` if the block succeeds.

    Every file and folder in it is flushed first.

    Args:
        path: the directory's final name.
        replaced: new name for an existing `path`. A directory cannot be renamed over another, so after a crash the old
            one may have this name while `path` is missing. None refuses an existing `path`.

    Raises:
        FileExistsError: if `path` exists and `replaced` is None; its content is unchanged.
    """
    make_directory(path.parent)
    if path.exists() and replaced is None:
        raise FileExistsError(f"{path} exists already; a finished directory is never overwritten")
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for found in sorted(temporary.rglob("*")):
            if found.is_dir():
                set_mode(found, temporary.stat().st_mode)  # TensorFlow gives folders 0755 at most
                flush_directory(found)
            elif found.is_file():
                flush_file(found)
        flush_directory(temporary)
        if replaced is not None and path.exists():
            os.rename(path, replaced)
        os.rename(temporary, path)
        flush_directory(path.parent)
    except BaseException as error:
        if replaced is not None and replaced.exists() and not path.exists():
            with contextlib.suppress(OSError):
                os.rename(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        if (refused := refusals.named(error, path, temporary)) is not None:
            raise refused from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path` atomically."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically.

    NaN is refused, because JSON readers disagree on it.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: if the file holds no valid JSON; the message names the file and the line.
    """
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, path: Path) -> Any:
    """Reads the content of a JSON file; raises as `read_json` does."""
    try:
        return json.loads(content.decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def append_line(path: Path, line: str) -> None:
    """Appends one line in a single write and flushes it.

    A crash can leave a partial line, so readers must expect one.
    """
    created = not path.exists()
    before = 0 if created else path.stat().st_size
    try:
        with path.open("ab+") as file:
            if before:
                file.seek(-1, os.SEEK_END)
            torn = before > 0 and file.read(1) != b"\n"  # without a newline, this line would be lost with the torn one
            file.write(b"\n" * torn + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if created:
            flush_directory(path.parent)
    except OSError as error:
        # Restore the old length: a retry must not find the line, or a part of it, in the file.
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        if (refused := refusals.named(error, path, path)) is not None:
            raise refused from error
        raise


def modified(path: Path) -> str:
    """Returns a file's modification time in UTC, as ISO 8601 to the second."""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(directory: Path, keep: str = "") -> None:
    """Removes temporary files and directories that a killed process left behind.

    Call only with the run's lock held.

    Args:
        directory: the directory to clean.
        keep: a file name whose temporary files are kept, because another process may be writing that file.
    """
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
        if not keep or not leftover.name.startswith(f"{TEMPORARY_PREFIX}{keep}"):
            _remove(leftover)


def remove_abandoned(directory: Path, name: str | None = None) -> None:
    """Removes temporary files and directories older than a day.

    For directories without a lock: another process may still use a younger one.

    Args:
        directory: the directory to clean.
        name: final name of the temporary files, for a folder that holds other files; None for a folder that kresume
            owns.
    """
    pattern = re.compile(
        f"{re.escape(TEMPORARY_PREFIX + name)}-[0-9a-f]{{8}}" if name else f"{re.escape(TEMPORARY_PREFIX)}.*"
    )
    for leftover in directory.iterdir() if directory.is_dir() else ():
        if not pattern.fullmatch(leftover.name):
            continue
        with contextlib.suppress(OSError):  # removed by another process, or not permitted
            if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
                _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
