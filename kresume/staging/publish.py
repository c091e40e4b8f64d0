"""Copies what a command wrote to an address: an export, or a file of a run that was fetched.

    publication = Publication("gs://bucket/serving/signs")
    ...                                      # an export is made in publication.folder, as in any folder
    publication.send(reporter)

The folder has an empty file in place of each that is at the address, so an export finds the versions that are taken. What
tells a server that a version is whole, `saved_model.pb` and `export.json`, is copied last.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kresume.addresses import address_of, as_address, is_remote, is_stage, normal, stage_of
from kresume.reporter import Reporter
from kresume.runs import RECORD
from kresume.staging.fetch import told
from kresume.storage.stores import free_address, store_of

LAST = ("saved_model.pb", "export.json")


class Publication:
    """Is the folder of an export.

    Args:
        directory: a local folder, which is used as it is, or an address.

    Attributes:
        folder: where the export is made.

    Raises:
        RunError: the address cannot be read.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        directory = as_address(directory)
        self.folder = Path(directory)
        self._address = ""
        self._placeholders: dict[str, int] = {}
        if not is_remote(directory):
            return
        self._address = normal(directory)
        self.folder = stage_of(self._address)
        self._store = store_of(self._address)
        names = told(self._store.names, self._address, "read")
        if RECORD in names and (self.folder / RECORD).is_file():
            return  # a run, where exports are refused
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._placeholders[name] = path.stat().st_ino
        self._folder = self.folder.stat().st_ino if self.folder.exists() else 0

    def send(self, reporter: Reporter) -> None:
        """Copies what was made to the address, and removes there what was removed.

        Raises:
            RunError: the address cannot be written; `send` may be called again.
        """
        if not self._address:
            return
        with reporter.waiting(f"copying the export to {self._address}"):
            told(self._send, self._address, "written")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _send(self) -> None:
        names = {
            path.relative_to(self.folder).as_posix(): path for path in sorted(self.folder.rglob("*")) if path.is_file()
        }
        made = {name: path for name, path in names.items() if self._placeholders.get(name) != path.stat().st_ino}
        if self._folder and self.folder.stat().st_ino != self._folder:  # --overwrite moved the old one aside
            self._store.move(free_address(self._address))
        else:
            for name in self._placeholders.keys() - names.keys():
                self._store.remove(name)
        for name in sorted(made, key=lambda name: (_rank(name), name)):
            self._store.send(name, made[name])


def _rank(name: str) -> int:
    last = name.rpartition("/")[2]
    return LAST.index(last) if last in LAST else -1


def push(path: Path) -> None:
    """Copies a file of a fetched run to its address; does nothing for a run on a disk.

    Raises:
        OSError: the address cannot be written.
    """
    if is_stage(path):
        store_of(address_of(path.parent)).send(path.name, path)
