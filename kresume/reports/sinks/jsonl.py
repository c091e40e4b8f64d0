"""Writes the line of each epoch to `metrics.jsonl`, whose format is public: see docs/run-directory.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.reports.sinks import Entry, Line
from kresume.storage import atomic


class JsonLines:
    """A file with one JSON object per line.

    Args:
        path: the file; created with the first line.
    """

    name = "metrics.jsonl"
    counted = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, entry: Entry) -> None:
        """Appends a line and waits until it is on the disk."""
        if isinstance(entry, Line):
            atomic.append_line(self.path, json.dumps(_numbers(entry.facts), ensure_ascii=False, allow_nan=False))

    def keep(self, lines: int, step: int) -> None:
        """Drops all but the first lines."""
        runs.keep_lines(self.path, lines)

    def close(self, status: str) -> None:
        """Does nothing: every line is on the disk."""


def _numbers(value: Any) -> Any:
    """Replaces what JSON has no number for, such as a metric of the user that is NaN, by null."""
    if isinstance(value, Mapping):
        return {name: _numbers(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
