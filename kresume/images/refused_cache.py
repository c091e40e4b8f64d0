"""Goes on where a full disk refuses the cache, which only saves time, and says so once.

trouble = Trouble(reporter)
index = trouble.open(root, spec, writes=True)        # None on a full disk
cache.writer(partial(trouble.refused, wanted))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kresume.errors import ImagesError
from kresume.images.file_index import FileIndex, IndexRefused, open_index
from kresume.images.sources.found import STREAM_CODINGS, Facts, Found
from kresume.reporter import Reporter
from kresume.spelling import option
from kresume.storage import refusals
from kresume.values.decode_spec import DecodeSpec


class Trouble:
    """Goes on where the disk refuses what only saves time, with a warning."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._lost: IndexRefused | None = None

    def open(self, root: Path, spec: DecodeSpec, writes: bool) -> FileIndex | None:
        """Opens the index of a cache's root; None if the disk refuses it."""
        try:
            return open_index(root, spec, writes)
        except IndexRefused as error:
            self._lost = error
            return None

    def write(self, index: FileIndex | None, rows: Iterable[tuple[Found, Facts]]) -> None:
        """Adds facts to the index if the disk has space for them, and warns if it has not."""
        try:
            if index is not None:
                index.write(rows)
        except IndexRefused as error:
            self._lost = error
        if self._lost is not None:
            self._reporter.warn(f"{self._lost}; without it the next command reads the images again")

    def refused(self, wanted: Sequence[Found], error: OSError) -> None:
        """Goes on after the disk refused decoded images, unless they cannot be decoded again."""
        why = f"{refusals.reason(error)}; {refusals.way_on(error)} {option('cache', 'DIR')}"
        self.not_kept(f"the cache {Path(error.filename or '').parent} cannot be written ({why})", wanted)

    def not_kept(self, why: str, wanted: Sequence[Found]) -> None:
        """Warns that images are not cached.

        Raises:
            ImagesError: one is in a file that is compressed as a whole.
        """
        also = "; the next command reads them again, because the index beside it has no space either"
        self._reporter.warn(
            f"{why}: the images are decoded each time they are used, which is slower{also * (self._lost is not None)}"
        )
        self._lost = None
        packed = next((found.path for found in wanted if found.coding in STREAM_CODINGS), None)
        if packed is not None:
            raise ImagesError(
                f"{packed} is compressed as a whole, so its images must be cached, but {why}; or decompress the file"
            )
