"""Reads decoded pictures by manifest row, from the cache or their files.

    reader = PictureReader(manifest, spec, cache)
    reader(rows)                      # (n, height, width, 3) uint8
    pictures, broken = reader.attempt(rows)

Cache and files give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from kresume.addresses import is_remote
from kresume.errors import ImagesError
from kresume.images.cache import Cache
from kresume.images.decode import decode
from kresume.images.manifest import Manifest
from kresume.images.sources.found import STREAM_CODINGS, Found
from kresume.storage.locations import read_range, read_stream
from kresume.values.decode_spec import DecodeSpec


@cache
def _pool() -> ThreadPoolExecutor:
    """Returns the process's one thread pool for reading and decoding."""
    return ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1, thread_name_prefix="kresume-read")


class PictureReader:
    """Reads decoded pictures of a manifest; cache and files give the same bytes.

    Args:
        manifest: the images.
        spec: how they are decoded.
        cache: None decodes a picture each time it is read.
    """

    def __init__(self, manifest: Manifest, spec: DecodeSpec, cache: Cache | None) -> None:
        self.manifest = manifest
        self.spec = spec
        self.cache = cache
        self._cached = cache.find(manifest.sha256s) if cache is not None else np.full(len(manifest), -1, np.int64)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Reads these rows, `(n, height, width, 3) uint8`.

        Raises:
            ImagesError: a file is missing or was changed since it was recorded, or the cache is damaged.
        """
        pictures, broken = self.attempt(rows)
        if broken:
            raise ImagesError(f"{next(iter(broken.values()))}: restore it and run again")
        return pictures

    def attempt(self, rows: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Reads these rows and reports unreadable ones instead of raising.

        Returns:
            `(pictures (n, height, width, 3) uint8, errors)`; `errors` maps an index into `rows` to a message, and the
            picture at that index is black.
        """
        present = np.nonzero(self._cached[rows] >= 0)[0]
        cached, damaged = None, np.zeros(0, np.int64)
        if self.cache is not None and len(present):
            cached, damaged = self.cache.attempt(self._cached[rows[present]])
            self._cached[rows[present[damaged]]] = -1  # read from their files, which give the same bytes
            if len(present) == len(rows) and not len(damaged):
                return cached, {}
        result = np.zeros((len(rows), self.spec.height, self.spec.width, 3), np.uint8)
        if cached is not None:
            result[present] = cached
        absent = np.nonzero(self._cached[rows] < 0)[0]
        result[absent] = 0
        broken: dict[int, str] = {}
        listed = self.manifest.found(rows[absent])
        hashes = self.manifest.sha256s[rows[absent]].tolist()
        packed = [index for index, each in enumerate(listed) if each.coding in STREAM_CODINGS]
        contents = dict(self._stream_contents([(index, listed[index]) for index in packed]))
        outcomes = _pool().map(self._decode, listed, hashes, [contents.get(index) for index in range(len(listed))])
        for index, outcome in zip(absent.tolist(), outcomes, strict=True):
            if isinstance(outcome, str):
                broken[index] = outcome
            else:
                result[index] = outcome
        return result, broken

    def _stream_contents(self, items: Sequence[tuple[int, Found]]) -> Iterator[tuple[int, bytes | str]]:
        """Reads pictures in archives compressed as a whole, in one costly pass each."""
        files: dict[str, list[tuple[int, Found]]] = {}
        for index, found in items:
            files.setdefault(found.path, []).append((index, found))
        for path, inside in files.items():
            inside.sort(key=lambda item: item[1].offset)
            indices = [index for index, _ in inside]
            ranges = [(found.offset, found.length) for _, found in inside]
            try:
                yield from zip(indices, list(read_stream(path, inside[0][1].coding, ranges)), strict=True)
            except (OSError, EOFError) as error:
                yield from ((index, f"{path} can no longer be decompressed ({error})") for index in indices)

    def _decode(self, found: Found, sha256: bytes, content: bytes | str | None) -> np.ndarray | str:
        """Returns the picture, or an error message."""
        if isinstance(content, str):
            return content
        try:
            data = content or read_range(found.path, found.offset, found.length, found.coding)
        except OSError as error:
            return f"{found.name} can no longer be read ({error.strerror or type(error).__name__})"
        except ImagesError as error:
            return f"{found.name}: {error}"
        if hashlib.sha256(data).hexdigest().encode() != sha256:
            return f"{found.name} has changed since it was recorded"
        try:
            return decode(data, self.spec)
        except ImagesError as error:
            return f"{found.name}: {error}"


def as_files(found: Sequence[Found], folder: Path) -> list[str]:
    """Returns plain local files with one picture each, copied if necessary.

    Args:
        found: the pictures.
        folder: archive members and remote files are copied here.

    Raises:
        ImagesError, OSError: a picture cannot be read.
    """
    paths = []
    for index, picture in enumerate(found):
        if picture.length < 0 and not picture.coding and not is_remote(picture.path):
            paths.append(picture.path)
            continue
        copy = folder / f"picture-{index:06d}"
        copy.write_bytes(read_range(picture.path, picture.offset, picture.length, picture.coding))
        paths.append(str(copy))
    return paths
