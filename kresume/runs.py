"""A run on disk, and its lineage. The directory's format is public: see docs/run-directory.md.

    run = open_run("runs/2-signs")
    run.status                      # "running", "interrupted", "accepted" or "rejected"
    print(lineage("runs/"))

`run.json` is written once when the run is made and replaced, whole, when its status changes. What happened to it is
appended to `events.jsonl`, what it learned to `metrics.jsonl`. Paths inside are relative to the run's folder, so that the
folder (and a folder of runs) can be moved. Nothing here imports Keras, TensorFlow or JAX.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kresume import files
from kresume.errors import RunError

RECORD = "run.json"
FORMAT = 1
FINISHED = ("accepted", "rejected")
ASIDE = r"\.before-\d+$"

Status = Literal["running", "interrupted", "accepted", "rejected"]


def now() -> str:
    """This moment in UTC, as ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Run:
    """A run directory and what its `run.json` said when it was read.

    Attributes:
        path: the directory.
        record: the content of `run.json`.
    """

    path: Path
    record: Mapping[str, Any]

    @property
    def status(self) -> Status:
        """`"running"`, `"interrupted"`, `"accepted"` or `"rejected"`."""
        status: Status = self.record["status"]
        return status

    @property
    def finished(self) -> bool:
        """True once the result stands (whatever the gates said of it)."""
        return self.status in FINISHED

    @property
    def generation(self) -> int:
        """0 for a first training, the parent's plus one otherwise."""
        return int(self.record["generation"])

    @property
    def snapshots(self) -> Path:
        """The folder of its snapshots."""
        return self.path / "snapshots"

    @property
    def manifest(self) -> Path:
        """The table of its images."""
        return self.path / "images.parquet"

    @property
    def metrics(self) -> Path:
        """One line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        """The result as a Keras file."""
        return self.path / "model.keras"

    def result_step(self) -> int | None:
        """The step of the snapshot that a finished run stands for; None while it is unfinished."""
        result = self.record.get("result")
        return int(result["step"]) if result else None

    def best_step(self) -> int | None:
        """The step of the pinned best snapshot, None if no monitor chose one yet."""
        best = self.record.get("best")
        return int(best["step"]) if best else None

    def parent_path(self) -> Path | None:
        """Where the parent stood when the run was made, resolved against the run's folder."""
        parent = self.record.get("parent")
        return Path(os.path.normpath(self.path / parent["path"])) if parent else None

    def update(self, **changes: Any) -> Run:
        """Replaces `run.json` with these fields changed and returns the run as it now is."""
        record = {**self.record, **changes}
        files.write_json(self.path / RECORD, record)
        return Run(self.path, record)

    def event(self, kind: str, **facts: Any) -> None:
        """Appends one line to `events.jsonl`."""
        line = {"time": now(), "event": kind, **facts}
        files.append_line(self.path / "events.jsonl", json.dumps(line, ensure_ascii=False))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, oldest first."""
        lines = [line for line in _json_lines(self.path / "events.jsonl") if isinstance(line, dict)]
        return [line for line in lines if line.get("event") == kind]


def is_run(path: str | Path) -> bool:
    """True if `path` is a run directory."""
    return (Path(path) / RECORD).is_file()


def open_run(path: str | Path) -> Run:
    """Reads a run.

    Raises:
        RunError: there is no run at `path`, or its record cannot be read or is of a later version.
    """
    path = Path(path)
    if not is_run(path):
        raise RunError(f"no run at {path}: a run is a directory with {RECORD} in it (`kresume log FOLDER` lists runs)")
    try:
        record = files.read_json(path / RECORD)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path / RECORD}: {error}; restore it from a copy of the run") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise RunError(f"{path / RECORD} is no record of a run: it has no number `format`; restore it from a copy")
    if record["format"] > FORMAT:
        raise RunError(
            f"{path} was written by a later kresume (run format {record['format']}, this one reads up to {FORMAT}): "
            "upgrade with `pip install -U kresume`"
        )
    return Run(path, record)


def list_runs(folder: str | Path) -> list[Run]:
    """The runs directly in `folder`, oldest first: by time of creation, then by the number in the name.

    Those that `--overwrite` moved aside are not among them: nobody means one by naming the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    runs = [open_run(child) for child in folder.iterdir() if is_run(child) and not re.search(ASIDE, child.name)]
    return sorted(runs, key=lambda run: (str(run.record.get("created", "")), _number(run.path.name)))


def _number(name: str) -> int:
    match = re.match(r"(\d+)", name)
    return int(match[1]) if match else -1


def next_path(folder: str | Path, name: str) -> Path:
    """`folder/<n>-<name>` with the next free number. A number is never used twice while its run stands."""
    folder = Path(folder)
    taken = [_number(child.name) for child in folder.iterdir()] if folder.is_dir() else []
    return folder / f"{max([0, *taken]) + 1}-{name}"


