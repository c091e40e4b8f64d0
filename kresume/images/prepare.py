"""Reads every new image file once, before the first step.

    prepared = prepare(listing.files, spec, cache, reporter)
    prepared.images, prepared.quarantine, prepared.decoded

Threads read and hash each file, check its header, decode it and fill the cache. The order of the images is computed
afterwards, because files that cannot be read have no index in it. A file with unchanged path and version (size,
times, number) is not read again at the same size: its facts are in an index beside the cache. One with another version and
the same bytes is not decoded again. Without a cache (`kresume plan`, `--cache off`) files
are examined in the same way, so that the manifest does not depend on the cache; only the pixels are not kept.
"""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from kresume.errors import ImagesError
from kresume.images.cache import Cache, checksum
from kresume.images.decode import decode_many
from kresume.images.file_index import FileIndex
from kresume.images.headers import Header, read_header
from kresume.images.likeness import likeness
from kresume.images.refused_cache import Trouble
from kresume.images.sources.found import STREAM_CODINGS, Facts, Found, Known, Quarantined
from kresume.reporter import Reporter
from kresume.spelling import in_bytes, option
from kresume.storage import atomic
from kresume.storage.locations import MAX_FILE_BYTES, read_range, read_stream
from kresume.values.decode_spec import DecodeSpec

GROUP, GROUP_BYTES = 32, 16 * 2**20
WAITING = 3
"""Threads in addition to one per core, because some of them wait for the disk."""
AHEAD = 2
"""Groups that may be finished or queued in addition to those in progress."""


@dataclass(frozen=True, slots=True)
class Image:
    """Holds the location and the facts of a usable image."""

    found: Found
    facts: Facts


@dataclass(frozen=True)
class Prepared:
    """Holds the result of the prepare pass.

    Attributes:
        images: usable images in the order of the listing.
        quarantine: files that cannot be used, in the order of the listing.
        decoded: number of images that this pass decoded into the cache.
        read: number of files that this pass read.
    """

    images: tuple[Image, ...]
    quarantine: tuple[Quarantined, ...]
    decoded: int
    read: int


@contextmanager
def _without_gc_rescans() -> Iterator[None]:
    """Freezes existing objects so that the garbage collector does not rescan them.

    Creating many rows triggers many collections, unless the caller has turned the collector off. Objects that the caller has
    frozen stay frozen: `unfreeze` knows no part.
    """
    if not gc.isenabled() or gc.get_freeze_count():  # counting visits every frozen object
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_without_gc_rescans()
def prepare(
    listed: Sequence[Found],
    spec: DecodeSpec,
    cache: Cache | None,
    reporter: Reporter,
    known: Known | None = None,
    label: str = "preparing",
    *,
    writes: bool = True,
    pixels: bool = True,
    others: int = 0,
    unkept: Collection[str] = frozenset(),
) -> Prepared:
    """Reads every listed file that is not known yet, once.

    Args:
        listed: the files.
        spec: how to decode them.
        cache: filled with the images that it does not hold yet. None keeps no pixels and no facts.
        reporter: shows a progress bar with rate and remaining time.
        known: facts by `Found.key` from a manifest, each with the version of the file for which they hold.
        label: the text of the progress bar.
        writes: False writes neither pixels nor facts, for commands that only inspect.
        pixels: False writes facts beside the cache but no pixels into it.
        others: number of images that the cache must hold in addition to these.
        unkept: SHA-256s of images of which neither pixels nor facts are written: they were dropped.

    Returns:
        The usable images and the quarantined files.

    Raises:
        ImagesError: if images of a compressed archive do not fit into the cache, or if its index is damaged.
    """
    trouble = Trouble(reporter)
    index = trouble.open(cache.folder.parent, spec, writes) if cache is not None else None
    cache = cache if writes and pixels else None
    facts, stale = _remembered(listed, known or {}, index)
    wanted = _to_read(facts, cache, unkept)
    if cache is not None and wanted and (short := _too_little_room(cache, len(wanted), others + len(listed))):
        trouble.not_kept(short, [listed[position] for position in wanted])
        cache = None
        wanted = [position for position in wanted if facts[position] is None]
    reasons: dict[int, str] = {}
    decoded = 0
    with reporter.progress(label, len(wanted), "images") as advance:
        read = [listed[position] for position in wanted]
        refused = partial(trouble.refused, read)
        held = _with_pixels(stale, cache)
        for position, outcome in _read_all(read, wanted, spec, cache, advance, held, refused, unkept):
            if isinstance(outcome, str):
                reasons[position] = outcome
                facts[position] = None
            else:
                facts[position], was_decoded = outcome
                decoded += was_decoded
    if writes:
        fresh = ((listed[each], fact) for each in wanted if (fact := facts[each]) is not None)
        trouble.write(index, ((found, fact) for found, fact in fresh if fact.sha256 not in unkept))
    images = tuple(Image(found, fact) for found, fact in zip(listed, facts, strict=True) if fact is not None)
    quarantine = tuple(
        Quarantined(listed[position].name, listed[position].label, reason)
        for position, reason in sorted(reasons.items())
    )
    return Prepared(images, quarantine, decoded, len(wanted))


