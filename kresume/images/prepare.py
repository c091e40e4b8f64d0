"""The prepare pass: every new file is read once, before the first step.

    prepared = prepare(listing.files, spec, cache, reporter)
    prepared.images, prepared.quarantine, prepared.decoded

Reads, hashes, checks the header, decodes and fills the cache, in threads. The order of the images exists only afterwards,
because what cannot be read has no place in it. A file that has not changed since (path, size, time) is not read again: its
facts are in an index beside the cache. Without a cache (`kresume plan`, `--cache off`) files are hashed and their headers
checked.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kresume import files
from kresume.errors import ImagesError
from kresume.images.cache import Cache
from kresume.images.decode import DecodeSpec, decode, read_header
from kresume.images.sources import Found
from kresume.progress import Reporter

INDEX_NAME = "files.sqlite"
AHEAD = 256


@dataclass(frozen=True)
class Facts:
    """What is known of a file's content."""

    sha256: str
    width: int
    height: int
    format: str
    phash: int


@dataclass(frozen=True)
class Image:
    """A usable file: where it is and what it holds."""

    found: Found
    facts: Facts


@dataclass(frozen=True)
class Quarantined:
    """A file that could not be used, and why."""

    path: str
    label: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """What the prepare pass came to.

    Attributes:
        images: in the order of the listing.
        quarantine: likewise.
        decoded: how many files were decoded in this pass.
        read: how many files were read in this pass.
    """

    images: tuple[Image, ...]
    quarantine: tuple[Quarantined, ...]
    decoded: int
    read: int


def prepare(
    listed: Sequence[Found],
    spec: DecodeSpec,
    cache: Cache | None,
    reporter: Reporter,
    known: Mapping[str, tuple[int, int, Facts]] | None = None,
    label: str = "preparing",
) -> Prepared:
    """Reads every listed file that is not known yet, once.

    Args:
        listed: the files.
        spec: how to decode them.
        cache: filled with what it does not hold; None decodes nothing.
        reporter: shows a bar with rate and time left.
        known: facts by path with the size and time they hold for, from a manifest.
        label: the bar's words.
    """
    index = _FileIndex(cache.folder.parent / INDEX_NAME) if cache is not None else None
    remembered = dict(known or {})
    if index is not None:
        remembered = index.read([found.path for found in listed if found.path not in remembered]) | remembered
    facts: list[Facts | None] = []
    for found in listed:
        size, time, fact = remembered.get(found.path, (-1, -1, None))
        facts.append(fact if (size, time) == (found.bytes, found.mtime_ns) else None)
    wanted = _to_read(facts, cache)
    if cache is not None and wanted and not cache.room_for(len(wanted)):
        reporter.warn(
            f"the disk of the cache {cache.folder} has no room for {len(wanted):,} more pictures: they are decoded each "
            "time they are drawn, which is slower (--cache DIR puts the cache elsewhere)"
        )
        cache = None
        wanted = [position for position in wanted if facts[position] is None]
    reasons: dict[int, str] = {}
    decoded = 0
    with reporter.progress(label, len(wanted), "images") as advance:
        for position, outcome in _read_all([listed[position] for position in wanted], wanted, spec, cache, advance):
            if isinstance(outcome, str):
                reasons[position] = outcome
                facts[position] = None
            else:
                facts[position], was_decoded = outcome
                decoded += was_decoded
    if index is not None:
        index.write((listed[position], fact) for position in wanted if (fact := facts[position]) is not None)
    images = tuple(Image(found, fact) for found, fact in zip(listed, facts, strict=True) if fact is not None)
    quarantine = tuple(
        Quarantined(listed[position].path, listed[position].label, reason)
        for position, reason in sorted(reasons.items())
    )
    return Prepared(images, quarantine, decoded, len(wanted))


def _to_read(facts: Sequence[Facts | None], cache: Cache | None) -> list[int]:
    unknown = np.array([fact is None for fact in facts], bool)
    if cache is not None and len(facts):
        absent = cache.find([fact.sha256 if fact is not None else "" for fact in facts]) < 0
        unknown |= absent
    return [int(position) for position in np.nonzero(unknown)[0]]


def _read_all(
    listed: Sequence[Found],
    positions: Sequence[int],
    spec: DecodeSpec,
    cache: Cache | None,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, str | tuple[Facts, bool]]]:
    """Yields (position, facts or the reason why not) as files are done; never holds more than `AHEAD` of them."""
    if not listed:
        return
    writer = cache.writer() if cache is not None else None
    in_cache = set()
    with ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1, thread_name_prefix="kresume-prepare") as pool:
        waiting: dict[Future[tuple[Facts, np.ndarray | None]], int] = {}
        queue = iter(zip(positions, listed, strict=True))
        try:
            while True:
                while len(waiting) < AHEAD and (item := next(queue, None)) is not None:
                    waiting[pool.submit(_read_one, item[1], spec, cache is not None)] = item[0]
                if not waiting:
                    break
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    position = waiting.pop(future)
                    advance(1)
                    try:
                        fact, pixels = future.result()
                    except ImagesError as error:
                        yield position, str(error)
                        continue
                    if writer is not None and pixels is not None and fact.sha256 not in in_cache:
                        in_cache.add(fact.sha256)
                        writer.add(fact.sha256, pixels)
                    yield position, (fact, pixels is not None)
        finally:
            for future in waiting:
                future.cancel()
            if writer is not None:
                writer.__exit__(None, None, None)


def _read_one(found: Found, spec: DecodeSpec, decodes: bool) -> tuple[Facts, np.ndarray | None]:
    try:
        data = Path(found.path).read_bytes()
    except OSError as error:
        raise ImagesError(f"it cannot be read ({error.strerror})") from error
    header = read_header(data)
    sha256 = hashlib.sha256(data).hexdigest()
    if not decodes:
        return Facts(sha256, header.width, header.height, header.format, 0), None
    picture = decode(data, spec, header)
    return Facts(sha256, header.width, header.height, header.format, picture.fingerprint), picture.pixels


class _FileIndex:
    """Facts of files by path, size and time, shared by processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._connect() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, bytes INTEGER, mtime_ns INTEGER, sha256 TEXT, "
                "width INTEGER, height INTEGER, format TEXT, phash TEXT)"
            )

    def _connect(self) -> closing[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=60.0, isolation_level=None)
        return closing(connection)

    def read(self, paths: Sequence[str]) -> dict[str, tuple[int, int, Facts]]:
        found: dict[str, tuple[int, int, Facts]] = {}
        with self._connect() as connection:
            for start in range(0, len(paths), 500):
                part = paths[start : start + 500]
                marks = ",".join("?" * len(part))
                for path, size, time, sha256, width, height, kind, phash in connection.execute(
                    f"SELECT * FROM files WHERE path IN ({marks})", part
                ):
                    found[path] = (size, time, Facts(sha256, width, height, kind, int(phash, 16)))
        return found

    def write(self, rows: Iterable[tuple[Found, Facts]]) -> None:
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        found.path,
                        found.bytes,
                        found.mtime_ns,
                        facts.sha256,
                        facts.width,
                        facts.height,
                        facts.format,
                        f"{facts.phash:016x}",  # SQLite's integers are signed
                    )
                    for found, facts in rows
                ),
            )
            connection.execute("COMMIT")


def write_quarantine(path: Path, rows: Sequence[Quarantined]) -> None:
    """Writes `quarantine.csv`: path, label, reason. The file stands even when it has no rows."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label", "reason"])
    table.writerows([row.path, row.label, row.reason] for row in rows)
    files.write_text(path, text.getvalue())
