"""Detects a file's format from its content, because file endings are unreliable.

    kind_of(Path("model.keras"))      # "hdf5": an HDF5 file under a wrong ending

Only the first bytes and the member list of a zip archive are read. A truncated file is recognised by its first bytes.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Literal

Kind = Literal["hdf5", "keras-archive", "torch-archive", "torch-pickle", "safetensors", "shards"]

HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of every file of `torch.save` before the zip format (PyTorch 1.6): a pickled magic number."""
KERAS_MEMBERS = frozenset({"config.json", "metadata.json", "model.weights.h5"})
TORCH_MEMBER = "data.pkl"
SHARDS = '"weight_map"'
SIGNATURE, BEGINNING = 64, 2**16
"""Bytes read from every file, and additional bytes read if the file may hold JSON or is a zip archive."""


def kind_of(file: Path) -> Kind | None:
    """Detects a file's kind by its content; None if unknown or missing."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        beginning = stream.read(SIGNATURE)
        if b"{" in beginning or beginning.startswith(ZIP):
            beginning += stream.read(BEGINNING)
    if beginning.startswith(HDF5):
        return "hdf5"
    if beginning.startswith(TORCH):
        return "torch-pickle"
    if beginning.startswith(ZIP):
        return _of_members(_members(file, beginning))
    if _is_safetensors(beginning, file.stat().st_size):
        return "safetensors"
    if beginning.lstrip()[:1] == b"{" and SHARDS.encode() in beginning:
        return "shards"
    return None


def _members(file: Path, beginning: bytes) -> list[str]:
    """Returns the member names of a zip archive.

    For a truncated archive without its central directory, returns the name of the first member only.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        size = int.from_bytes(beginning[26:28], "little")
        return [beginning[30 : 30 + size].decode("utf-8", errors="replace")]


def points_outside(member: str) -> bool:
    """Returns True if a member of an archive would be unpacked outside the target folder."""
    parts = member.replace("\\", "/").split("/")
    return not parts[0] or ".." in parts or parts[0].endswith(":")


def _of_members(names: list[str]) -> Kind | None:
    if KERAS_MEMBERS & set(names):
        return "keras-archive"
    if any(name.rpartition("/")[2] == TORCH_MEMBER for name in names):
        return "torch-archive"
    return None


def _is_safetensors(beginning: bytes, size: int) -> bool:
    """Returns True for a length followed by a JSON header of tensors."""
    length = int.from_bytes(beginning[:8], "little")
    if not 2 <= length <= size - 8 or beginning[8:9] != b"{":
        return False
    if length + 8 > len(beginning):
        return b'"dtype"' in beginning and b'"data_offsets"' in beginning
    try:
        header = json.loads(beginning[8 : 8 + length])
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict)