def _too_little_room(cache: Cache, more: int, everything: int) -> str | None:
    """Returns the reason why more images cannot be cached; None if they can."""
    if not cache.room_for(more):
        return (
            f"the disk of the cache {cache.folder} has no space for {more:,} more images "
            f"(make room; {option('cache', 'DIR')} selects another folder)"
        )
    if cache.limit_bytes is not None and not cache.holds(everything):
        return (
            f"{everything:,} images of {cache.row_bytes:,} bytes exceed the limit of the cache, "
            f"{in_bytes(cache.limit_bytes)} ({option('cache-limit', 'SIZE')} raises it)"
        )
    return None


def _remembered(
    listed: Sequence[Found], known: Known, index: FileIndex | None
) -> tuple[list[Facts | None], dict[int, Facts]]:
    """Returns the facts of unchanged files, and what the index has of changed ones, by position."""
    facts = _of_unchanged(listed, known)
    if index is None:
        return facts, {}
    unknown = [position for position, fact in enumerate(facts) if fact is None]
    remembered = index.read([listed[position].key for position in unknown])
    for position, fact in zip(unknown, _of_unchanged([listed[each] for each in unknown], remembered), strict=True):
        facts[position] = fact
    changed = [position for position in unknown if facts[position] is None and listed[position].key in remembered]
    return facts, {position: remembered[listed[position].key][1] for position in changed}


def _of_unchanged(listed: Sequence[Found], known: Known) -> list[Facts | None]:
    """Returns the known facts of each file; None if there are none, or the file has changed since."""
    facts: list[Facts | None] = []
    for found in listed:
        version, fact = known.get(found.key, (None, None))
        facts.append(fact if version == found.version else None)
    return facts


def _with_pixels(stale: Mapping[int, Facts], cache: Cache | None) -> Mapping[int, Facts]:
    """Returns the facts of those images whose pixels the cache holds; all of them without a cache."""
    if cache is None or not stale:
        return stale
    held = cache.find([fact.sha256 for fact in stale.values()]) >= 0
    return {position: fact for (position, fact), there in zip(stale.items(), held, strict=True) if there}


def _to_read(facts: Sequence[Facts | None], cache: Cache | None, unkept: Collection[str]) -> list[int]:
    """Returns the positions of files without facts, and of those whose pixels the cache shall get."""
    unknown = np.array([fact is None for fact in facts], bool)
    if cache is not None and len(facts):
        hashes = [fact.sha256 if fact is not None else "" for fact in facts]
        unknown |= (cache.find(hashes) < 0) & np.array([each not in unkept for each in hashes], bool)
    return [int(position) for position in np.nonzero(unknown)[0]]


Item = tuple[int, Found, bytes | str | None]
"""Position of an image, its location, and its bytes or the reason why they cannot be read; None before reading."""
Row = tuple[np.ndarray, int]
"""Pixels of an image and their checksum, for the cache."""
Outcome = tuple[int, tuple[Facts, Row | None] | str]
"""Position of an image, and its facts and row, or the reason why it cannot be used."""


def _read_all(
    listed: Sequence[Found],
    positions: Sequence[int],
    spec: DecodeSpec,
    cache: Cache | None,
    advance: Callable[[int], None],
    stale: Mapping[int, Facts],
    refused: Callable[[OSError], None],
    unkept: Collection[str],
) -> Iterator[tuple[int, str | tuple[Facts, bool]]]:
    """Yields each image's position and its facts, or why it is unusable.

    Images are yielded as they are finished. At most `AHEAD` groups are held in addition to one per thread.
    """
    if not listed:
        return
    in_cache = set(unkept)  # as if they were
    workers = (os.cpu_count() or 1) + WAITING
    with ExitStack() as stack:
        writer = stack.enter_context(cache.writer(refused)) if cache is not None else None
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=workers, thread_name_prefix="kresume-prepare"))
        waiting: set[Future[list[Outcome]]] = set()
        stack.callback(lambda: [future.cancel() for future in waiting])
        groups = grouped(_with_streams(listed, positions))
        more = True
        while more or waiting:
            while more and len(waiting) < workers + AHEAD:
                group = next(groups, None)
                if group is None:
                    more = False
                else:
                    waiting.add(pool.submit(_examine, group, spec, writer is not None, stale))
            done, left = wait(waiting, return_when=FIRST_COMPLETED)
            waiting.intersection_update(left)
            for position, outcome in (each for future in done for each in future.result()):
                advance(1)
                if isinstance(outcome, str):
                    yield position, outcome
                    continue
                fact, row = outcome
                if writer is not None and row is not None and fact.sha256 not in in_cache:
                    in_cache.add(fact.sha256)
                    writer.add(fact.sha256, *row)
                yield position, (fact, row is not None)


