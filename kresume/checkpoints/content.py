"""Tells what a file is by what is in it: users rename files, and many tools write any ending.

    kind_of(Path("model.keras"))      # "hdf5": somebody called an HDF5 file so

Only the first bytes are read, and the list of members of a zip archive. A file that was cut short is known by its beginning.
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
"""How every file of `torch.save` before the zip format (PyTorch 1.6) begins: a pickled number of its own."""
KERAS_MEMBERS = frozenset({"config.json", "metadata.json", "model.weights.h5"})
TORCH_MEMBER = "data.pkl"
SHARDS = '"weight_map"'
SIGNATURE, BEGINNING = 64, 2**16
"""How many bytes of a file are looked at: of each, and of those that may be described in JSON."""


def kind_of(file: Path) -> Kind | None:
    """Names the kind of a file by its content; None for any other kind, or where no file exists."""
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
    """The names in a zip archive; of one without its end the first alone, which stands at its beginning."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        size = int.from_bytes(beginning[26:28], "little")
        return [beginning[30 : 30 + size].decode("utf-8", errors="replace")]


def _of_members(names: list[str]) -> Kind | None:
    if KERAS_MEMBERS & set(names):
        return "keras-archive"
    if any(name.rpartition("/")[2] == TORCH_MEMBER for name in names):
        return "torch-archive"
    return None


def _is_safetensors(beginning: bytes, size: int) -> bool:
    """Tells whether a length comes first, and so many bytes of JSON that describe tensors."""
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
