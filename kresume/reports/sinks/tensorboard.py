"""Writes the curves of a training for TensorBoard, without TensorFlow: `tensorboard --logdir runs`.

A folder for each group of images, so that old, new and all are curves of one chart: `tensorboard/old` has the tags `accuracy`,
`loss` and `f1` of `old.accuracy`, `old.loss` and `old.f1`. `tensorboard/train` has what Keras logged, and under `step/` what
was seen within the epochs. `tensorboard/all` has `recall/NAME` for each class as well.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.reports.sinks import Entry, Line, Point, event_files

GROUPS = ("old", "new", "all")
TRAIN = "train"
NOT_CURVES = frozenset({"epoch", "step", "position", "old", "new", "all", "classes", "shares", "time"})
WITHIN = "step/"
"""Prefix of tags of moments within an epoch."""
MOST_CLASSES = 100


class TensorBoard:
    """Event files of a run, one for each process and group.

    A file is named after the step at which its process began. What a process repeats is removed from the files of earlier ones.

    Args:
        folder: `tensorboard/` of the run.
        metrics: its `metrics.jsonl`, from which lines are taken that a process could not write.
    """

    name = "tensorboard"
    counted = False

    def __init__(self, folder: Path, metrics: Path) -> None:
        self.folder = folder
        self.metrics = metrics
        self._begun = 0

    def write(self, entry: Entry) -> None:
        """Appends the events of an entry."""
        if isinstance(entry, Line):
            events = _of_line(entry.facts)
        elif isinstance(entry, Point):
            values = {f"{WITHIN}{name}": value for name, value in entry.values.items()}
            events = {TRAIN: [event_files.scalars(entry.step, entry.time, values)]}
        else:
            events = {
                group: [event_files.pictures(entry.step, time.time(), tag, image) for tag, image in images]
                for group, images in entry.pictures.items()
            }
        for group, found in events.items():
            if found:
                event_files.append(self._file(group), found)

    def keep(self, lines: int, step: int) -> None:
        """Removes the events of what training repeats, and adds those of lines that are missing."""
        kept = runs.read_metrics(self.metrics)[:lines]
        last = int(kept[-1]["step"]) if kept else -1
        there: dict[str, int] = {}
        for path in sorted(self.folder.glob("*/events.out.tfevents.*")):
            if _first_step(path) >= step:
                path.unlink()
                continue
            event_files.keep_events(path, lambda event: _is_kept(event, step, last))
            steps = [event.step for event in event_files.read(path) if _is_of_line(event)]
            there[path.parent.name] = max([there.get(path.parent.name, -1), *steps])
        self._begun = step
        for line in kept:
            for group, found in _of_line(line).items():
                if found and int(line["step"]) > there.get(group, -1):
                    event_files.append(self._file(group), found)

    def close(self, status: str) -> None:
        """Does nothing: every entry is in its file."""

    def _file(self, group: str) -> Path:
        path = self.folder / group / f"events.out.tfevents.{self._begun:010d}.kresume"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            event_files.append(path, event_files.start(self._begun + 1 if self._begun else 0, time.time()))
        return path


def _first_step(path: Path) -> int:
    return int(path.name.split(".")[3])


def _is_of_line(event: Any) -> bool:
    """Returns True for the scalars of an epoch."""
    return any(not value.tag.startswith(WITHIN) and not value.HasField("image") for value in event.summary.value)


def _is_kept(event: Any, step: int, last: int) -> bool:
    return bool(event.step <= (last if _is_of_line(event) else step))


def _of_line(line: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the events of an epoch by group."""
    step, when = int(line["step"]), datetime.datetime.fromisoformat(line["time"]).timestamp()
    values = {TRAIN: {name: value for name, value in line.items() if name not in NOT_CURVES}}
    values |= {group: {name: value for name, value in line[group].items() if name != "images"} for group in GROUPS}
    if len(line["classes"]) <= MOST_CLASSES:
        values["all"] |= {f"recall/{name}": facts.get("recall") for name, facts in line["classes"].items()}
    numbers = {
        group: {tag: float(value) for tag, value in tags.items() if _is_number(value)} for group, tags in values.items()
    }
    return {group: [event_files.scalars(step, when, tags)] for group, tags in numbers.items() if tags}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
