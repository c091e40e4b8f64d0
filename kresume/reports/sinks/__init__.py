"""Where the line of each epoch goes: one interface, one file per sink."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Sink(Protocol):
    """Takes the line of each epoch.

    The writer's thread calls it, before any snapshot that counts the line. A line that could not be written is tried again.
    """

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes one line, whole.

        Raises:
            OSError: it could not be written, not even a part of it.
        """

    def keep(self, count: int) -> None:
        """Drops all lines but the first `count`, because training repeats the epochs behind them.

        Raises:
            RunError: there are fewer lines, or one is damaged.
        """
