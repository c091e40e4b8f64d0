"""Reads the arrays of an untrusted HDF5 file, checking every link and size.

    arrays = read_arrays(Path("model.weights.h5").read_bytes(), "model.weights.h5")

HDF5 (https://support.hdfgroup.org/documentation/hdf5/latest/_s_p_e_c.html) can refer to other files, give one object
several names and claim any shape. Keras writes only groups and contiguous numeric datasets, each under one name.
Anything else is refused, so the size of the file bounds the memory. HDF5 stores no checksum of such data: a flipped bit
in a weight cannot be detected here (the `.keras` archive has a checksum).
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
"""Largest ratio of claimed to stored size of a compressed dataset; deflate itself reaches about that."""
SMALL = 2**20
"""Claims below this number of bytes are not compared with the stored size."""


@contextmanager
def opened(data: bytes, path: str) -> Iterator[Any]:
    """Opens an `h5py.File` on bytes in memory, read-only, with h5py's errors unified.

    Args:
        data: the file's content.
        path: the file's name, for messages.

    Raises:
        CheckpointError: if the data is no HDF5 file, or is truncated or damaged.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            yield file
    # The exception that h5py raises depends on which structure is damaged.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeDecodeError, OverflowError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: the weights are not a complete HDF5 file ({reason}); they are truncated or damaged: use an earlier copy"
        ) from error


def read_arrays(data: bytes, path: str) -> dict[str, np.ndarray]:
    """Returns every dataset of an HDF5 file by its path.

    Args:
        data: the file's content; arrays are views of it where the file stores them uncompressed.
        path: the file's name, for messages.

    Raises:
        CheckpointError: if the file is damaged, or holds anything that Keras does not write: links, data in other
            files, an object under two names, claims beyond its size, non-numeric data.
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
        raise CheckpointError(f"{path}: {prefix} is nested more than {DEEPEST} levels deep: refused")
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
            raise CheckpointError(f"{path}: {prefix}{name} is a link, which Keras never writes: refused")
        item = group[name]
        address = int(h5py.h5o.get_info(item.id).addr)
        if address in seen:
            raise CheckpointError(
                f"{path}: {prefix}{name} is a second name of one object, which Keras never writes: refused"
            )
        seen.add(address)
        if isinstance(item, h5py.Group):
            _walk(item, f"{prefix}{name}/", data, path, arrays, seen, depth + 1)
        elif isinstance(item, h5py.Dataset):
            arrays[f"{prefix}{name}"] = _array(item, f"{prefix}{name}", data, path)
        else:
            raise CheckpointError(f"{path}: {prefix}{name} is neither a group nor an array: refused")


def _array(item: Any, name: str, data: bytes, path: str) -> np.ndarray:
    if item.external or item.is_virtual:
        raise CheckpointError(f"{path}: {name} stores its data in another file: refused")
    # HDF5 has no bfloat16: Keras 3 stores the raw bytes and an attribute `dtype`, Keras 2 only the raw bytes.
    bfloat16 = item.attrs.get("dtype", "bfloat16" if item.dtype == np.dtype("V2") else "") == "bfloat16"
    if item.shape is None or item.dtype.kind not in ("biufcV" if bfloat16 else "biufc"):
        raise CheckpointError(f"{path}: {name} has the type {item.dtype}, expected numbers: refused")
    claimed, stored = math.prod(item.shape) * item.dtype.itemsize, int(item.id.get_storage_size())
    if claimed > SMALL and claimed > stored * (LARGEST_EXPANSION if item.chunks else 1):
        raise CheckpointError(
            f"{path}: {name} claims the shape {tuple(item.shape)}, {claimed:,} bytes, but the file stores {stored:,}: refused"
        )
    offset = item.id.get_offset()  # None unless the data is contiguous and uncompressed
    if offset is None or item.chunks or not claimed or not stored:
        array = np.asarray(item)
    else:
        if offset + claimed > len(data):
            raise CheckpointError(
                f"{path}: {name} ends after the end of the file; the file is truncated: use an earlier copy"
            )
        array = np.frombuffer(data, item.dtype, math.prod(item.shape), offset).reshape(item.shape)
    if bfloat16 and array.dtype.kind in "Vu":
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16)
    return array
