"""Captures the files of a folder that a training writes, so that they fit together.

    held = capture(folder, hold)            # {"run.json": Held(...), "snapshots/step-00000010/meta.json": Held(...)}

`run.json` is read before all other files: it never speaks of what was not there yet. Snapshots are linked into a folder
of their own, so a training that removes them meanwhile does not tear them. Small files are read at once, because they
may grow. If `run.json` changes meanwhile, all is captured again: files are removed only after such a change.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kresume.storage import atomic

META = "meta.json"
"""Name of the file of a snapshot without which it is none."""
FIRST_READ = ("run.json", "fit.json", "training_metadata.json")
"""Files that speak of others: read first, written last."""
STAYS = re.compile(r"(lock(-\d+)?\.json|mirror\.json|native-trace\.txt|.*\.lock)")
"""Files that are about this machine."""
SNAPSHOT = re.compile(r"(?:(.*)/)?((?:replaced-)?step-\d+(?:-unscored)?)/([^/]+)")
REPLACED = "replaced-"
"""Prefix of an old snapshot's name while a new snapshot of the same step replaces it."""
IN_MEMORY = 32 * 2**20
"""Files up to this size are read at once: they may grow while they are sent."""


@dataclass(frozen=True)
class Held:
    """A file as it was when it was captured.

    Attributes:
        data: its bytes; None for a large file.
        path: where it is, for a large file.
        signature: tells a changed file from one that was sent.
    """

    data: bytes | None
    path: Path
    signature: tuple[int, ...]

    def digest(self) -> dict[str, Any]:
        """Returns its size and SHA-256."""
        if self.data is not None:
            return {"bytes": len(self.data), "sha256": sha256(self.data).hexdigest()}
        return {"bytes": self.path.stat().st_size, "sha256": atomic.sha256_of_file(self.path)}


def signature(path: Path) -> tuple[int, ...]:
    """Returns what changes when a file is written or replaced."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the files of a folder that are copied, by name."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith((atomic.TEMPORARY_PREFIX, "aside-", "__pycache__"))
        )
        for name in sorted(files):
            if not name.startswith(atomic.TEMPORARY_PREFIX) and not STAYS.fullmatch(name):
                path = Path(place, name)
                yield path.relative_to(folder).as_posix(), path


def capture(folder: Path, hold: Path) -> dict[str, Held]:
    """Returns the files of a folder as they are at one moment, as far as they speak of each other.

    Args:
        folder: a training may write to it.
        hold: a folder on the same disk, for links to snapshots and large files; the caller removes it.
    """
    while True:
        shutil.rmtree(hold, ignore_errors=True)
        first = {name: _held(hold, name, folder / name) for name in FIRST_READ if (folder / name).is_file()}
        found = dict(files_of(folder))
        snapshots = [name for name in found if (match := SNAPSHOT.fullmatch(name)) and match[3] == META]
        held: dict[str, Held] = {}
        try:
            for name in snapshots:
                held |= _held_snapshot(hold, folder, name.rpartition("/")[0])
            for name, path in found.items():
                if name not in first and not SNAPSHOT.fullmatch(name):
                    with contextlib.suppress(FileNotFoundError):
                        held[name] = _held(hold, name, path)
            again = {name: signature(folder / name) for name in first}
        except FileNotFoundError:  # pruned meanwhile
            continue
        if again == {name: each.signature for name, each in first.items()}:
            return {**first, **held}


def _held(hold: Path, name: str, path: Path) -> Held:
    before = signature(path)
    if before[0] <= IN_MEMORY:
        return Held(path.read_bytes(), path, before)
    return Held(None, _linked(hold, name, path), before)


def _held_snapshot(hold: Path, place: Path, folder: str) -> dict[str, Held]:
    """Links the files of a snapshot, which are never written again."""
    return {
        f"{folder}/{path.name}": Held(None, _linked(hold, f"{folder}/{path.name}", path), signature(path))
        for path in sorted((place / folder).iterdir())
        if path.is_file()
    }


def _linked(hold: Path, name: str, path: Path) -> Path:
    link = hold / name
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, link)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(path, link)
    return link
