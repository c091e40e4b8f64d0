"""Describes HDF5 files for `hdf5.py`; run by its path, in a process of its own, without kresume.

The HDF5 library is C: a damaged file can make it crash or loop. The parent process sends a file's bytes and gets back
where in them each array is, so a crash ends this process only. Requests come on stdin and answers go to stdout: a length
in 8 bytes, that many bytes of JSON, then the bytes that the JSON announces. The process ends with its parent, or if
nothing is asked for a minute.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

DEEPEST = 100
LARGEST_EXPANSION = 1000
"""Largest ratio of claimed to stored size of a compressed dataset; deflate itself reaches about that."""
SMALL = 2**20
"""Claims below this number of bytes are not compared with the stored size."""
ATTRIBUTES = re.compile(r"(layer_names|weight_names)\d*|keras_version|backend|model_config|training_config|nb_layers")
IDLE_SECONDS = 60.0
CPU_SECONDS, BYTES_PER_SECOND = 2.0, 5 * 2**20
"""A read that computes for longer, with a second more for each of so many bytes, goes in circles. Good files need a
thousandth of it."""

GROWTH, GROWTH_PER_BYTE = 2**30, 8
"""A read may take so many bytes of memory, and so many more for each byte of the file: compressed zeros, as in the slots of
a new optimizer, are larger than their file."""


class Refused(Exception):
    """Raised for content that is refused in words."""


def main() -> None:
    """Answers requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not be read as an answer
    while True:
        idle = threading.Timer(IDLE_SECONDS, os._exit, (0,))
        idle.daemon = True
        idle.start()
        head = source.read(8)
        idle.cancel()
        if len(head) < 8:
            return
        request = json.loads(source.read(int.from_bytes(head, "little")))
        data = source.read(request["bytes"])
        _limit(CPU_SECONDS + len(data) / BYTES_PER_SECOND)
        with limited_memory(GROWTH + GROWTH_PER_BYTE * len(data)):
            answer, parts = _answer(request, data)
        _limit(0)
        text = json.dumps(answer).encode()
        target.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            target.write(part)
        target.flush()


def _limit(seconds: float) -> None:
    """Ends this process by SIGPROF once it has computed for so long; 0 takes the limit back."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


@contextlib.contextmanager
def limited_memory(growth: int) -> Iterator[None]:
    """Makes an allocation fail that would take more than so many bytes beyond what is held now (on Linux)."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    asked = pages * resource.getpagesize() + growth
    soft = asked if before == resource.RLIM_INFINITY else min(asked, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    try:
        file: str | IO[bytes] = request["file"] if "file" in request else io.BytesIO(data)
        with h5py.File(file, "r") as opened:
            if "file" in request:
                return {"layers": "layer_names" in opened.attrs or "model_weights" in opened}, []
            return _described(opened, data)
    except Refused as error:
        return {"refused": str(error)}, []
    # The exception that h5py raises depends on which structure is damaged.
    except Exception as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        if innermost.filename == __file__ and not isinstance(
            error, (OSError, UnicodeError, OverflowError, MemoryError)
        ):
            return {"bug": traceback.format_exc()}, []
        lines = str(error).strip().splitlines()
        return {"damaged": lines[0][:200] if lines else type(error).__name__}, []


def _described(file: h5py.File, data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Returns attributes by group, and each array's type, shape and place in the data.

    An array that the file stores in pieces or compressed has no place; its bytes follow the answer, in order.
    """
    attributes: dict[str, dict[str, Any]] = {}
    arrays: list[list[Any]] = []
    parts: list[bytes] = []
    seen: set[int] = set()

    def walk(group: h5py.Group, prefix: str, depth: int) -> None:
        if depth > DEEPEST:
            raise Refused(f"{prefix} is nested more than {DEEPEST} levels deep: refused")
        attributes[prefix.rstrip("/")] = {
            name: _plain(group.attrs[name]) for name in group.attrs if ATTRIBUTES.fullmatch(str(name))
        }
        for name in group:
            item = _item(group, name, f"{prefix}{name}", seen)
            if isinstance(item, h5py.Group):
                walk(item, f"{prefix}{name}/", depth + 1)
            elif isinstance(item, h5py.Dataset):
                facts, content = _array(item, f"{prefix}{name}", data)
                arrays.append([f"{prefix}{name}", *facts])
                parts.append(content)
            else:
                raise Refused(f"{prefix}{name} is neither a group nor an array: refused")

    walk(file, "", 0)
    return {"attributes": attributes, "arrays": arrays}, parts


def _item(group: h5py.Group, name: str, path: str, seen: set[int]) -> Any:
    if not isinstance(name, str):  # h5py gives bytes for a name that is not UTF-8
        raise Refused(f"{path} is a name that is not text: refused")
    link = group.get(name, getlink=True)
    if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
        raise Refused(f"{path} is a link, which Keras never writes: refused")
    item = group[name]
    address = int(h5py.h5o.get_info(item.id).addr)
    if address in seen:
        raise Refused(f"{path} is a second name of one object, which Keras never writes: refused")
    seen.add(address)
    return item


def _array(item: h5py.Dataset, name: str, data: bytes) -> tuple[list[Any], bytes]:
    """Returns `[dtype, shape, offset or None, is bfloat16]`, and the bytes where there is no offset."""
    if item.external or item.is_virtual:
        raise Refused(f"{name} stores its data in another file: refused")
    # HDF5 has no bfloat16: Keras 3 stores the raw bytes and an attribute `dtype`, Keras 2 only the raw bytes.
    bfloat16 = item.attrs.get("dtype", "bfloat16" if item.dtype == np.dtype("V2") else "") == "bfloat16"
    if item.shape is None or item.dtype.kind not in ("biufcV" if bfloat16 else "biufc"):
        raise Refused(f"{name} has the type {item.dtype}, expected numbers: refused")
    claimed, stored = math.prod(item.shape) * item.dtype.itemsize, int(item.id.get_storage_size())
    if claimed > SMALL and claimed > stored * (LARGEST_EXPANSION if item.chunks else 1):
        raise Refused(
            f"{name} claims the shape {tuple(item.shape)}, {claimed:,} bytes, but the file stores {stored:,}: refused"
        )
    offset = item.id.get_offset()  # None unless the data is contiguous and uncompressed
    shape = [int(side) for side in item.shape]
    if offset is None or item.chunks or not claimed or not stored:
        array = np.asarray(item)
        return [array.dtype.str, shape, None, bfloat16], array.tobytes()
    if offset + claimed > len(data):
        raise Refused(f"{name} ends after the end of the file; the file is truncated: use an earlier copy")
    return [item.dtype.str, shape, int(offset), bfloat16], b""


def _plain(value: Any) -> Any:
    """Returns an attribute as JSON: a text, a list of texts, or None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray) and value.dtype.kind in "SUO":
        return [text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in value.ravel().tolist()]
    return str(value) if isinstance(value, str) else None


if __name__ == "__main__":
    main()
