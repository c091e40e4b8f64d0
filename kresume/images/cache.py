"""Stores decoded images on disk, so that each file is decoded only once.

    cache = Cache.open(DecodeSpec(64, 64))
    with cache.writer() as writer:
        writer.add(sha256, pixels, checksum(pixels))
    rows = cache.find(manifest.sha256s)         # -1 where an image is not cached
    cache.read(rows)                            # (n, height, width, 3) uint8, from mapped files

All runs share it. There is one folder per `DecodeSpec.key`. A shard is a file of raw rows with an index beside it. The
index is written last, so a shard without one is ignored. Each process writes its own shards and never changes
another's, so any number of processes may share a cache. The checksum of a row is verified the first time a process
reads it.

The default location is `$KRESUME_CACHE`, else `~/.cache/kresume`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from kresume.errors import ImagesError
from kresume.spelling import option
from kresume.storage import atomic, locations, refusals
from kresume.storage.damage import is_refusal
from kresume.values.decode_spec import DecodeSpec

INDEX_TYPE = np.dtype([("sha256", "S64"), ("crc", "<u4")])
SHARD_BYTES = 64 * 2**20
SPARE_BYTES = 2**30
LIMIT = "limit"
"""Name of the file in a cache's root that stores a requested limit in bytes."""


def _limit_of(root: Path) -> int | None:
    try:
        return int((root / LIMIT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Allocates an array of bytes that TensorFlow uses without a copy.

    TensorFlow copies arrays that do not begin at a multiple of 64 bytes.
    """
    size = int(np.prod(shape))
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    result: np.ndarray = memory[start : start + size].reshape(shape)
    return result


def listings_of(cache: str | None) -> Path | None:
    """Returns the folder of kept listings for `--cache`; None if it is off."""
    if cache == "off":
        return None
    return (locations.cache_root() if cache in {None, "auto"} else Path(str(cache))) / "listings"


class Cache:
    """Reads the decoded images of one `DecodeSpec`.

    Args:
        folder: the folder of its shards.
        spec: how the images were decoded.
        limit_bytes: total size that all specs of this root may use, None for any. The least recently used shards are
            removed first.
    """

    def __init__(self, folder: Path, spec: DecodeSpec, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.spec = spec
        self.limit_bytes = limit_bytes
        self.row_shape = (spec.height, spec.width, 3)
        self.row_bytes = spec.height * spec.width * 3
        self._maps: list[np.ndarray] = []
        self._names: set[str] = set()
        self._sha256s = np.zeros(0, "S64")
        self._crcs = np.zeros(0, np.uint32)
        self._shards = np.zeros(0, np.int32)
        self._rows = np.zeros(0, np.int64)
        self._verified = np.zeros(0, bool)
        self._order = np.zeros(0, np.int64)
        self._paths: list[Path] = []
        self._used: set[Path] = set()

    @classmethod
    def open(
        cls,
        spec: DecodeSpec,
        root: Path | None = None,
        limit_bytes: int | None = None,
        *,
        otherwise: int | None = None,
        writes: bool = True,
    ) -> Cache:
        """Opens the cache of a spec and creates its folder if needed.

        Args:
            spec: how its images are decoded.
            root: the folder that holds the folders of all specs; None for `locations.cache_root()`.
            limit_bytes: see the class. None uses the limit that was given last.
            otherwise: the limit if none was ever given.
            writes: False creates no folder, for commands that only inspect.

        Returns:
            The cache with all finished shards.

        Raises:
            ImagesError: if the folder cannot be created.
        """
        root = root or locations.cache_root()
        kept = _limit_of(root)
        known = otherwise if kept is None else kept
        cache = cls(root / spec.key, spec, known if limit_bytes is None else limit_bytes)
        if not writes:
            cache.refresh()
            return cache
        try:
            atomic.make_directory(cache.folder)
            atomic.remove_abandoned(cache.folder)
            if limit_bytes is not None and limit_bytes != kept:
                # `kresume eval` must not trim the cache to another size than the training run that fills it.
                atomic.write_text(root / LIMIT, f"{limit_bytes}\n")
        except OSError as error:
            raise ImagesError(
                f"the cache {cache.folder} cannot be used ({refusals.reason(error)}): {refusals.way_on(error)} "
                f"{option('cache', 'DIR')}, or {option('cache', 'off')}"
            ) from error
        cache.refresh()
        return cache

    def __len__(self) -> int:
        return len(self._sha256s)

    def refresh(self) -> None:
        """Adds the shards that were finished since the last call."""
        for index_path in sorted(self.folder.glob("shard-*.npy")):
            if index_path.name in self._names:
                continue
            self._names.add(index_path.name)
            data_path = index_path.with_suffix(".bin")
            try:
                index = np.load(index_path, allow_pickle=False)
                complete = index.dtype == INDEX_TYPE and data_path.stat().st_size == len(index) * self.row_bytes
                if not complete or not len(index):
                    continue  # incomplete after a machine crash: its images are decoded again
                mapped = np.memmap(data_path, np.uint8, "r", shape=(len(index), *self.row_shape))
            except Exception as error:
                if not is_refusal(error):
                    raise
                continue  # incomplete or damaged, or removed by another process after listing
            self._paths.append(data_path)
            self._maps.append(mapped.view(np.ndarray))  # the memmap subclass costs microseconds per row
            self._sha256s = np.concatenate([self._sha256s, index["sha256"]])
            self._crcs = np.concatenate([self._crcs, index["crc"]])
            shard = np.full(len(index), len(self._maps) - 1, np.int32)
            self._shards = np.concatenate([self._shards, shard])
            self._rows = np.concatenate([self._rows, np.arange(len(index))])
            self._verified = np.concatenate([self._verified, np.zeros(len(index), bool)])
        self._order = np.argsort(self._sha256s, kind="stable")

    def find(self, sha256s: Sequence[str] | np.ndarray) -> np.ndarray:
        """Returns the row of each image, `(n,) int64`; -1 if it is not cached."""
        wanted = np.asarray(sha256s).astype("S64")
        if not len(self):
            return np.full(len(wanted), -1, np.int64)
        rank = np.searchsorted(self._sha256s, wanted, sorter=self._order)
        found = self._order[np.minimum(rank, len(self) - 1)]
        found = np.where(self._sha256s[found] == wanted, found, -1)
        self._mark_used({self._paths[shard] for shard in np.unique(self._shards[found[found >= 0]])})
        return found

    def _mark_used(self, paths: set[Path]) -> None:
        """Updates the times of shards, by which `trim` finds the least recently used."""
        for path in paths - self._used:
            with contextlib.suppress(OSError):  # removed by another process (mapped pages stay), or not writable
                os.utime(path)
        self._used |= paths

    def read(self, found: np.ndarray) -> np.ndarray:
        """Reads images by the rows that `find` returned.

        Returns:
            `(n, height, width, 3) uint8`.

        Raises:
            ImagesError: if a row does not match its checksum.
        """
        pictures, damaged = self.attempt(found)
        if len(damaged):
            raise ImagesError(
                f"the cache {self.folder} is damaged (row {int(found[damaged[0]])}): remove this folder, "
                "kresume creates it again"
            )
        return pictures

    def attempt(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads images by the rows that `find` returned, and reports damaged rows.

        Returns:
            `(images (n, height, width, 3) uint8, indices into found of rows that do not match their checksum)`. The
            pixels of damaged rows are invalid.
        """
        result = aligned((len(found), *self.row_shape))
        for index, (shard, row) in enumerate(
            zip(self._shards[found].tolist(), self._rows[found].tolist(), strict=True)
        ):
            result[index] = self._maps[shard][row]  # one copy; fancy indexing would make two
        unverified = np.nonzero(~self._verified[found])[0]
        damaged = np.array(
            [index for index in unverified if checksum(result[index]) != self._crcs[found[index]]], np.int64
        )
        self._verified[np.delete(found, damaged)] = True
        return result, damaged

    def writer(self, on_refusal: Callable[[OSError], None] | None = None) -> Writer:
        """Returns a writer of new shards, for one thread at a time; see `Writer`."""
        return Writer(self, on_refusal)

    def room_for(self, count: int) -> bool:
        """Returns True if the disk can hold `count` more images with 1 GiB spare."""
        return shutil.disk_usage(self.folder).free > count * self.row_bytes + SPARE_BYTES

    def holds(self, count: int) -> bool:
        """Returns True if `count` images fit within the limit at once."""
        return self.limit_bytes is None or count * self.row_bytes <= self.limit_bytes

    def trim(self) -> None:
        """Removes the least recently used shards until the root is within its limit.

        Shards that this object used are kept.
        """
        limit = self.limit_bytes
        if limit is None:
            return
        shards = []
        for path in self.folder.parent.glob("*/shard-*.bin"):
            with contextlib.suppress(FileNotFoundError):  # another process may trim at the same time
                shards.append((path.stat(), path))
        total = sum(facts.st_size for facts, _ in shards)
        for facts, path in sorted(shards, key=lambda shard: shard[0].st_mtime):
            index = path.with_suffix(".npy")
            if total <= limit or path in self._used:
                continue
            index.unlink(missing_ok=True)  # first, so that no reader finds an index without its rows
            path.unlink(missing_ok=True)  # processes that have mapped it keep its pages
            total -= facts.st_size

    def forget(self, sha256s: Collection[str]) -> set[str]:
        """Removes images permanently and rewrites the shards that hold them.

        Args:
            sha256s: SHA-256s of the encoded images.

        Returns:
            The hashes that were in this cache.
        """
        if not sha256s:
            return set()
        # Two processes may have decoded the same image at once: remove every row of it.
        gone = np.nonzero(np.isin(self._sha256s, np.array(sorted(sha256s), "S64")))[0]
        for shard in np.unique(self._shards[gone]):
            rows = np.nonzero(self._shards == shard)[0]
            with Writer(self) as writer:
                for row in rows[~np.isin(rows, gone)]:
                    pixels = self._maps[shard][self._rows[row]]
                    writer.add(self._sha256s[row].decode(), pixels, checksum(pixels))
            path = self._paths[shard]
            path.with_suffix(".npy").unlink(missing_ok=True)  # first, so that no reader finds an index without its rows
            path.unlink(missing_ok=True)
        if len(gone):
            atomic.flush_directory(self.folder)  # after a power cut they must not come back
        forgotten = {sha256.decode() for sha256 in self._sha256s[gone].tolist()}
        fresh = Cache(self.folder, self.spec, self.limit_bytes)
        fresh.refresh()
        self.__dict__.update(fresh.__dict__)
        return forgotten


class Writer:
    """Adds images to a cache, one shard at a time, as a context manager.

    Leaving the context finishes the last shard. A thread writes a shard to the disk while the images of the next one
    are decoded, so at most two shards are in memory.

    Args:
        cache: the cache to add to.
        on_refusal: called once if the disk refuses a shard; what is added afterwards is dropped. None raises the error.
    """

    def __init__(self, cache: Cache, on_refusal: Callable[[OSError], None] | None = None) -> None:
        self._cache = cache
        self._on_refusal = on_refusal
        self._refused = False
        self._pixels: list[np.ndarray] = []
        self._index: list[tuple[bytes, int]] = []
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kresume-cache")
        self._under_way: Future[None] | None = None

    def add(self, sha256: str, pixels: np.ndarray, crc: int) -> None:
        """Adds one image.

        Args:
            sha256: SHA-256 of its encoded bytes.
            pixels: `(height, width, 3) uint8`, contiguous.
            crc: `checksum(pixels)`.

        Raises:
            OSError: if a shard could not be written.
        """
        if self._refused:
            return
        self._pixels.append(pixels)
        self._index.append((sha256.encode(), crc))
        if len(self._pixels) * self._cache.row_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the added images as one shard, in a thread.

        Raises:
            OSError: if the previous shard could not be written.
        """
        self._wait()
        if self._pixels and not self._refused:
            self._under_way = self._disk.submit(self._write, self._pixels, self._index)
            self._pixels, self._index = [], []

    def _wait(self) -> None:
        before, self._under_way = self._under_way, None
        if before is not None:
            try:
                before.result()
            except OSError as error:
                if self._on_refusal is None or not refusals.number_of(error):
                    raise
                if not self._refused:
                    self._refused = True
                    self._on_refusal(error)

    def _write(self, pictures: list[np.ndarray], index: list[tuple[bytes, int]]) -> None:
        name = f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        with atomic.new_file(self._cache.folder / f"{name}.bin") as temporary, temporary.open("wb") as file:
            for pixels in pictures:
                file.write(pixels.data)
        self._cache._used.add(self._cache.folder / f"{name}.bin")
        with atomic.new_file(self._cache.folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, np.array(index, INDEX_TYPE))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._disk:
            self.flush()  # after an error too, so that decoded images are not decoded again
            self._wait()
        self._cache.refresh()
        self._cache.trim()


def checksum(pixels: np.ndarray) -> int:
    """Returns the CRC-32 by which the first read of a row verifies it."""
    return zlib.crc32(pixels.data)
