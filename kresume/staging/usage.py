"""Says how much disk the stages take, and which hold something that is nowhere else.

found = usage()
found.bytes, found.unwritten            # 12884901888, ("gs://bucket/runs/7-signs",)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kresume.addresses import root, stage_of
from kresume.storage import atomic


@dataclass(frozen=True)
class Usage:
    """Describes what the stages take.

    Attributes:
        folder: the folder of all stages.
        bytes: the size of their files.
        unwritten: addresses of stages that were not copied whole, or in which something trains now.
    """

    folder: Path
    bytes: int
    unwritten: tuple[str, ...]


def usage() -> Usage:
    """Measures all stages; without any, they take nothing."""
    folder = root()
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return Usage(folder, size, tuple(sorted(_unwritten(folder / ".notes"))))


def _unwritten(notes: Path) -> list[str]:
    found = []
    for path in sorted(notes.glob("*.json")):
        try:
            note = atomic.read_json(path)
            address, whole = str(note["address"]), note.get("whole") is True
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not whole and stage_of(address).is_dir():
            found.append(address)
    return found
