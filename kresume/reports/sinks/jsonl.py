"""Writes the line of each epoch to `metrics.jsonl`, whose format is public: see docs/run-directory.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.storage import atomic


class JsonLines:
    """A file with one JSON object per line.

    Args:
        path: the file; created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line and waits until it is on the disk."""
        atomic.append_line(self.path, json.dumps(line, ensure_ascii=False))

    def keep(self, count: int) -> None:
        """Drops all lines but the first `count`."""
        runs.keep_lines(self.path, count)
