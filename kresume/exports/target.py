"""Decides where an export goes, and makes it appear there whole or not at all.

    target = Target(Path("serving/flowers"), version=None, prune_keep=3)
    destination = target.find(exporter)                  # serving/flowers/4
    with placed(destination) as temporary: ...           # renamed to the destination at the end

A model server that watches the folder never sees half of a version.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kresume import runs
from kresume.errors import ExportError, UsageError
from kresume.exports.formats import Exporter
from kresume.spelling import option
from kresume.storage import atomic, refusals
from kresume.storage.model_folders import versions_in


@dataclass(frozen=True)
class Target:
    """Where the user wants an export.

    Attributes:
        directory: the model's folder for a format with versions, else the folder to create.
        version: the version's number; None for the next free one.
        prune_keep: how many of the newest versions to keep; None for all.
        overwrite: move the content of `directory` aside, for a format without versions.
    """

    directory: Path
    version: int | None = None
    prune_keep: int | None = None
    overwrite: bool = False

    def find(self, exporter: Exporter, name: str) -> Path:
        """Returns the folder to create.

        Args:
            exporter: the format.
            name: the format's name, for messages.

        Raises:
            UsageError: the folder exists already, lies inside a run or a SavedModel, or an option does not fit the
                format.
        """
        self._check_options(exporter, name)
        directory = self.directory
        inside = next((folder for folder in directory.absolute().parents if runs.is_run(folder)), None)
        if inside is not None or runs.is_run(directory) or (directory / "saved_model.pb").is_file():
            what = f"inside the run {inside}" if inside else "a run" if runs.is_run(directory) else "a SavedModel"
            raise UsageError(f"{directory} is {what}: give a separate folder for exports, for example serving/flowers")
        return self._next_version() if exporter.versioned else self._free_folder()

    def _check_options(self, exporter: Exporter, name: str) -> None:
        if not exporter.versioned and (self.version is not None or self.prune_keep is not None):
            raise UsageError(
                f"{option('version')} and {option('prune-keep')} apply to saved-model only: {option('format', name)} creates "
                "one folder"
            )
        if exporter.versioned and self.overwrite:
            raise UsageError(
                f"{option('overwrite', True)} does not apply to saved-model: a version is never overwritten; leave it out to "
                "create the next one"
            )
        if any(number is not None and number < 1 for number in (self.version, self.prune_keep)):
            raise UsageError(f"{option('version')} and {option('prune-keep')}: give at least 1")

    def _free_folder(self) -> Path:
        directory = self.directory
        empty = directory.is_dir() and not any(directory.iterdir())
        if directory.exists() and not empty and not self.overwrite:
            raise UsageError(
                f"{directory} exists already: give another folder, or {option('overwrite', True)} to move it aside"
            )
        if empty:
            directory.rmdir()
        return directory

    def _next_version(self) -> Path:
        directory, version = self.directory, self.version
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"{directory} is a file: give the folder that holds the model's versions")
        taken = versions_in(directory)
        if version is not None and version in taken:
            raise UsageError(
                f"{directory} has a version {version} already (versions {', '.join(map(str, taken))}); a server may be "
                f"using it: leave {option('version')} out for the next free one"
            )
        return directory / str(version if version is not None else max(taken, default=0) + 1)


@contextlib.contextmanager
def placed(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a folder that becomes the destination if the block succeeds.

    With `overwrite`, the content of the destination is moved aside first, and back again if the block fails.

    Raises:
        ExportError: the disk refuses, or another export made the destination meanwhile.
    """
    aside = runs.move_aside(destination) if overwrite and destination.exists() else None
    try:
        atomic.remove_abandoned(destination.parent)
        with atomic.new_directory(destination) as temporary:
            yield temporary
    except BaseException as error:
        if aside is not None and not destination.exists():
            aside.rename(destination)
        if not isinstance(error, OSError):
            raise
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            raise ExportError(
                f"another export created {destination} meanwhile: run again for the next version"
            ) from error
        raise ExportError(
            f"{destination} cannot be written ({refusals.reason(error)}); nothing was left there: "
            f"{refusals.way_on(error)} another folder"
        ) from error


def prune(directory: Path, keep: int, newest: Path) -> list[int]:
    """Removes all but the `keep` versions with the highest numbers, and never the newest export.

    A version is renamed to a name that no server reads before its files are deleted.

    Returns:
        The numbers of the removed versions.
    """
    removed = {number: folder for number, folder in list(versions_in(directory).items())[:-keep] if folder != newest}
    atomic.remove_directories(removed.values())
    return list(removed)
