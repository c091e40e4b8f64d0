"""Reads and updates run directories. Their format is public: see docs/run-directory.md.

    run = open_run("runs/2-signs")
    run.status                      # "running", "interrupted", "accepted" or "rejected"

`run.json` is written when the run is made and replaced as a whole when its status changes. `events.jsonl` gets a line for
each event, `metrics.jsonl` one for each epoch. Paths inside are relative to the run's folder, so that the folder, or a
folder of runs, can be moved. This module imports neither Keras nor TensorFlow nor JAX.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kresume.addresses import as_address, public, resolved
from kresume.errors import RunError
from kresume.spelling import option
from kresume.storage import atomic, sealed
from kresume.values.record import RunRecord, Status

RECORD, EVENTS, MODEL = "run.json", "events.jsonl", "model.keras"
HELD = "held.safetensors"
ARCHITECTURE = "architecture.json"
ANSWERS = "answers"
AVERAGED = "averaged"
TEACHER, TEACHER_ARCHITECTURE = "teacher.safetensors", "teacher.json"
FINISHED = ("accepted", "rejected")
BROKE, WAITS = "file broke", "images wait"
"""Names of the events that an image could not be read, and that watched sources hold what this run does not train."""
MOST_WAITING = 50
"""Waiting images that an event names; it counts all."""
ASIDE = r"\.before-\d+$"
DAMAGED = (RunError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""Raised by a record of another form than expected."""


