"""Shows progress as plain lines: for log files, for pipes, and for shell commands in a notebook."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kresume.reporter.moment import Moment

SHOWN_AFTER_SECONDS = 1.0
"""A shorter wait gets no line."""
EVERY_SECONDS = 15.0
"""How often a line says how far something is."""


class Silent:
    """Shows nothing of a training."""

    def __call__(self, moment: Moment) -> None:
        """Ignores the moment."""

    def row(self, line: Mapping[str, Any], text: str) -> None:
        """Ignores the epoch."""


class Lines:
    """Prints plain lines.

    Args:
        say: prints one line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    @contextmanager
    def waiting(self, text: str, *, now: bool) -> Iterator[None]:
        """Prints a line if the block lasts, and another one at its end."""
        with self._announced(text, now=now) as announced:
            start = time.monotonic()
            yield
        if announced():
            self._say(f"{text}: {time.monotonic() - start:.1f} s")

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Prints a line if the block lasts, then one every few seconds, and one at its end."""
        start = last = time.monotonic()
        done, guard = 0, threading.Lock()

        def advance(count: int) -> None:
            nonlocal done, last
            with guard:
                done = min(done + count, total or done + count)  # a last batch may be filled up
                now = time.monotonic()
                if now - last < EVERY_SECONDS:
                    return
                last = now
            rate = done / (now - start)
            left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
            of = f" of {total:,}" if total else ""
            self._say(f"{label}: {done:,}{of} {unit} ({rate:,.0f}/s{left})")

        with self._announced(f"{label}, {total:,} {unit}" if total else label, now=False) as announced:
            yield advance
        if announced():
            self._say(f"{label}: {done:,} {unit} in {time.monotonic() - start:.1f} s")

    @contextmanager
    def training(self, epochs: int) -> Iterator[LineBoard]:
        """Prints a line for each epoch, and one every few seconds."""
        yield LineBoard(self._say)

    @contextmanager
    def _announced(self, text: str, *, now: bool) -> Iterator[Callable[[], bool]]:
        """Prints what the block does, if it lasts; yields a function that returns True if it was printed."""
        said = threading.Event()

        def say() -> None:
            said.set()
            self._say(f"{text} …")

        timer = threading.Timer(SHOWN_AFTER_SECONDS, say)
        timer.daemon = True
        if now:
            say()
        else:
            timer.start()
        try:
            yield said.is_set
        finally:
            timer.cancel()


class LineBoard:
    """Prints a training as lines.

    Args:
        say: prints one line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last: float | None = None

    def __call__(self, moment: Moment) -> None:
        """Prints a line if the last one is some seconds old."""
        now = time.monotonic()
        if self._last is None:
            self._last = now
        if now - self._last >= EVERY_SECONDS:
            self._last = now
            facts = [f"step {moment.step:,} of {moment.steps:,}", *moment.facts(), moment.left]
            self._say(f"epoch {moment.epoch}/{moment.epochs}: {', '.join(filter(None, facts))}")

    def row(self, line: Mapping[str, Any], text: str) -> None:
        """Prints the epoch's line."""
        self._last = time.monotonic()
        self._say(text)
