"""Says where backups are: in a folder, or at an address whose stage is copied behind.

    place = Place("gs://bucket/backup", reporter)
    place.folder                                  # the local folder, with what is at the address
    place.open()                                  # `fit` begins: locked, and copied from now on
    place.close()                                 # `fit` returned: everything is copied

A `fit` that raised keeps its place: the next `fit` of this process goes on with it, and the end of the process copies the
rest.
"""

from __future__ import annotations

import atexit
from pathlib import Path

from kresume.addresses import normal
from kresume.reporter import Reporter
from kresume.staging.stage import SHORT_PATIENCE_SECONDS, Stage, is_staged

_open: dict[str, Stage] = {}
"""The stages that this process has open, by address."""


class Place:
    """Is the place of backups.

    Args:
        backup_dir: as the user gave it.
        reporter: told of trouble.

    Attributes:
        folder: the local folder.
    """

    def __init__(self, backup_dir: str | Path, reporter: Reporter) -> None:
        self._reporter = reporter
        self._address = normal(backup_dir) if is_staged(str(backup_dir)) else ""
        if not self._address:
            self.folder = Path(backup_dir)
            return
        stage = _open.get(self._address) or Stage(self._address, reporter)
        self.folder = stage.folder
        if self._address not in _open:
            stage.look()

    def open(self) -> None:
        """Locks the address and starts copying behind.

        Raises:
            RunError: another process holds it, or it cannot be read or written.
        """
        if not self._address or self._address in _open:
            return
        stage = Stage(self._address, self._reporter)
        stage.open(way_on="removing its lock", again=True, run=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        stage.begin()
        _open[self._address] = stage
        atexit.register(_end, self._address, SHORT_PATIENCE_SECONDS)

    def close(self) -> None:
        """Waits until everything is copied, and releases the lock."""
        if self._address:
            _end(self._address)


def _end(address: str, seconds: float | None = None) -> None:
    stage = _open.pop(address, None)
    if stage is not None:
        stage.end(seconds)
