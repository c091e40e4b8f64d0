"""Runs a process that trains with others as a child, and says in words why it ended.

    code = supervise(["train", "--data", "old/"])

jaxlib ends a process by SIGABRT when one of the others dies: no `except` or `finally` of that process runs. So the command
starts itself again, waits, and translates how the child ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from kresume.errors import PeerDied
from kresume.spelling import option

CHILD, MET = "KRESUME_SUPERVISED", "KRESUME_MET"
"""Environment variables: the process which waits for this one, and the number of the file by which it hears of the others."""
PR_SET_PDEATHSIG = 1


def supervised() -> bool:
    """Returns True in the child, and makes it end with its parent.

    A command that was killed must not go on training.
    """
    if os.environ.get(CHILD) != str(os.getppid()):
        return False
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return True


def met() -> None:
    """Tells the process which waits for this one that all processes have met."""
    if (number := os.environ.pop(MET, None)) is not None:
        os.write(int(number), b"1")
        os.close(int(number))


def _heard(file: int) -> bool:
    """Returns True if the child has written into this pipe, and closes it."""
    os.set_blocking(file, False)  # a process that the child has started may hold the other end open
    try:
        return bool(os.read(file, 1))
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def supervise(arguments: Sequence[str]) -> int:
    """Runs `kresume` with these arguments as a child, passes signals on, and returns its exit code.

    A child that jaxlib has aborted becomes `PeerDied`.

    Raises:
        PeerDied: another process died, or they did not meet.
        KeyboardInterrupt: Ctrl-C ended the child at once.
    """
    hears, tells = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "kresume", *arguments],
        env={**os.environ, CHILD: str(os.getpid()), MET: str(tells)},
        pass_fds=[tells],
    )
    os.close(tells)
    # A terminal sends Ctrl-C to the child, too, which takes both for one; a launcher sends it to this process alone.
    before = {
        number: signal.signal(number, lambda number, frame: child.send_signal(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    have_met = _heard(hears)
    if code in {-signal.SIGABRT, 128 + signal.SIGABRT}:
        not_met = (
            "the processes of this training did not meet: start one on each host with the same options, each with its own "
            f"{option('process-id')} from 0 on, and check that process 0 runs and that its port can be reached"
        )
        raise PeerDied(PeerDied.AGAIN if have_met else not_met)
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    return 128 - code if code < 0 else code
