"""Keeps the trace of a process that dies in native code, where no `except` and no `finally` runs.

    crash.show_traces()                        # a command begins: the trace goes to stderr
    with crash.traced(run.path): ...           # while a run trains: into the run
    crash.found(run.path)                      # at the next start: what killed the process before, or None

Python's own `faulthandler` writes the trace, for SIGSEGV, SIGABRT, SIGBUS, SIGFPE and SIGILL.
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

TRACE = "native-trace.txt"
KEPT = "native-trace-{}.txt"
NOTEBOOK = "ipykernel"
_ours = False


@dataclass(frozen=True)
class Crash:
    """A process that died in native code.

    Attributes:
        reason: what the system calls it, for example "Segmentation fault".
        trace: the file that holds the trace.
    """

    reason: str
    trace: Path

    def tell(self, choice: str = "--backend ") -> str:
        """Says that it died so, and what to try; `choice` is how a backend is chosen here."""
        return (
            f"the process before this one died in native code ({self.reason}), not in Python: its trace is {self.trace}. "
            f"If it dies again: {way_on(choice)}"
        )


def way_on(choice: str = "--backend ") -> str:
    """Says what to try after a death in native code, under the backend of this process."""
    backend = sys.modules["keras"].config.backend() if "keras" in sys.modules else "tensorflow"
    if backend == "jax":
        return f"try {choice}tensorflow"
    return f"put TF_ENABLE_ONEDNN_OPTS=0 in front of the command (TensorFlow's other CPU kernels), or try {choice}jax"


def death(returncode: int) -> str | None:
    """Says which signal of native code killed a child process, and what to try; None where it ended in another way."""
    deadly = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, getattr(signal, "SIGBUS", signal.SIGSEGV)}
    name = next((number.name for number in deadly if returncode in {-number, 128 + number}), None)
    return f"died in native code ({name}): {way_on()}" if name else None


def show_traces() -> None:
    """Turns traces on stderr on for this process, unless somebody else has turned them on."""
    global _ours  # noqa: PLW0603  # one fault handler per process
    if not faulthandler.is_enabled():
        with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):  # stderr may be no file
            faulthandler.enable()
            _ours = True


class Trace:
    """The fault handler of this process, writing into a folder from `begin` to `end`.

    Where somebody else turned the fault handler on (PYTHONFAULTHANDLER, pytest) it stays theirs, because Python cannot say
    where it writes. A notebook's kernel writes to its log, where no user looks: there it is taken, and given back.

    Args:
        folder: of a run or of backups.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRACE
        self._file: IO[bytes] | None = None

    def begin(self) -> None:
        """Takes the fault handler; a folder that cannot be written is no reason not to train."""
        if self._file is not None or (faulthandler.is_enabled() and not _ours and NOTEBOOK not in sys.modules):
            return
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._file = self._path.open("xb")
            self._before = faulthandler.is_enabled()
            faulthandler.enable(self._file)

    def end(self) -> None:
        """Gives the fault handler back and removes the file: nobody died."""
        if self._file is None:
            return
        faulthandler.disable()
        if self._before:
            with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
                faulthandler.enable(sys.__stderr__ or sys.stderr)
        with self._file as file, contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):  # another process may have the run by now
                self._path.unlink()
        self._file = None


@contextlib.contextmanager
def traced(folder: Path) -> Iterator[None]:
    """Writes the trace of a death in native code into the folder; however the block ends otherwise, no file is left."""
    trace = Trace(folder)
    trace.begin()
    try:
        yield
    finally:
        trace.end()


def found(folder: Path) -> Crash | None:
    """Looks for the trace of a process that died in native code, and keeps it under another name; None where none did.

    Call with the folder's lock held, before `traced`.
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
