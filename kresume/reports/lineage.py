"""Lists runs with their data and results: the ancestors of one, or every run in a folder.

print(lineage("runs/"))
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kresume.errors import RunError
from kresume.runs import Run, is_run, list_runs, open_run, read_metrics


@dataclass(frozen=True)
class Generation:
    """One line of a lineage: a run as `kresume log` prints it."""

    path: str
    generation: int
    status: str
    created: str
    parent: str
    images: int
    added: int
    classes: int
    epochs: int
    before: float | None
    accuracy: float | None
    old: float | None
    new: float | None
    rate: float | None
    exports: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**vars(self), "exports": list(self.exports)}


@dataclass(frozen=True)
class Lineage:
    """Runs, newest first."""

    generations: tuple[Generation, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form: `{"runs": [...]}`, newest first."""
        return {"runs": [generation.as_dict() for generation in self.generations]}

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the cells of a table; see `COLUMNS`."""
        return [
            (
                run.path,
                run.status,
                run.created.replace("T", " ")[:16],
                run.parent or "-",
                f"{run.images:,}",
                f"{run.added:,}",
                str(run.classes),
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
    "classes",
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
    record, metrics = run.record, read_metrics(run.metrics)
    scores: Mapping[str, Any] = record.result.scores if record.result else metrics[-1] if metrics else {}
    return Generation(
        path=str(run.path),
        generation=run.generation,
        status=run.status,
        created=record.created,
        parent=Path(record.parent.path).name if record.parent else "",
        images=int(record.images.get("total", 0)),
        added=int(record.images.get("added", 0)),
        classes=len(record.card.classes),
        epochs=len(metrics),
        before=_accuracy(record.before or {}, "all"),
        accuracy=_accuracy(scores, "all"),
        old=_accuracy(scores, "old"),
        new=_accuracy(scores, "new"),
        rate=record.rate.peak,
        exports=tuple(
            f"{event['format']} {os.path.normpath(run.path / event['path'])}" for event in run.events("exported")
        ),
    )


def _accuracy(scores: Mapping[str, Any], subset: str) -> float | None:
    value = (scores.get(subset) or {}).get("accuracy")
    return None if value is None else float(value)


def lineage(path: str | Path) -> Lineage:
    """Lists a run and its ancestors, or every run in a folder, newest first.

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
