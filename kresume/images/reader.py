"""Pictures by row of the manifest: from the cache where it holds them, from their files where not.

reader = PictureReader(manifest, spec, cache)
reader(rows)        # (n, height, width, 3) uint8
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kresume.errors import ImagesError
from kresume.images.cache import Cache
from kresume.images.decode import DecodeSpec, decode
from kresume.images.manifest import Manifest


class PictureReader:
    """Reads decoded pictures of a manifest; the same bytes whether they come from the cache or from the files.

    Args:
        manifest: the images.
        spec: how they are decoded.
        cache: None decodes each picture each time it is drawn.
    """

    def __init__(self, manifest: Manifest, spec: DecodeSpec, cache: Cache | None) -> None:
        self.manifest = manifest
        self.spec = spec
        self.cache = cache
        self._cached = cache.find(manifest.sha256s) if cache is not None else np.full(len(manifest), -1, np.int64)
        self._pool = ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1, thread_name_prefix="kresume-read")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Reads these rows, `(n, height, width, 3) uint8`.

        Raises:
            ImagesError: a file is gone, has changed since it was recorded, or the cache is damaged.
        """
        found = self._cached[rows]
        if self.cache is not None and (found >= 0).all():
            return self.cache.read(found)
        result = np.empty((len(rows), self.spec.height, self.spec.width, 3), np.uint8)
        present = np.nonzero(found >= 0)[0]
        if self.cache is not None and len(present):
            result[present] = self.cache.read(found[present])
        absent = np.nonzero(found < 0)[0]
        paths = self.manifest.paths(rows[absent])
        hashes = self.manifest.sha256s[rows[absent]]
        for place, picture in zip(absent, self._pool.map(self._decode, paths, hashes), strict=True):
            result[place] = picture
        return result

    def _decode(self, path: str, sha256: bytes) -> np.ndarray:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ImagesError(f"{path} cannot be read any more ({error.strerror}): restore it and run again") from error
        if hashlib.sha256(data).hexdigest().encode() != sha256:
            raise ImagesError(f"{path} has changed since it was recorded: restore it and run again, or begin a new run")
        try:
            return decode(data, self.spec).pixels
        except ImagesError as error:
            raise ImagesError(f"{path}: {error}") from error
