"""Stores the facts of image files, so that unchanged files are not read again.

    index = open_index(cache_root, spec, writes=True)
    index.read([found.key])             # {key: ((bytes, mtime_ns, stamp), facts)}
    index.write([(found, facts)])

It is one SQLite file beside the cache for all sizes of decoded images, shared by processes. Each size has facts of its own:
a likeness comes from decoded pixels, so facts from another size would let an earlier command change the split.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from kresume.errors import ImagesError
from kresume.images.sources.found import Facts, Found
from kresume.spelling import option
from kresume.storage import refusals
from kresume.storage.locations import Version
from kresume.values.decode_spec import DecodeSpec

INDEX_NAME = "pictures.sqlite"
COLUMNS = "path, spec, bytes, mtime_ns, sha256, width, height, format, phash, thumb"
"""Columns of the table `pictures` of earlier versions; `images` has `stamp`, too."""


class IndexRefused(ImagesError):
    """Raised if the disk refuses to write the index; it only saves time, so a command goes on without it."""


def open_index(root: Path, spec: DecodeSpec, writes: bool) -> FileIndex | None:
    """Opens the index of a cache's root, and creates it if needed.

    Args:
        root: the folder that holds the folders of all sizes.
        spec: the size whose facts are read and written.
        writes: False creates nothing; then the result is None if there is no index.

    Raises:
        IndexRefused: the disk is full or read-only.
        ImagesError: the file is damaged, or cannot be used for another reason.
    """
    if not writes and not (root / INDEX_NAME).is_file():
        return None
    index = FileIndex(root / INDEX_NAME, spec.key)
    if writes:
        index.create()
    return index if writes or index.exists() else None


def forget_facts(root: Path, sha256s: Collection[str]) -> None:
    """Removes the facts of images, thumbnails of all sizes included, from the index of a cache's root."""
    if (root / INDEX_NAME).is_file():
        index = FileIndex(root / INDEX_NAME)
        index.create()
        index.remove(sha256s)


class FileIndex:
    """Stores facts by path and version of the file in SQLite, shared by processes."""

    def __init__(self, path: Path, spec: str = "") -> None:
        self._path = path
        self._spec = spec

    def create(self) -> None:
        """Creates the table if needed, and removes those of earlier versions.

        Their first table had one row for all sizes. The rows of the second one are kept without a stamp: each file is read
        and hashed once more, and not decoded again if its content is the same.
        """
        with contextlib.suppress(OSError):  # SQLite says what is wrong; it gives new files the mode 0644 at most
            self._path.touch()
        with self._connect() as connection:
            connection.execute("DROP TABLE IF EXISTS files")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS images (path TEXT, spec TEXT, bytes INTEGER, mtime_ns INTEGER, sha256 TEXT, "
                "width INTEGER, height INTEGER, format TEXT, phash TEXT, thumb BLOB, stamp INTEGER, PRIMARY KEY (path, spec))"
            )
            if _has(connection, "pictures"):
                connection.execute("BEGIN IMMEDIATE")
                if _has(connection, "pictures"):  # another process may have been faster
                    connection.execute(f"INSERT OR IGNORE INTO images SELECT {COLUMNS}, 0 FROM pictures")
                    connection.execute("DROP TABLE pictures")
                connection.execute("COMMIT")

    def exists(self) -> bool:
        """Tests if the table exists; an index that an earlier version wrote has another one."""
        with self._connect() as connection:
            return _has(connection, "images")

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=60.0, isolation_level=None)) as connection:
                yield connection
        except sqlite3.Error as error:
            if refusals.number_of(error):
                raise IndexRefused(
                    f"the index of known images {self._path} cannot be written ({refusals.reason(error)}): "
                    f"{refusals.way_on(error)} {option('cache', 'DIR')}"
                ) from error
            raise ImagesError(
                f"the index of known images {self._path} cannot be used ({error}): remove the file, kresume creates it again; "
                f"or give {option('cache', 'DIR')}"
            ) from error

    def read(self, keys: Sequence[str]) -> dict[str, tuple[Version, Facts]]:
        """Returns the known facts by `Found.key`, each with the version of the file for which they hold."""
        found: dict[str, tuple[Version, Facts]] = {}
        with self._connect() as connection:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                for key, _, size, time, sha256, width, height, kind, phash, thumb, stamp in connection.execute(
                    f"SELECT {COLUMNS}, stamp FROM images WHERE path IN ({marks}) AND spec = ?", [*part, self._spec]
                ):
                    found[key] = ((size, time, stamp), Facts(sha256, width, height, kind, int(phash, 16), thumb))
        return found

    def remove(self, sha256s: Collection[str]) -> None:
        """Removes the facts of images."""
        with self._connect() as connection:
            connection.execute("PRAGMA secure_delete = ON")  # a process may be killed before VACUUM
            asked, gone = sorted(sha256s), 0
            connection.execute("BEGIN IMMEDIATE")
            for start in range(0, len(asked), 500):  # each statement reads the whole table
                part = asked[start : start + 500]
                marks = ",".join("?" * len(part))
                gone += connection.execute(f"DELETE FROM images WHERE sha256 IN ({marks})", part).rowcount
            connection.execute("COMMIT")
            if gone:
                connection.execute("VACUUM")  # otherwise deleted data stay in the file's free pages

    def write(self, rows: Iterable[tuple[Found, Facts]]) -> None:
        """Adds the facts of files, or replaces them."""
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                f"INSERT OR REPLACE INTO images ({COLUMNS}, stamp) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        found.key,
                        self._spec,
                        found.bytes,
                        found.mtime_ns,
                        facts.sha256,
                        facts.width,
                        facts.height,
                        facts.format,
                        f"{facts.phash:016x}",  # SQLite's integers are signed
                        facts.thumb,
                        found.stamp,
                    )
                    for found, facts in rows
                ),
            )
            connection.execute("COMMIT")


def _has(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone() is not None
