"""Gives scripts the paths that they read of Keras's `BackupAndRestore`."""

from __future__ import annotations

from pathlib import Path

from kresume.checkpoints import snapshot
from kresume.checkpoints.backup_folder import BEFORE, METADATA, WEIGHTS
from kresume.drop_in import backup_files


class PathsOfKeras:
    """Holds paths of kresume's backup, or of Keras's if there is no other."""

    _folder: Path

    @property
    def _weights_path(self) -> str:
        return backup_files.newest(self._folder, snapshot.ARRAYS, otherwise=WEIGHTS)

    @property
    def _training_metadata_path(self) -> str:
        return str(self._folder / METADATA)

    @property
    def _prev_weights_path(self) -> str:
        return backup_files.newest(self._folder, snapshot.ARRAYS, before=1, otherwise=f"{WEIGHTS}{BEFORE}")

    @property
    def _prev_training_metadata_path(self) -> str:
        return backup_files.newest(self._folder, snapshot.META, before=1, otherwise=f"{METADATA}{BEFORE}")
