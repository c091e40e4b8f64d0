"""Shows progress in a notebook: a table of the epochs that is updated in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

from kresume.reporter.lines import Lines
from kresume.reporter.moment import Moment

EVERY_SECONDS = 1.0
"""How often the table is sent to the browser."""
COLUMNS = ("epoch", "step", "loss", "accuracy", "validation", "old", "new", "lr", "images/s")


def show_text(text: str) -> None:
    """Shows lines as a block whose long lines wrap; rich's blocks cut them off at the right."""
    from IPython.display import display

    style = "white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; margin: 0; font-family: monospace"
    display({"text/html": f'<pre style="{style}">{escape(text)}</pre>', "text/plain": text}, raw=True)


class Notebook(Lines):
    """Shows a training as an HTML table, and anything else as lines.

    Args:
        say: prints one line.
    """

    @contextmanager
    def training(self, epochs: int) -> Iterator[Any]:
        """Shows a table with a row for each epoch."""
        board = NotebookBoard(epochs)
        try:
            yield board
        finally:
            board.end()


class NotebookBoard:
    """Shows a training as an HTML table.

    Args:
        epochs: how many there are in all.
    """

    def __init__(self, epochs: int) -> None:
        from IPython.display import HTML, display

        self._html: Callable[[str], Any] = HTML
        self._epochs = epochs
        self._rows: list[Mapping[str, Any]] = []
        self._moment: Moment | None = None
        self._sent = time.monotonic()
        self._handle = display(HTML(self.as_html()), display_id=True)

    def __call__(self, moment: Moment) -> None:
        """Shows the moment above the table, once a second."""
        self._moment = moment
        if time.monotonic() - self._sent >= EVERY_SECONDS:
            self._send()

    def row(self, line: Mapping[str, Any], text: str) -> None:
        """Adds the epoch's row."""
        self._rows.append(line)
        self._send()

    def end(self) -> None:
        """Leaves the table of the epochs."""
        self._moment = None
        self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        if self._handle is not None:
            self._handle.update(self._html(self.as_html()))

    def as_html(self) -> str:
        """Returns the table; nothing in it is taken from elsewhere."""
        moment, now = self._moment, ""
        if moment is not None:
            facts = " · ".join([f"step {moment.step:,} of {moment.steps:,}", *moment.facts(), moment.left])
            now = (
                f'<progress value="{moment.done}" max="{moment.total}" style="width:20em"></progress> '
                f"epoch {moment.epoch} of {moment.epochs} · {escape(facts)}"
            )
        head = "".join(f"<th>{name}</th>" for name in COLUMNS)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in self._cells(line))}</tr>" for line in self._rows)
        return f"<div>{now}</div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _cells(self, line: Mapping[str, Any]) -> list[str]:
        scores = [_percent((line.get(name) or {}).get("accuracy")) for name in ("all", "old", "new")]
        speed = line.get("images_per_second")
        return [
            f"{line['epoch']}/{self._epochs}",
            f"{line['step']:,}",
            f"{line['loss']:.3f}",
            _percent(line.get("accuracy")),
            *scores,
            f"{line['lr']:.3g}",
            "" if speed is None else f"{speed:,.0f}",
        ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