def now() -> str:
    """This moment in UTC, as ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, repr=False)
class Run:
    """A run directory, with the content of its `run.json` when it was read.

    Attributes:
        path: the directory.
        record: the content of `run.json`.
    """

    path: Path
    record: RunRecord

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<run {public(str(self.path))}: {self.status}, generation {self.generation}>"

    @property
    def status(self) -> Status:
        """Returns `"running"`, `"interrupted"`, `"accepted"` or `"rejected"`."""
        return self.record.status

    @property
    def finished(self) -> bool:
        """Returns True once the run has a result, accepted or not."""
        return self.status in FINISHED

    @property
    def generation(self) -> int:
        """Returns 0 for a first training, the parent's plus one otherwise."""
        return self.record.generation

    @property
    def snapshots(self) -> Path:
        """Returns the folder of its snapshots."""
        return self.path / "snapshots"

    @property
    def manifest(self) -> Path:
        """Returns the path of the table of its images."""
        return self.path / "images.parquet"

    @property
    def metrics(self) -> Path:
        """Returns the path of the file with one line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def architecture(self) -> Path:
        """Returns the path of the model's architecture, as Keras serializes it."""
        return self.path / ARCHITECTURE

    def read_architecture(self) -> dict[str, Any]:
        """Reads the model's architecture, as Keras serializes it.

        Raises:
            RunError: the file is gone, damaged, or was changed.
        """
        return read_sealed(self.architecture)

    @property
    def held(self) -> Path:
        """Returns the path of the slots of layers that train later, a file only if there are any."""
        return self.path / HELD

    @property
    def model(self) -> Path:
        """Returns the path of the result as a Keras file."""
        return self.path / MODEL

    def answers(self, which: Literal["before", "after"]) -> Path:
        """Returns the path of the parent's or the result's answers to the validation images; it may not exist."""
        return self.path / ANSWERS / f"{which}.parquet"

    @property
    def averaged(self) -> Path:
        """Returns the folder of the snapshot of an averaged result; it exists only with `--average`."""
        return self.path / AVERAGED

    @property
    def result_snapshots(self) -> Path:
        """Returns the folder that holds the snapshot of a finished run's result, under its step."""
        return self.averaged if self.record.result is not None and self.record.result.average else self.snapshots

    def result_step(self) -> int | None:
        """Returns the step of a finished run's result; None while it is unfinished."""
        return self.record.result.step if self.record.result else None

    def best_step(self) -> int | None:
        """Returns the step of a finished run's best epoch; None if no monitor chose one."""
        return self.record.best.step if self.record.best else None

    def why_no_best(self) -> str:
        """Returns why no epoch of the run is its best."""
        if not any(self.record.options.get(name) for name in ("monitor", "patience")):
            return f"it trained without {option('monitor')}"
        return "no epoch met its conditions" if self.finished else "no epoch is scored yet"

    def parent_path(self) -> Path | None:
        """Returns the parent's path, resolved against the run's folder; None without a parent."""
        parent = self.record.parent
        return resolved(parent.path, self.path) if parent else None

    def update(self, **changes: Any) -> Run:
        """Replaces `run.json`, with these fields changed.

        Returns:
            The run with the new record.
        """
        record = replace(self.record, **changes)
        write_record(self.path, record)
        return Run(self.path, record)

    def event(self, kind: str, **facts: Any) -> None:
        """Appends one line to `events.jsonl`."""
        line = {"time": now(), "event": kind, **facts}
        atomic.append_line(self.path / EVENTS, public(json.dumps(line, ensure_ascii=False)))

    def waiting(self) -> tuple[int, list[tuple[str, str]]]:
        """Returns what watched sources hold for the next generation, as the last look found it.

        Returns:
            `(count, rows)`: a row has the file or the class, and the reason; there may be fewer rows than counted.
        """
        last = (self.events(WAITS) or [{}])[-1]
        return int(last.get("count", 0)), [(str(name), str(reason)) for name, reason in last.get("first", ())]

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Reads the events of one kind, or all of them, oldest first."""
        lines = _json_lines(self.path / EVENTS, holding=f'"{kind}"' if kind else "")
        return [line for line in lines if isinstance(line, dict) and (kind is None or line.get("event") == kind)]


@dataclass(frozen=True)
class Unreadable:
    """A run directory whose `run.json` cannot be read.

    Attributes:
        path: the directory.
        reason: why.
    """

    path: str
    reason: str

    @property
    def has_result(self) -> bool:
        """Returns True if its training finished: the result is written before the record says so."""
        return (Path(self.path) / MODEL).exists()

    @property
    def begun(self) -> str:
        """Returns when its training began, by its first event, as ISO 8601; empty if unknown."""
        first = next((line for line in _json_lines(Path(self.path) / EVENTS) if isinstance(line, dict)), {})
        return str(first.get("time", ""))


@dataclass(frozen=True)
class Listed:
    """The runs of a folder, oldest first, and those that cannot be read."""

    runs: tuple[Run, ...]
    unreadable: tuple[Unreadable, ...]


def is_run(path: str | Path) -> bool:
    """Returns True if `path` is a run directory."""
    return (Path(path) / RECORD).is_file()


def write_record(folder: Path, record: RunRecord) -> None:
    """Writes `run.json`, sealed: with a digest of itself, and without passwords of addresses."""
    value = json.loads(public(json.dumps(record.as_dict())))
    sealed.write(folder / RECORD, value)


def open_run(path: str | Path) -> Run:
    """Reads a run.

    Raises:
        RunError: there is no run at `path`, or its record cannot be read, was changed or is of a later version.
    """
    if not is_run(Path(path)):
        raise RunError(
            f"no run at {as_address(path)}: a run is a directory with {RECORD} in it (`kresume log FOLDER` lists runs)"
        )
    record = Path(path) / RECORD
    return Run(record.parent, RunRecord.from_dict(read_sealed(record), str(record)))


def read_sealed(file: Path) -> dict[str, Any]:
    """Reads one of a run's files that `sealed.write` wrote.

    Raises:
        RunError: the file is gone, damaged, or was changed.
    """
    try:
        record = sealed.read(file)
    except sealed.Changed as error:
        raise RunError(str(error)) from error
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {file}: {error}; restore it from a copy of the run") from error
    if not isinstance(record, dict):
        raise RunError(f"{file} is no JSON object: restore it from a copy of the run")
    return record


def try_open(path: Path) -> Run | Unreadable:
    """Reads a run; a damaged record is a value, not an error."""
    try:
        return open_run(path)
    except DAMAGED as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return Unreadable(str(path), said if isinstance(error, RunError) else f"{type(error).__name__}: {said}")


def folders_of(folder: str | Path) -> list[Path]:
    """Returns the run directories directly in `folder`, without those that `--overwrite` moved aside."""
    folder = Path(folder)
    children = sorted(folder.iterdir()) if folder.is_dir() else []
    return [child for child in children if is_run(child) and not re.search(ASIDE, child.name)]


def list_runs(folder: str | Path) -> Listed:
    """Reads the runs directly in `folder`, by time of creation and number.

    One that cannot be read hides no other; the caller decides whether it can go on without it.
    """
    found = [try_open(each) for each in folders_of(folder)]
    runs = [each for each in found if isinstance(each, Run)]
    runs.sort(key=lambda run: (run.record.created, number_of(run.path.name)))
    return Listed(tuple(runs), tuple(each for each in found if isinstance(each, Unreadable)))


def dropped_by(run: Run) -> set[str]:
    """Returns the SHA-256s of images that a run dropped, or a run from it that a gate rejected.

    Whoever asks to forget an image does not ask for it on condition that the run is good.
    """
    own = os.path.realpath(run.path)
    siblings = (each for each in list_runs(run.path.absolute().parent).runs if each.status == "rejected")
    rejected = (each for each in siblings if os.path.realpath(each.parent_path() or "") == own)
    return {sha256 for each in (run, *rejected) for sha256 in each.record.dropped}


def number_of(name: str) -> int:
    """Returns the number with which a run's name begins; -1 without one."""
    match = re.match(r"(\d+)", name)
    return int(match[1]) if match else -1