def grouped(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Groups images to be decoded together: up to `GROUP` images or `GROUP_BYTES` bytes."""
    group: list[Item] = []
    size = 0
    for item in items:
        length = item[1].bytes if item[1].length < 0 else item[1].length
        if group and (len(group) == GROUP or size + length > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(item)
        size += length
    if group:
        yield group


def _with_streams(listed: Sequence[Found], positions: Sequence[int]) -> Iterator[Item]:
    """Yields images in order; those in compressed files come last, with their bytes.

    A file that is compressed as a whole is read in one pass.
    """
    streams: dict[str, list[tuple[int, Found]]] = {}
    for position, found in zip(positions, listed, strict=True):
        if found.coding in STREAM_CODINGS:
            streams.setdefault(found.path, []).append((position, found))
        else:
            yield position, found, None
    for path, inside in streams.items():
        inside.sort(key=lambda item: item[1].offset)
        contents = read_stream(path, inside[0][1].coding, [(found.offset, found.length) for _, found in inside])
        reason = None
        for position, found in inside:
            if reason is not None:
                yield position, found, reason
                continue
            try:
                yield position, found, next(contents)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                reason = f"{path} cannot be decompressed from this image on ({error})"
                yield position, found, reason


def _examine(group: Sequence[Item], spec: DecodeSpec, with_rows: bool, stale: Mapping[int, Facts]) -> list[Outcome]:
    """Reads, hashes and decodes a group of images and computes their likeness.

    Args:
        group: the images.
        spec: how to decode them.
        with_rows: True returns their pixels.
        stale: facts from an earlier version of the file, by position; with the same bytes they hold, and nothing is decoded.
    """
    outcomes: list[Outcome] = []
    readable: list[tuple[int, bytes, Header]] = []
    for position, found, content in group:
        try:
            data = content_of(found, content)
            before = stale.get(position)
            if before is not None and hashlib.sha256(data).hexdigest() == before.sha256:
                outcomes.append((position, (before, None)))
                continue
            readable.append((position, data, read_header(data)))
        except ImagesError as error:
            outcomes.append((position, str(error)))
    pictures = decode_many([data for _, data, _ in readable], spec, [header for _, _, header in readable])
    decoded = [picture for picture in pictures if not isinstance(picture, ImagesError)]
    hashes, thumbs = likeness(decoded)
    alike = iter(zip(hashes.tolist(), thumbs, strict=True))
    for (position, data, header), picture in zip(readable, pictures, strict=True):
        if isinstance(picture, ImagesError):
            outcomes.append((position, str(picture)))
            continue
        phash, thumb = next(alike)
        sha256 = hashlib.sha256(data).hexdigest()
        facts = Facts(sha256, header.width, header.height, header.format, phash, thumb.tobytes())
        outcomes.append((position, (facts, (picture, checksum(picture)) if with_rows else None)))
    return outcomes


def content_of(found: Found, content: bytes | str | None) -> bytes:
    """Returns the bytes of an image.

    Args:
        found: where it is.
        content: its bytes or the reason why they cannot be read, if that is known already.

    Raises:
        ImagesError: it cannot be read or is too large; the message is the reason alone.
    """
    if isinstance(content, str):
        raise ImagesError(content)
    if content is not None:
        return content
    if found.length < 0 and found.bytes > MAX_FILE_BYTES:
        raise ImagesError(f"larger than {MAX_FILE_BYTES // 2**20} MB, the limit for one image")
    try:
        return read_range(found.path, found.offset, found.length, found.coding)
    except OSError as error:
        raise ImagesError(f"it cannot be read ({error.strerror or type(error).__name__})") from error


def write_quarantine(path: Path, rows: Sequence[Quarantined]) -> None:
    """Writes `quarantine.csv` with path, label and reason, even if it has no rows."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label", "reason"])
    table.writerows([row.path, row.label, row.reason] for row in rows)
    atomic.write_text(path, text.getvalue())
