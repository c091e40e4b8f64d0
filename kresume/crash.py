"""Keeps the traceback of a process that crashes in native code.

    crash.show_traces()                        # at the start of a command: the trace goes to stderr
    with crash.traced(run.path): ...           # while a run trains: into the run
    crash.found(run.path)                      # at the next start: the previous process's crash, or None

After such a crash neither `except` nor `finally` runs. Python's `faulthandler` writes the trace, for SIGSEGV, SIGABRT,
SIGBUS, SIGFPE and SIGILL.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kresume.spelling import option

TRACE = "native-trace.txt"
KEPT = "native-trace-{}.txt"
NOTEBOOK = "ipykernel"
_ours = False


@dataclass(frozen=True)
class Crash:
    """A process that crashed in native code.

    Attributes:
        reason: the system's name of the signal, for example "Segmentation fault".
        trace: the file that holds the trace.
    """

    reason: str
    trace: Path

    def tell(self, choice: str = "") -> str:
        """Describes the crash and what to try; `choice` is how a backend is selected, empty for the option."""
        return (
            f"the process before this one died in native code ({self.reason}), not in Python: its trace is {self.trace}. "
            f"If it dies again: {way_on(choice)}"
        )


def way_on(choice: str = "") -> str:
    """Suggests what to try after a crash in native code, for the current backend."""
    backend = sys.modules["keras"].config.backend() if "keras" in sys.modules else "tensorflow"
    if backend == "jax":
        return f"try {f'{choice}tensorflow' if choice else option('backend', 'tensorflow')}"
    kernels = "put TF_ENABLE_ONEDNN_OPTS=0 in front of the command (TensorFlow's other CPU kernels)"
    return f"{kernels}, or try {f'{choice}jax' if choice else option('backend', 'jax')}"


def death(returncode: int) -> str | None:
    """Describes a child process's crash in native code; None for any other exit."""
    deadly = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, getattr(signal, "SIGBUS", signal.SIGSEGV)}
    name = next((number.name for number in deadly if returncode in {-number, 128 + number}), None)
    return f"died in native code ({name}): {way_on()}" if name else None


_written: IO[bytes] | None = None
"""The file to which the fault handler of this process writes."""


def show_traces() -> None:
    """Enables traces on stderr for this process, unless they are already enabled."""
    global _ours  # noqa: PLW0603  # one fault handler per process
    if not faulthandler.is_enabled():
        with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):  # stderr may not be a file
            faulthandler.enable()
            _ours = True


class Trace:
    """Writes this process's fault trace into a folder, from `begin` to `end`.

    A fault handler that other code enabled (PYTHONFAULTHANDLER, pytest) is kept, because Python cannot say where it
    writes. A notebook's kernel is the exception: its handler writes to a log that no user reads. It is replaced, and
    restored in `end`.

    Args:
        folder: the folder of a run or of backups.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRACE
        self._file: IO[bytes] | None = None

    def begin(self) -> None:
        """Starts writing traces into the folder.

        A folder that cannot be written is ignored: training continues without traces.
        """
        if self._file is not None or (faulthandler.is_enabled() and not _ours and NOTEBOOK not in sys.modules):
            return
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._file = self._path.open("xb")
            self._before = faulthandler.is_enabled()
            faulthandler.enable(self._file)
            _replace(self._file)

    def end(self) -> None:
        """Restores the previous fault handler and removes the file, as nothing crashed."""
        if self._file is None or self._file.closed:  # a later training of this process writes its own
            self._file = None
            return
        faulthandler.disable()
        if self._before:
            with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
                faulthandler.enable(sys.__stderr__ or sys.stderr)
        with self._file as file, contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):  # the file of another process is kept
                self._path.unlink()
        self._file = None


def _replace(file: IO[bytes]) -> None:
    """Closes the file of an earlier training that raised: its owner may be gone without a call of `end`."""
    global _written  # noqa: PLW0603  # one fault handler per process
    if _written is not None:
        _written.close()
    _written = file


@contextlib.contextmanager
def traced(folder: Path) -> Iterator[None]:
    """Writes the trace of a native crash in the block into the folder.

    If the block ends in any other way, no file is left.
    """
    trace = Trace(folder)
    trace.begin()
    try:
        yield
    finally:
        trace.end()


def left(folder: Path) -> bool:
    """Returns True if the previous process crashed and `found` has not looked yet."""
    try:
        return bool((folder / TRACE).read_bytes().strip())
    except OSError:
        return False


def found(folder: Path) -> Crash | None:
    """Returns the previous process's crash, and keeps its trace; None without a crash.

    The trace is renamed so that the next crash does not overwrite it. Call with the folder's lock held, before
    `traced`.
    """
    path = folder / TRACE
    with contextlib.suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if text.strip():
            number = 1
            while (kept := folder / KEPT.format(number)).exists():
                number += 1
            path.rename(kept)
            return Crash(text.strip().splitlines()[0].rpartition(": ")[2], kept)
    return None
