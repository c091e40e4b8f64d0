"""Writes run directories that nobody trained: the record of a golden run with other facts."""

import datetime
import json
import os
from pathlib import Path

from tests.helpers.paths import GOLDENS

GOLDEN = GOLDENS / "runs" / "0.1.0" / "tensorflow" / "interrupted"


def write_run(path: Path, hour: int, parent=None, *, status="accepted", files=True, content=None, **changes) -> Path:
    """Writes a run.

    Args:
        path: its directory.
        hour: when it was made, in hours.
        parent: the path of what it started from, a run or a file; None for a new model.
        status: of its record.
        files: False records no files of the parent, as earlier versions did.
        content: what its result holds, by default its path.
        changes: other fields of the record.
    """
    (path / "snapshots" / "step-00000400").mkdir(parents=True)
    write_result(path, str(path) if content is None else content)
    scores = {name: {"images": 40, "accuracy": 0.9, "loss": 0.2, "f1": 0.9} for name in ("all", "old", "new")}
    scores["classes"] = {"circle": {"images": 40, "recall": 0.9, "precision": 0.9, "f1": 0.9}}
    record = json.loads((GOLDEN / "run.json").read_text())
    record |= {"status": status, "created": when(hour), "generation": 0 if parent is None else 1}
    if status in {"accepted", "rejected"}:
        record |= {"result": {"step": 400, "which": "last", "scores": scores}, "best": None, "finished": when(hour)}
    if parent is not None:
        record |= {"parent": parent_record(path, parent, files=files), "before": scores}
    (path / "run.json").write_text(json.dumps(record | changes))
    return path


def write_result(path: Path, content: str) -> None:
    """Writes the snapshot of a run's result: a record that names what the arrays hold."""
    folder = path / "snapshots" / "step-00000400"
    (folder / "state.safetensors").write_text(content)
    (folder / "meta.json").write_text(json.dumps({"files": {"state.safetensors": {"sha256": content}}}))


def parent_record(path: Path, parent: Path, *, files: bool = True) -> dict:
    """Returns what a run records of its parent, as training does."""
    from types import SimpleNamespace

    from kresume.checkpoints.files import describe_files
    from kresume.runs import is_run, open_run

    run = open_run(parent) if is_run(parent) else None
    state = SimpleNamespace(source=str(parent), format="keras", step=400, records={})
    found = describe_files(state, run) if files else {}
    kind = "run" if run is not None else "keras"
    value = {"path": os.path.relpath(parent, path), "format": kind, "step": 400, "digest": "d" * 64}
    return value | ({"files": found} if files else {})


def when(hour: int) -> str:
    """Returns a time."""
    return (datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC) + datetime.timedelta(hours=hour)).isoformat()
