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

CHILD = "KRESUME_SUPERVISED"
"""The environment variable that names the process which waits for this one."""
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


def supervise(arguments: Sequence[str]) -> int:
    """Runs `kresume` with these arguments as a child, passes signals on, and returns its exit code.

    A child that jaxlib has aborted because another process died becomes `PeerDied`.

    Raises:
        PeerDied: another process died.
    """
    child = subprocess.Popen([sys.executable, "-m", "kresume", *arguments], env={**os.environ, CHILD: str(os.getpid())})
    before = {
        number: signal.signal(number, lambda number, frame: child.send_signal(number)) for number in (signal.SIGTERM,)
    }
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the child, too
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code in {-signal.SIGABRT, 128 + signal.SIGABRT}:
        raise PeerDied(PeerDied.AGAIN)
    return 128 - code if code < 0 else code
