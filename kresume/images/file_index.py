"""Stores the facts of image files, so that unchanged files are not read again.

    index = open_index(cache_root, writes=True)
    index.read([found.key])             # {key: (bytes, mtime_ns, facts)}
    index.write([(found, facts)])

It is one SQLite file beside the cache for all sizes of decoded images, shared by processes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from kresume.errors import ImagesError
from kresume.images.sources.found import Facts, Found
from kresume.spelling import option

INDEX_NAME = "pictures.sqlite"


def open_index(root: Path, writes: bool) -> FileIndex | None:
    """Opens the index of a cache's root, and creates it if needed.

    Args:
        root: the folder that holds the folders of all sizes.
        writes: False creates nothing; then the result is None if there is no index.
    """
    path = root / INDEX_NAME
    return FileIndex(path) if writes or path.is_file() else None


def forget_facts(root: Path, sha256s: Collection[str]) -> None:
    """Removes the facts of images, thumbnails included, from the index of a cache's root."""
    if (root / INDEX_NAME).is_file():
        FileIndex(root / INDEX_NAME).remove(sha256s)


class FileIndex:
    """Stores facts by path, size and time in SQLite, shared by processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._connect() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, bytes INTEGER, mtime_ns INTEGER, sha256 TEXT, "
                "width INTEGER, height INTEGER, format TEXT, phash TEXT, thumb BLOB)"
            )

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=60.0, isolation_level=None)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise ImagesError(
                f"the index of known images {self._path} cannot be used ({error}): remove the file, kresume creates it again; "
                f"or give {option('cache', 'DIR')}"
            ) from error

    def read(self, keys: Sequence[str]) -> dict[str, tuple[int, int, Facts]]:
        """Returns the known facts by `Found.key`, each with the file's size and time for which they hold."""
        found: dict[str, tuple[int, int, Facts]] = {}
        with self._connect() as connection:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                for key, size, time, sha256, width, height, kind, phash, thumb in connection.execute(
                    f"SELECT * FROM files WHERE path IN ({marks})", part
                ):
                    found[key] = (size, time, Facts(sha256, width, height, kind, int(phash, 16), thumb))
        return found

    def remove(self, sha256s: Collection[str]) -> None:
        """Removes the facts of images."""
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM files WHERE sha256 = ?", ((sha256,) for sha256 in sha256s))
            connection.execute("COMMIT")
            connection.execute("VACUUM")  # otherwise deleted data stay in the file's free pages

    def write(self, rows: Iterable[tuple[Found, Facts]]) -> None:
        """Adds the facts of files, or replaces them."""
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        found.key,
                        found.bytes,
                        found.mtime_ns,
                        facts.sha256,
                        facts.width,
                        facts.height,
                        facts.format,
                        f"{facts.phash:016x}",  # SQLite's integers are signed
                        facts.thumb,
                    )
                    for found, facts in rows
                ),
            )
            connection.execute("COMMIT")
