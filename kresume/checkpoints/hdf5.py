"""Reads an untrusted HDF5 file in a process of its own, checking every link and size.

    content = read_file(Path("model.h5").read_bytes(), "model.h5")
    content.arrays["layers/dense/vars/0"], content.attributes[""]["keras_version"]

HDF5 (https://support.hdfgroup.org/documentation/hdf5/latest/_s_p_e_c.html) can refer to other files, give one object
several names and claim any shape. Keras writes only groups and contiguous numeric datasets, each under one name.
Anything else is refused, so the size of the file bounds the memory. HDF5 stores no checksum of such data: a flipped bit
in a weight cannot be detected here (the `.keras` archive has a checksum).

The HDF5 library crashes on some damaged files. A child process (`hdf5_child.py`) opens them and answers where each
array is in the bytes; the arrays themselves are views of the bytes in this process. The child is kept for the next file
and ends with this process, or when idle.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from kresume.errors import CheckpointError

CHILD = Path(__file__).with_name("hdf5_child.py")
LONGEST_SECONDS, BYTES_PER_SECOND = 60.0, 10 * 2**20
"""Limit on a read by the clock, with a second for each of so many bytes. The child limits its computing more strictly."""


@dataclass(frozen=True)
class Content:
    """The content of an HDF5 file.

    Attributes:
        arrays: every dataset by its path; views of the file's bytes where it stores them uncompressed.
        attributes: for each group by path, the root's is empty: the texts and lists of texts that Keras writes.
    """

    arrays: dict[str, np.ndarray]
    attributes: dict[str, dict[str, Any]]


def read_arrays(data: bytes, path: str) -> dict[str, np.ndarray]:
    """Returns every dataset of an HDF5 file by its path; `read_file` explains arguments and errors."""
    return read_file(data, path).arrays


def read_file(data: bytes, path: str) -> Content:
    """Returns every dataset of an HDF5 file, and the attributes that Keras writes.

    Args:
        data: the file's content.
        path: the file's name, for messages.

    Raises:
        CheckpointError: if the file is damaged, or holds anything that Keras does not write: links, data in other
            files, an object under two names, claims beyond its size, non-numeric data.
    """
    with _one_at_a_time:
        answer, rest = _asked({"bytes": len(data)}, data, path)
        try:
            arrays = {name: _array(data, rest, *facts) for name, *facts in answer["arrays"]}
        except _Ended as ended:
            raise _damaged(path, str(ended)) from None
        except BaseException:
            _end()  # what it still writes belongs to this file
            raise
    return Content(arrays, answer["attributes"])


def has_layers(file: Path) -> bool:
    """Returns True if an HDF5 file stores layers by name (read by `legacy_h5.py`).

    Returns False for a damaged file: its reader reports the damage.
    """
    try:
        with _one_at_a_time:
            answer, _ = _asked({"bytes": 0, "file": str(file.absolute())}, b"", str(file))
    except CheckpointError:
        return False
    return bool(answer["layers"])


def _array(
    data: bytes, rest: IO[bytes], dtype: str, shape: list[int], offset: int | None, bfloat16: bool
) -> np.ndarray:
    kind, count = np.dtype(dtype), int(np.prod(shape, dtype=object))
    whole = data if offset is not None else _exactly(rest, count * kind.itemsize)
    array = np.frombuffer(whole, kind, count, offset or 0).reshape(shape)
    if bfloat16 and array.dtype.kind in "Vu":
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16)
    return array


def _damaged(path: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the weights are not a complete HDF5 file ({reason}); they are truncated or damaged: use an earlier copy"
    )


# --- the child process ------------------------------------------------------------------------------------------------


@dataclass
class _Child:
    """The process that opens HDF5 files; a fork of this process may not use its parent's."""

    process: subprocess.Popen[bytes]
    owner: int = field(default_factory=os.getpid)


class _Ended(Exception):
    """Raised if the child ended while it was asked; the text says why."""


_one_at_a_time = threading.RLock()
_child: _Child | None = None


def _asked(request: dict[str, Any], data: bytes, path: str) -> tuple[dict[str, Any], IO[bytes]]:
    """Sends a request to the child.

    Returns:
        Its answer, and the stream of the bytes that follow.

    Raises:
        CheckpointError: if it refuses the content, or dies or hangs on it.
    """
    try:
        try:
            answer, rest = _exchange(request, data)
        except _Idle:
            answer, rest = _exchange(request, data)
    except _Ended as ended:
        raise _damaged(path, str(ended)) from None
    if "bug" in answer:
        raise RuntimeError(f"{path}: the process that reads HDF5 failed:\n{answer['bug']}")
    if "refused" in answer:
        raise CheckpointError(f"{path}: {answer['refused']}")
    if "damaged" in answer:
        raise _damaged(path, answer["damaged"])
    return answer, rest


class _Idle(Exception):
    """Raised if the child had ended by itself, because nothing was asked for a while."""


def _exchange(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], IO[bytes]]:
    process = _running()
    source, target = process.stdin, process.stdout
    text = json.dumps(request).encode()
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(LONGEST_SECONDS + len(data) / BYTES_PER_SECOND, stop)
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):
            source.write(len(text).to_bytes(8, "little") + text)  # type: ignore[union-attr]
            source.write(data)  # type: ignore[union-attr]
            source.flush()  # type: ignore[union-attr]
        size = int.from_bytes(_exactly(target, 8), "little")  # type: ignore[arg-type]
        return json.loads(_exactly(target, size)), target  # type: ignore[arg-type, return-value]
    except _Ended:
        code = process.wait()
        _end()
        if late.is_set() or code == -getattr(signal, "SIGPROF", 0):
            raise _Ended("the HDF5 library does not finish reading it") from None
        if code == 0:
            raise _Idle from None
        if code > 0:
            raise RuntimeError(
                f"the process that reads HDF5 ended with {code}: run python -P {CHILD} to see why"
            ) from None
        raise _Ended(f"the HDF5 library dies on it, {signal.Signals(-code).name}") from None
    except BaseException:
        _end()  # Ctrl-C: what it still writes belongs to this file
        raise
    finally:
        timer.cancel()


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise _Ended("the HDF5 library dies on it")
    return data


def _running() -> subprocess.Popen[bytes]:
    global _child  # noqa: PLW0603  # one child per process
    if _child is None or _child.owner != os.getpid() or _child.process.poll() is not None:
        _end()
        command = [sys.executable, "-P", str(CHILD)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        _child = _Child(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
        )
    return _child.process


@atexit.register
def _end() -> None:
    """Ends the child, unless it belongs to the process that this one was forked from."""
    global _child
    child, _child = _child, None
    if child is None:
        return
    if child.owner != os.getpid():
        child.process.returncode = 0  # else Python warns that it still runs
        return
    child.process.kill()
    child.process.wait()
    for stream in (child.process.stdin, child.process.stdout):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]
