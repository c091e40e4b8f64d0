"""Selects and reads the images of each batch of `kresume.image_dataset`.

A stream has one list of images, or several if images were added while training was interrupted. An interrupted epoch
ends with the list that it began with; the next epoch uses the new list.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kresume.drop_in.stream import Stream
from kresume.errors import UsageError
from kresume.images.cache import Cache
from kresume.images.manifest import Manifest
from kresume.images.order import Order
from kresume.images.reader import PictureReader
from kresume.spelling import counted
from kresume.values.decode_spec import DecodeSpec, spec_of_key


class ImageStream(Stream):
    """A stream over lists of images; each applies from an epoch on.

    Args:
        manifest: the current images; the stream reads its training split.
        spec: how they are decoded.
        cache: decoded pictures, None to decode each time.
        batch_size: images per batch.
        seed: seed of the order.
        shuffle: False reads the images class by class, sorted by path, each epoch from the first; its last batch may be
            smaller.
    """

    def __init__(
        self, manifest: Manifest, spec: DecodeSpec, cache: Cache | None, batch_size: int, seed: int, shuffle: bool
    ) -> None:
        super().__init__(-(-len(manifest.train_rows()) // batch_size))
        self.manifest = manifest
        self.spec = spec
        self.cache = cache
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._lists: list[tuple[int, Manifest]] = [(0, manifest)]
        self._readers: dict[str, PictureReader] = {}
        self._rows: dict[str, np.ndarray] = {}

    def _list_of(self, epoch: int) -> int:
        return max(index for index, (first, _) in enumerate(self._lists) if first <= epoch)

    def _length(self, index: int) -> int:
        return -(-len(self._lists[index][1].train_rows()) // self.batch_size)

    def steps(self, epoch: int) -> int:
        """Returns the number of batches of an epoch; it depends on the epoch's list."""
        return self._length(self._list_of(epoch))

    def longest(self) -> int:
        """Returns the most batches of any epoch from now on."""
        return max(self._length(index) for index in range(self._list_of(self.epoch), len(self._lists)))

    def same_list(self, epoch: int, other: int) -> bool:
        """Returns True if two epochs are read of one list, which is known."""
        return min(epoch, other) >= self._lists[0][0] and self._list_of(epoch) == self._list_of(other)

    def step(self, epoch: int, batch: int) -> int:
        """Returns the number of batches of this epoch's list before this one."""
        return (epoch - self._lists[self._list_of(epoch)][0]) * self.steps(epoch) + batch

    def batches(self) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Yields one epoch's batches as (mark, (list index, step in the list))."""

        def batches_from(epoch: int, batch: int) -> Iterator[np.ndarray]:
            index, step = self._list_of(epoch), self.step(epoch, batch)
            while True:
                yield np.array([index, step], np.int64)
                step += 1

        return self.read(batches_from)

    def load(self, index: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads a batch.

        Returns:
            The pictures `(batch, height, width, 3) uint8` and labels `(batch,) int32`.
        """
        manifest = self._lists[index][1]
        digest = manifest.digest()
        if digest not in self._readers:
            self._rows[digest] = (
                manifest.train_rows() if self.shuffle else in_order_of_paths(manifest, manifest.train_rows())
            )
            self._readers[digest] = PictureReader(manifest, self.spec, self.cache)
        rows = self._rows[digest]
        if self.shuffle:
            indices = Order(self.seed, len(rows), self.batch_size).batch(step)
        else:
            start = step % self._length(index) * self.batch_size
            indices = np.arange(start, min(start + self.batch_size, len(rows)))
        return self._readers[digest](rows[indices]), manifest.labels[rows[indices]].astype(np.int32)

    def identity(self) -> dict[str, Any]:
        """Returns the digests of the lists and everything that determines their order."""
        return {
            "lists": [[first, manifest.digest()] for first, manifest in self._lists],
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "spec": self.spec.key,
        } | ({} if self.shuffle else {"order": self._order_of_paths()})

    def _order_of_paths(self) -> str:
        rows = in_order_of_paths(self.manifest, self.manifest.train_rows())
        return hashlib.sha256(self.manifest.sha256s[rows].tobytes()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes each list once, to finish an interrupted epoch with its own list."""
        for _, manifest in self._lists:
            path = _list_path(folder, manifest.digest())
            if not path.exists():
                manifest.write(path)

    def adopt(self, folder: Path, identity: Mapping[str, Any], epoch: int, batch: int, on_new_data: str) -> str:
        """Restores the lists of an interrupted training.

        An interrupted epoch ends with its own list; changed images are used from the next epoch on.
        """
        now = self.identity()
        for name in ("batch_size", "seed", "shuffle", "spec"):
            before, asked = identity.get(name), now[name]
            # Versions of the decoding differ in files that most people do not have, and nobody can give an older one.
            if (spec_of_key(str(before)) != self.spec) if name == "spec" else before != asked:
                raise UsageError(
                    f"the interrupted training had {name}={before}, this one has {asked}: give the same, or "
                    "another backup folder to start again"
                )
        saved = [(int(first), str(digest)) for first, digest in identity["lists"]]
        current = max(index for index, (first, _) in enumerate(saved) if first <= epoch)
        lists = [
            (first, self.manifest if digest == self.manifest.digest() else Manifest.read(_list_path(folder, digest)))
            for first, digest in saved[current:]
        ]
        if lists[-1][1].digest() == self.manifest.digest():
            if identity.get("order") != now.get("order"):
                raise UsageError(
                    "the files were renamed since the training was interrupted, and shuffle=False reads them in the order of "
                    "their paths: restore the names, or give another backup folder to start again"
                )
            self._lists = lists
            return ""
        before, after = len(lists[-1][1]), len(self.manifest)
        had, has = lists[-1][1].classes, self.manifest.classes
        if has[: len(had)] != had:
            raise UsageError(
                f"the classes were {', '.join(had)} when the training was interrupted and are {', '.join(has)} now, so the "
                f"numbers of the labels would mean other classes: give class_names="
                f"{[*had, *(name for name in has if name not in had)]}, or another backup folder to start again"
            )
        if on_new_data == "error":
            raise UsageError(
                f"the images changed since the training was interrupted ({before:,} then, {after:,} now): restore them, or "
                "give on_new_data='next-epoch' to finish the epoch with the old ones and begin the next one with the new ones"
            )
        begins = epoch if batch == 0 else epoch + 1
        self._lists = [*(item for item in lists if item[0] < begins), (begins, self.manifest)]
        if self._lists[0][0] > epoch:  # no batch of the old list is left
            self._lists[0] = (epoch, self._lists[0][1])
        return f"{counted(before, 'image')} before, {after:,} now: the new list is used from epoch {begins + 1} on"


def _list_path(folder: Path, digest: str) -> Path:
    return folder / f"images-{digest[:16]}.parquet"


def in_order_of_paths(manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """Sorts rows as `image_dataset_from_directory(shuffle=False)`: by class, folder, then file name."""
    paths = manifest.paths(rows)
    members = manifest.table.column("member").take(rows).to_pylist()
    keys = [
        (int(manifest.labels[row]), *os.path.split(path), member)
        for row, path, member in zip(rows, paths, members, strict=True)
    ]
    return rows[np.array(sorted(range(len(rows)), key=keys.__getitem__), np.int64)]
