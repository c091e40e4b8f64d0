"""Prints facts, tables and progress to stderr, using rich.

    report = Reporter()
    report.say("rate: 0.01 (checkpoint) -> 0.0001 by step 40")
    with report.waiting("loading TensorFlow and Keras"):          # "... 7.4 s" when it is done
        import keras
    with report.progress("prepare", total=2000, unit="images") as advance:
        advance(1)
    with report.training(epochs=5) as show:
        show(Moment(...))                                         # a few times a second
        show.row(line, text)                                      # after each epoch

A terminal shows bars with rates and the time left. A notebook shows a table that is updated in place. Other outputs get plain
lines, so that log files stay readable; so does a shell command in a notebook (`!kresume` in Colab), which looks like a terminal
and is none. Nothing here asks a question. Library code uses a `Reporter` and never prints; only `cli.py` prints results to
stdout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TextIO

from kresume.addresses import public
from kresume.reporter.moment import Moment as Moment


class Board(Protocol):
    """Shows a training while it runs."""

    def __call__(self, moment: Moment) -> None:
        """Shows how far the training is."""

    def row(self, line: Mapping[str, Any], text: str) -> None:
        """Shows a finished epoch.

        Args:
            line: its line of `metrics.jsonl`.
            text: the same in words.
        """


class View(Protocol):
    """Shows progress on one kind of output."""

    def waiting(self, text: str, *, now: bool) -> AbstractContextManager[None]:
        """Shows that something lasts."""

    def progress(self, label: str, total: int | None, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Shows how far something is."""

    def training(self, epochs: int) -> AbstractContextManager[Board]:
        """Shows a training."""


class Reporter:
    """Prints facts and progress; `quiet=True` suppresses everything but warnings."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        from rich.console import Console

        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True, emoji=False)
        self.quiet = quiet
        self._view: View | None = None

    def say(self, text: str) -> None:
        """Prints one fact without interpreting markup, because file names may hold brackets."""
        if self.quiet:
            return
        if self.console.is_jupyter:
            from kresume.reporter.notebook import show_text

            show_text(public(text))
        else:
            self.console.print(public(text), markup=False)

    def warn(self, text: str) -> None:
        """Prints a warning that the user should act on, even if `quiet`."""
        self.console.print(f"warning: {public(text)}", markup=False, style="yellow")

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
    def waiting(self, text: str, *, now: bool = False) -> Iterator[None]:
        """Says what the block does if it lasts, and how long it took.

        Args:
            text: what is being done, `"restoring runs/2"` for example.
            now: True says it at once: for a block known to last, or one that redirects the standard error.
        """
        if self.quiet:
            yield
            return
        with self.view.waiting(public(text), now=now):
            yield

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Yields a thread-safe `advance(count)` and shows the progress of the block."""
        if self.quiet:
            yield lambda count: None
            return
        with self.view.progress(public(label), total, unit) as advance:
            yield advance

    @contextmanager
    def training(self, epochs: int) -> Iterator[Board]:
        """Yields a board, which is called with a `Moment` a few times a second and with each epoch's line.

        Args:
            epochs: how many there are in all.
        """
        if self.quiet:
            from kresume.reporter.lines import Silent

            yield Silent()
            return
        with self.view.training(epochs) as board:
            yield board

    @property
    def view(self) -> View:
        """Returns how progress is shown on this output."""
        if self._view is None:
            self._view = _view_of(self)
        return self._view


def _view_of(reporter: Reporter) -> View:
    console = reporter.console
    if console.is_jupyter:
        from kresume.reporter.notebook import Notebook

        return Notebook(reporter.say)
    if console.file.isatty() and not console.is_dumb_terminal and not _under_a_notebook():
        from kresume.reporter.terminal import Terminal

        return Terminal(console)
    from kresume.reporter.lines import Lines

    return Lines(reporter.say)


def _under_a_notebook() -> bool:
    """Returns True in a process that a notebook's cell started.

    Its output looks like a terminal and cannot move back.
    """
    return "JPY_PARENT_PID" in os.environ or "COLAB_RELEASE_TAG" in os.environ