def move_aside(path: Path) -> Path:
    """Renames what is at `path` to the first free `path.before-<n>`; nothing is ever deleted."""
    number = 1
    while (aside := path.with_name(f"{path.name}.before-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def without_number(name: str) -> str:
    """`"3-signs"` -> `"signs"`: the part of a run's name that its children keep."""
    return re.sub(r"^\d+-", "", name) or name


def _json_lines(path: Path) -> list[Any]:
    """What each line holds; None for one that a crash has torn."""
    if not path.is_file():
        return []
    values: list[Any] = []
    # By the newline alone: a path may hold what else Python takes for the end of a line.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if line:
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError:
                values.append(None)
    return values


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, up to one that a crash has torn: what would follow it cannot be of the same run."""
    values = _json_lines(path)
    return values[: values.index(None)] if None in values else values


def keep_lines(path: Path, count: int) -> None:
    """Cuts a JSON-lines file down to its first `count` lines, atomically.

    The lines after the snapshot that is continued from will be written again, each once.

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
        files.write_bytes(path, b"".join(lines[:count]))


@dataclass(frozen=True)
class Generation:
    """One line of a lineage: what `kresume log` prints of a run."""

    path: str
    generation: int
    status: str
    created: str
    parent: str
    images: int
    added: int
    epochs: int
    before: float | None
    accuracy: float | None
    old: float | None
    new: float | None
    rate: float | None
    exports: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**vars(self), "exports": list(self.exports)}


@dataclass(frozen=True)
class Lineage:
    """Runs, newest first."""

    generations: tuple[Generation, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: `{"runs": [...]}`, newest first."""
        return {"runs": [generation.as_dict() for generation in self.generations]}

    def rows(self) -> list[tuple[str, ...]]:
        """Cells for a table; see `COLUMNS`."""
        return [
            (
                run.path,
                run.status,
                run.created.replace("T", " ")[:16],
                run.parent or "-",
                f"{run.images:,}",
                f"{run.added:,}",
                str(run.epochs),
                "-" if run.rate is None else f"{run.rate:g}",
                _percent(run.before),
                _percent(run.accuracy),
                _percent(run.old),
                _percent(run.new),
                _newest(run.exports),
            )
            for run in self.generations
        ]

    def __str__(self) -> str:
        rows = [COLUMNS, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


COLUMNS = (
    "run",
    "status",
    "created",
    "parent",
    "images",
    "added",
    "epochs",
    "rate",
    "before",
    "after",
    "old",
    "new",
    "exports",
)


def _newest(exports: Sequence[str]) -> str:
    more = f" and {len(exports) - 2:,} before" if len(exports) > 2 else ""
    return (", ".join(reversed(exports[-2:])) or "-") + more


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _generation(run: Run) -> Generation:
    metrics = read_metrics(run.metrics)
    result = run.record.get("result") or {}
    scores: Mapping[str, Any] = result.get("scores") or (metrics[-1] if metrics else {})
    before: Mapping[str, Any] = run.record.get("before") or {}
    counts = run.record.get("images", {})
    parent = run.record.get("parent")
    return Generation(
        path=str(run.path),
        generation=run.generation,
        status=run.status,
        created=str(run.record.get("created", "")),
        parent=Path(parent["path"]).name if parent else "",
        images=int(counts.get("total", 0)),
        added=int(counts.get("added", 0)),
        epochs=len(metrics),
        before=_accuracy(before, "all"),
        accuracy=_accuracy(scores, "all"),
        old=_accuracy(scores, "old"),
        new=_accuracy(scores, "new"),
        rate=run.record.get("rate", {}).get("peak"),
        exports=tuple(
            f"{event['format']} {os.path.normpath(run.path / event['path'])}" for event in run.events("exported")
        ),
    )


def _accuracy(scores: Mapping[str, Any], subset: str) -> float | None:
    value = (scores.get(subset) or {}).get("accuracy")
    return None if value is None else float(value)


def lineage(path: str | Path) -> Lineage:
    """The ancestry of a run, or every run in a folder, newest first.

    Raises:
        RunError: there is no run at `path` and none in it.
    """
    path = Path(path)
    if is_run(path):
        chain: list[Run] = [open_run(path)]
        seen = {chain[0].path.resolve()}
        while (parent := chain[-1].parent_path()) is not None:
            folder = parent if is_run(parent) else parent.parent  # the parent may be a run's own model.keras
            if not is_run(folder) or folder.resolve() in seen:
                break
            seen.add(folder.resolve())
            chain.append(open_run(folder))
        return Lineage(tuple(_generation(run) for run in chain))
    runs = list_runs(path)
    if not runs:
        raise RunError(f"no run at {path} and none in it: give a run's directory or the folder that holds them")
    return Lineage(tuple(_generation(run) for run in reversed(runs)))


def unfinished(runs: Sequence[Run]) -> list[Run]:
    """Those that can be continued, newest first."""
    return [run for run in reversed(runs) if not run.finished]
