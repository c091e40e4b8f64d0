"""Reads and decodes pictures in threads ahead of their use, in order, with bounded memory.

    for read in read_ahead(items, spec):
        read.picture, read.reason

Each picture is read once and dropped after its use, as for a prediction. Training reads through the cache instead.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from kresume.errors import ImagesError
from kresume.images.decode import decode_many
from kresume.images.headers import read_header
from kresume.images.prepare import AHEAD, WAITING, Item, content_of, grouped
from kresume.images.sources.found import STREAM_CODINGS, Found, Quarantined
from kresume.storage.locations import read_stream
from kresume.values.decode_spec import DecodeSpec


@dataclass(frozen=True)
class Read:
    """One picture, or why there is none.

    Attributes:
        item: where it is.
        picture: `(height, width, 3) uint8`; None if it was not to be decoded, or cannot be.
        reason: why it cannot be used; empty if it can.
        data: its bytes, if they were to be kept.
        sha256: of its bytes, if they were to be kept; in hexadecimal.
        format: Pillow's name of its format, if that is known.
    """

    item: Found | Quarantined
    picture: np.ndarray | None = None
    reason: str = ""
    data: bytes | None = None
    sha256: str = ""
    format: str = ""


def read_ahead(
    items: Iterable[Found | Quarantined], spec: DecodeSpec | None, *, keeps_data: bool = False
) -> Iterator[Read]:
    """Yields every picture in the order of its listing.

    Args:
        items: listed pictures; of an archive that is compressed as a whole, those that follow each other are read in one
            pass.
        spec: how to decode them; None only reads the bytes.
        keeps_data: keep the bytes of each file, and their SHA-256.
    """
    workers = (os.cpu_count() or 1) + WAITING
    waiting: deque[Future[list[Read]]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="kresume-ahead") as pool:
        try:
            for group in grouped(_with_contents(items)):
                waiting.append(pool.submit(_read, group, spec, keeps_data or spec is None))
                while len(waiting) >= workers + AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _with_contents(items: Iterable[Found | Quarantined]) -> Iterator[Item]:
    """Yields images; those of files that are compressed as a whole with their bytes, read in one pass."""
    for (path, coding), run in groupby(items, key=_stream_of):
        if not coding:
            for item in run:
                yield (0, item, None) if isinstance(item, Found) else (0, _nowhere(item), item.reason)
            continue
        inside = sorted((item for item in run if isinstance(item, Found)), key=lambda found: found.offset)
        contents = read_stream(path, coding, [(found.offset, found.length) for found in inside])
        reason = ""
        for found in inside:
            try:
                yield 0, found, reason or next(contents)
            except (OSError, EOFError) as error:
                reason = f"{path} cannot be decompressed from this image on ({error})"
                yield 0, found, reason


def _stream_of(item: Found | Quarantined) -> tuple[str, str]:
    """Returns path and compression of a file that can only be read in one pass; empty for any other."""
    if isinstance(item, Found) and item.coding in STREAM_CODINGS:
        return item.path, item.coding
    return "", ""


def _nowhere(item: Quarantined) -> Found:
    """Returns a place for an image that a source names but that cannot be read."""
    return Found(item.path, item.label, "", 0, 0)


def _read(group: Sequence[Item], spec: DecodeSpec | None, keeps_data: bool) -> list[Read]:
    """Reads a group of images and decodes those of the same kind together."""
    results: list[Read] = []
    contents: list[bytes] = []
    readable: list[int] = []
    headers = []
    for _, found, content in group:
        try:
            data = content_of(found, content)
            header = read_header(data)
        except ImagesError as error:
            results.append(Read(found, reason=str(error)))
            continue
        readable.append(len(results))
        contents.append(data)
        headers.append(header)
        results.append(Read(found, format=header.format))
    pictures: Sequence[np.ndarray | ImagesError | None] = (
        decode_many(contents, spec, headers) if spec is not None else [None] * len(contents)
    )
    for index, data, picture in zip(readable, contents, pictures, strict=True):
        before = results[index]
        if isinstance(picture, ImagesError):
            results[index] = Read(before.item, reason=str(picture), format=before.format)
            continue
        digest = hashlib.sha256(data).hexdigest() if keeps_data else ""
        results[index] = Read(before.item, picture, "", data if keeps_data else None, digest, before.format)
    return results
