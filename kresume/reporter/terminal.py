"""Shows progress on a terminal: bars that are redrawn in place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kresume.reporter.lines import SHOWN_AFTER_SECONDS
from kresume.reporter.moment import Moment, duration

PER_SECOND = 4
"""How often the bars are redrawn while something is waited for; a training redraws them itself."""
BAR_WIDTH = 24
MOST_OF_THE_TIME = 1 / 400
"""Share of the time of a training that its bars may take."""


class _Bar:
    """A row of the display: what is done, how far it is, its rate and the time left."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.start = 0, time.monotonic()

    def cells(self) -> tuple[Any, Any, Any]:
        """Returns the row: label, bar, numbers."""
        passed = time.monotonic() - self.start
        bar = ProgressBar(self.total, self.done, width=BAR_WIDTH) if self.total else ""
        if not self.unit and not self.total:
            return self.label, bar, f"{passed:.0f} s" if passed >= 1 else ""
        rate = self.done / passed if passed > 1 else 0.0
        words = [f"{self.done:,}/{self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"]
        words += [f"{rate:,.0f}/s"] if rate else []
        words += [f"{duration((self.total - self.done) / rate)} left"] if rate and self.total else []
        return self.label, bar, "  ".join(words)


class Terminal:
    """Draws bars; only one thread of a process trains, but any thread may advance a bar.

    Args:
        console: of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: list[_Bar] = []
        self._moment: Moment | None = None
        self._training = False
        self._live: Live | None = None
        self._redraw_at = 0.0
        self._guard = threading.RLock()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws everything that goes on."""
        moment, bars = self._moment, list(self._bars)
        grid = Table.grid(padding=(0, 2))
        for _ in range(3):
            grid.add_column(no_wrap=True, overflow="ellipsis")
        if moment is not None:
            whole = ProgressBar(moment.total, moment.done, width=BAR_WIDTH)
            grid.add_row("training", whole, Text(f"{moment.done:,}/{moment.total:,} steps  {moment.left}"))
            part = ProgressBar(moment.steps, moment.step, width=BAR_WIDTH)
            grid.add_row(f"epoch {moment.epoch}/{moment.epochs}", part, Text(f"{moment.step:,}/{moment.steps:,} steps"))
        for bar in bars:
            label, drawn, words = bar.cells()
            grid.add_row(Text(label), drawn, Text(words))
        if grid.row_count:
            yield grid
        if moment is not None:
            yield Text("  ".join(fact.replace(" ", "\u00a0") for fact in moment.facts()))

    @contextmanager
    def waiting(self, text: str, *, now: bool) -> Iterator[None]:
        """Shows what the block does; a line stays if it lasted."""
        start = time.monotonic()
        with self._shown(_Bar(f"{text} …", None, "")):
            yield
        passed = time.monotonic() - start
        if now or passed >= SHOWN_AFTER_SECONDS:
            self._console.print(f"{text}: {passed:.1f} s", markup=False)

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Shows a bar, which vanishes at the end."""
        bar, guard = _Bar(label, total, unit), threading.Lock()

        def advance(count: int) -> None:
            with guard:
                bar.done = min(bar.done + count, total or bar.done + count)  # a last batch may be filled up

        with self._shown(bar):
            yield advance

    @contextmanager
    def training(self, epochs: int) -> Iterator[Terminal]:
        """Shows a bar for the training, one for the epoch, and the facts of the moment."""
        self._training = True
        try:
            yield self
        finally:
            self._training, self._moment = False, None
            self._settle()

    def __call__(self, moment: Moment) -> None:
        """Redraws the training."""
        start, first = time.perf_counter(), self._moment is None
        self._moment = moment
        self._settle()
        if self._live is not None and not self._live.auto_refresh and (first or start >= self._redraw_at):
            self._live.refresh()
            self._redraw_at = start + (time.perf_counter() - start) / MOST_OF_THE_TIME

    def row(self, line: Mapping[str, Any], text: str) -> None:
        """Prints the epoch's line above the bars."""
        self._console.print(text, markup=False)

    @contextmanager
    def _shown(self, bar: _Bar) -> Iterator[None]:
        with self._guard:
            self._bars.append(bar)
            self._settle()
        try:
            yield
        finally:
            with self._guard:
                self._bars.remove(bar)
                self._settle()

    def _settle(self) -> None:
        """Starts or stops the display, and the thread that redraws it while no training does."""
        with self._guard:
            wanted = bool(self._bars) or self._moment is not None
            moving = bool(self._bars)
            if self._live is not None and (not wanted or self._live.auto_refresh != moving):
                self._live.stop()
                self._live = None
            if wanted and self._live is None:
                self._live = Live(
                    self, console=self._console, auto_refresh=moving, refresh_per_second=PER_SECOND, transient=True
                )
                self._live.start(refresh=True)
