"""Prints facts, tables and progress to stderr, using rich.

    report = Reporter()
    report.say("rate: 0.01 (checkpoint) -> 0.0001 by step 40")
    with report.progress("prepare", total=2000, unit="images") as advance:
        advance(1)

A terminal shows a bar with rate and time left. Other outputs get a plain line every few seconds, so that log files stay
readable. Nothing here asks a question. Library code uses a `Reporter` and never prints; only `cli.py` prints results to
stdout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

PLAIN_EVERY_SECONDS = 15.0


class Reporter:
    """Prints facts and progress; `quiet=True` suppresses everything but warnings."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        from rich.console import Console

        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True, emoji=False)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Prints one fact without interpreting markup, because file names may hold brackets."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Prints a warning that the user should act on, even if `quiet`."""
        self.console.print(f"warning: {text}", markup=False, style="yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table; numbers (columns after the first) are aligned to the right."""
        if self.quiet:
            return
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(title) or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for index, column in enumerate(columns):
            numeric = index > 0 and all(not row[index] or row[index][0] in "+-−0123456789" for row in rows)
            table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print(table)

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Yields a thread-safe `advance(count)` and shows the progress of the block.

        Only one progress may be active at a time.
        """
        if self.quiet:
            yield lambda count: None
        elif self.console.is_terminal:
            with self._bar(label, total, unit) as advance:
                yield advance
        else:
            with self._lines(label, total, unit) as advance:
                yield advance

    @contextmanager
    def _bar(self, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(label, total=total, unit=unit, rate="")
            start, done = time.monotonic(), [0]

            def advance(count: int) -> None:
                done[0] += count
                elapsed = time.monotonic() - start
                rate = f"{done[0] / elapsed:,.0f}/s" if elapsed > 1 else ""
                progress.update(task, advance=count, rate=rate)

            yield advance

    @contextmanager
    def _lines(self, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        start = last = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last >= PLAIN_EVERY_SECONDS:
                last = now
                rate = done / (now - start)
                left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
                of = f" of {total:,}" if total else ""
                self.say(f"{label}: {done:,}{of} {unit} ({rate:,.0f}/s{left})")

        yield advance
