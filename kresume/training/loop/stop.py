"""Turns SIGTERM and Ctrl-C into a request to stop between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from kresume.backend import hosts

ONE_PRESS = 3.0
"""Seconds in which all interrupts of a training by several processes count as one press of Ctrl-C. It reaches process 0
from its terminal, from the command that waits for it, and from the other processes, which ask it to stop."""


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a request that training obeys at the next step boundary.

        with StopRequest() as stop:
            ...
            if stop.signal: ...

    A process that follows another one passes the signal on to that one, and goes on until it is told to end. A second Ctrl-C
    ends the process at once. Outside the main thread (notebook workers) signals are not handled.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not hosts.this().leads:
            hosts.ask("signal", number)
            return
        if self.signal is None:
            self._since = time.monotonic()
        elif number == signal.SIGINT and (hosts.joined().alone or time.monotonic() - self._since > ONE_PRESS):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.signal = number

    @property
    def exit_code(self) -> int:
        """Returns 75 (EX_TEMPFAIL: run again) for SIGTERM, 130 for Ctrl-C."""
        return 130 if self.signal == signal.SIGINT else 75
