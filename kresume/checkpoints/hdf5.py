"""Reads the arrays of an HDF5 file, and nothing else: no link is followed out of it, no claim is believed.

    arrays = read_arrays(Path("model.weights.h5").read_bytes(), "model.weights.h5")

HDF5 (https://support.hdfgroup.org/documentation/hdf5/latest/_s_p_e_c.html) can name other files, name one object many times and
claim any shape. What Keras writes is plain: groups, and contiguous numeric datasets, each once. Anything beyond that is
refused, so memory is bounded by the size of the file. HDF5 keeps no checksum of such data: a bit that flipped inside a
weight cannot be seen here (the `.keras` archive has one).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kresume.errors import CheckpointError

DEEPEST = 100
LARGEST_EXPANSION = 1000
"""How many times its stored size a compressed dataset may claim; deflate's own limit is about that."""
SMALL = 2**20
"""Claims below this many bytes are not compared with what is stored."""


@contextmanager
def opened(data: bytes, path: str) -> Iterator[Any]:
    """An `h5py.File` on bytes in memory, read-only; whatever h5py cannot make of them is one error.

    Args:
        data: the file's content.
        path: its name, for messages.

    Raises:
        CheckpointError: it is no HDF5 file, or is truncated or damaged.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            yield file
    # What h5py raises on damaged bytes depends on the structure that is damaged.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeDecodeError, OverflowError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: its weights are no complete HDF5 file ({reason}): it is truncated or damaged; use an earlier copy"
        ) from error


def read_arrays(data: bytes, path: str) -> dict[str, np.ndarray]:
    """Every dataset of an HDF5 file by its path.

    Args:
        data: the file's content; the arrays are views of it where it stores them plainly.
        path: its name, for messages.

    Raises:
        CheckpointError: it is damaged, or holds what Keras does not write: links, data in other files, an object under two
            names, claims beyond its size, something that is no number.
    """
    arrays: dict[str, np.ndarray] = {}
    with opened(data, path) as file:
        _walk(file, "", data, path, arrays, set(), 0)
    return arrays


def _walk(
    group: Any, prefix: str, data: bytes, path: str, arrays: dict[str, np.ndarray], seen: set[int], depth: int
) -> None:
    import h5py

    if depth > DEEPEST:
        raise CheckpointError(f"{path}: {prefix} is nested more than {DEEPEST} deep: refused")
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
            raise CheckpointError(f"{path}: {prefix}{name} is a link out of its place: refused")
        item = group[name]
        address = int(h5py.h5o.get_info(item.id).addr)
        if address in seen:
            raise CheckpointError(f"{path}: {prefix}{name} is an object that has another name already: refused")
        seen.add(address)
        if isinstance(item, h5py.Group):
            _walk(item, f"{prefix}{name}/", data, path, arrays, seen, depth + 1)
        elif isinstance(item, h5py.Dataset):
            arrays[f"{prefix}{name}"] = _array(item, f"{prefix}{name}", data, path)
        else:
            raise CheckpointError(f"{path}: {prefix}{name} is neither a group nor an array: refused")


def _array(item: Any, name: str, data: bytes, path: str) -> np.ndarray:
    if item.external or item.is_virtual:
        raise CheckpointError(f"{path}: {name} keeps its data in another file: refused")
    # HDF5 has no bfloat16: Keras 3 stores its bytes and names the type beside them, Keras 2 stores them as they are.
    bfloat16 = item.attrs.get("dtype", "bfloat16" if item.dtype == np.dtype("V2") else "") == "bfloat16"
    if item.shape is None or item.dtype.kind not in ("biufcV" if bfloat16 else "biufc"):
        raise CheckpointError(f"{path}: {name} is of the type {item.dtype}, expected numbers: refused")
    claimed, stored = math.prod(item.shape) * item.dtype.itemsize, int(item.id.get_storage_size())
    if claimed > SMALL and claimed > stored * (LARGEST_EXPANSION if item.chunks else 1):
        raise CheckpointError(
            f"{path}: {name} claims the shape {tuple(item.shape)}, {claimed:,} bytes, and {stored:,} are stored: refused"
        )
    offset = item.id.get_offset()  # None unless the bytes lie in one piece, as they are
    if offset is None or item.chunks or not claimed or not stored:
        array = np.asarray(item)
    else:
        if offset + claimed > len(data):
            raise CheckpointError(
                f"{path}: {name} ends beyond the end of the file: it is truncated; use an earlier copy"
            )
        array = np.frombuffer(data, item.dtype, math.prod(item.shape), offset).reshape(item.shape)
    if bfloat16 and array.dtype.kind in "Vu":
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16)
    return array