def next_path(folder: str | Path, name: str) -> Path:
    """Returns `folder/<n>-<name>` with the next free number."""
    folder = Path(folder)
    taken = [number_of(child.name) for child in folder.iterdir()] if folder.is_dir() else []
    return folder / f"{max([0, *taken]) + 1}-{name}"


def move_aside(path: Path) -> Path:
    """Renames `path` to the first free `path.before-<n>`. Deletes nothing."""
    number = 1
    while (aside := path.with_name(f"{path.name}.before-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def without_number(name: str) -> str:
    """Returns the part of a run's name that its children keep: `"3-signs"` -> `"signs"`."""
    return re.sub(r"^\d+-", "", name) or name


def _json_lines(path: Path, *, holding: str = "") -> list[Any]:
    """Reads each line that holds a text as JSON; None for a line that a crash has torn."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError):
        return []
    values: list[Any] = []
    # Split at newlines only: a path may contain other characters that `splitlines` splits at.
    for line in text.split("\n"):
        if line and holding in line:
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError:
                values.append(None)
    return values


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a `metrics.jsonl`, up to a line that a crash has torn."""
    values = _json_lines(path)
    return values[: values.index(None)] if None in values else values


def keep_lines(path: Path, count: int) -> None:
    """Cuts a JSON-lines file down to its first `count` lines, atomically.

    Training writes the lines after the snapshot that it continues from again.

    Raises:
        RunError: the file has fewer lines than the snapshot says it had.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if len(lines) < count:
        raise RunError(
            f"{path} holds {len(lines)} lines, the snapshot was taken after {count}: lines were removed by hand? "
            "Restore the file from a copy"
        )
    for number, line in enumerate(lines[:count], 1):
        try:
            sound = json.loads(line)["epoch"] == number
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise RunError(
                f"line {number} of {path} is damaged: restore the file from a copy; the snapshots are not touched"
            )
    if len(lines) > count:
        atomic.write_bytes(path, b"".join(lines[:count]))


def unfinished(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs that can be continued, newest first."""
    return [run for run in reversed(runs) if not run.finished]
