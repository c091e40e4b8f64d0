"""Trains runs once and copies them, kills them at every snapshot, continues them and compares bytes."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import Stopped
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.training.loop import callbacks
from kresume.training.resume import train
from tests.helpers import quick_graphs
from tests.helpers.pictures import write_pictures

TINY = {"image_size": "10", "batch_size": 5, "epochs": 2, "val_split": 0.25}


def run_training(checkpoint=None, **arguments):
    """Trains in this process, without output, and returns the result."""
    return train(from_arguments(checkpoint, arguments), Reporter(quiet=True))


def trained(out, *, every_snapshot=False, **arguments) -> Path:
    """Returns a finished first run at `out`. The same options and images are trained once and copied, by any worker.

    For tests that start from a run and do not test how it trained.

    Args:
        out: the new run's path. Images below its folder, or below the current directory if it is relative, may be
            another copy of the same images in each test.
        every_snapshot: keeps a snapshot of every step.
        arguments: of `run_training`. With a checkpoint or code of its own the run is trained in any case.
    """
    out = Path(out)
    root = out.parent if out.is_absolute() else Path.cwd()
    own = {"checkpoint", "from_", "imports"} & arguments.keys() or ".py" in str(arguments.get("model"))
    asked = json.dumps(arguments, sort_keys=True, default=str).replace(str(root), "ROOT")
    how = f"{every_snapshot} {quick_graphs.optimized()}"
    key = hashlib.sha256(f"{how} {asked} {_digest_of_images(root, arguments)}".encode()).hexdigest()
    kept = Path(os.environ["KRESUME_TEST_STORE"]) / key
    if own or not kept.exists():
        with pytest.MonkeyPatch.context() as patch:
            if every_snapshot:
                patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
                patch.setattr("kresume.training.loop.teaching.forget_teacher", lambda run: None)
                arguments["snapshot_every"] = "1"
            run_training(out=str(out), **arguments)
        if not own:
            _keep(out, root, kept)
        return out
    shutil.copytree(kept / "run", out)
    before, its_out = json.loads((kept / "paths.json").read_text())
    move(out, before, str(root))
    _rename(out, its_out.replace(before, str(root)))
    return out


def _keep(out: Path, root: Path, kept: Path) -> None:
    """Copies a run with its `--out` and the folder that its paths begin with, unless another worker has done so."""
    copied = Path(tempfile.mkdtemp(dir=kept.parent))
    shutil.copytree(out, copied / "run")
    (copied / "paths.json").write_text(json.dumps([str(root), str(out)]))
    try:
        copied.rename(kept)
    except OSError:  # it exists by now
        shutil.rmtree(copied)


def _digest_of_images(root: Path, arguments) -> str:
    """Returns a digest of every file that `--data`, `--add` and `--val` name."""
    hasher = hashlib.sha256()
    for name in ("data", "add", "val"):
        for source in arguments.get(name) or ():
            top = root / source
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if path.is_file():
                    hasher.update(f"{path.relative_to(top)}\n".encode() + path.read_bytes())
    return hasher.hexdigest()


def family(folder: Path, pictures: Path) -> Path:
    """Fills a folder: images `old/` and `new/`, `more/` of an old and a new class, and a finished `parent`."""
    for name in ("old", "new"):
        shutil.copytree(pictures / name, folder / name)
    write_pictures(folder / "more", 5, 700, ("apple",))
    write_pictures(folder / "more", 3, 950, ("circle",))
    trained(folder / "parent", data=[str(folder / "old")], **TINY)
    return folder


def write_record(run: Path, record: dict) -> None:
    """Replaces `run.json` by a changed one, without the digest, as a user does who changes it."""
    record.pop("sha256", None)
    (run / "run.json").write_text(json.dumps(record))


def move(run: Path, before: str, after: str) -> None:
    """Replaces the root folder in every path of a run."""
    for name in ("run.json", "events.jsonl"):
        (run / name).write_text((run / name).read_text().replace(before, after))
    write_record(run, json.loads((run / "run.json").read_text()))
    table = pq.read_table(run / "images.parquet")
    paths = pc.replace_substring(table["path"], before, after)
    table = table.set_column(table.column_names.index("path"), table.schema.field("path"), paths.cast(pa.string()))
    pq.write_table(table, run / "images.parquet")


def _rename(run: Path, before: str) -> None:
    """Replaces a run's `--out` in its record."""
    record = json.loads((run / "run.json").read_text())
    for options, name in ((record["given"], "out"), (record["options"], "out"), (record["plan"]["options"], "--out")):
        options[name] = str(run)
    record["command"] = record["command"].replace(f"--out {shlex.quote(before)}", f"--out {shlex.quote(str(run))}")
    write_record(run, record)


def lines_without_time(path: Path) -> list[dict]:
    """Returns the lines of `metrics.jsonl` without their wall-clock fields."""
    wall_clock = {"time", "images_per_second", "waiting_for_images"}
    lines = runs.read_metrics(path / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in wall_clock} for line in lines]


def result_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns every array of the result's snapshot."""
    run = runs.open_run(path)
    return dict(snapshot.read_snapshot(snapshot.snapshot_path(run.result_snapshots, run.result_step())).arrays)


def assert_same_bytes(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Asserts that both hold the same names, types, shapes and bytes."""
    assert sorted(one) == sorted(other)
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.shape == other[name].shape, name
        assert array.tobytes() == other[name].tobytes(), name


def kill_at_every_snapshot(tmp_path, places=None, **arguments):
    """Trains once to the end, keeping all snapshots; then continues a copy killed after each of them.

    Args:
        places: indices of the snapshots to continue from; None for all.

    Returns:
        The names of the snapshots from which continuations were compared.
    """
    whole = trained(tmp_path / "whole", every_snapshot=True, **arguments)
    expected, expected_lines = result_arrays(whole), lines_without_time(whole)
    taken = snapshot.list_snapshots(whole / "snapshots")
    chosen = taken if places is None else [taken[place] for place in places]
    for number, (_, last) in enumerate(chosen):
        killed = tmp_path / f"killed-{number}"
        shutil.copytree(whole, killed)
        make_interrupted(killed, last.name)
        run_training(out=str(killed))
        assert_same_bytes(expected, result_arrays(killed))
        assert lines_without_time(killed) == expected_lines, last.name
        assert_same_model(whole, killed)
        assert answers_of(whole) == answers_of(killed)
        shutil.rmtree(killed)
    return [last.name for _, last in chosen]


def answers_of(path: Path) -> dict[str, bytes]:
    """Returns the bytes of a run's files of answers."""
    return {file.name: file.read_bytes() for file in (path / "answers").glob("*")}


def make_interrupted(path: Path, last: str) -> None:
    """Reverts a finished run to its state just after it had written the snapshot `last`."""
    later = False
    for _, folder in snapshot.list_snapshots(path / "snapshots"):
        if later:
            shutil.rmtree(folder)
        later = later or folder.name == last
    for name in ("model.keras", "evaluation.json", "answers/after.parquet"):
        (path / name).unlink(missing_ok=name.startswith("answers"))
    record = json.loads((path / "run.json").read_text())
    for name in ("result", "best", "finished"):
        record.pop(name, None)
    record["status"] = "running"
    write_record(path, record)


def stopped_by(monkeypatch, when, number=signal.SIGTERM, **arguments):
    """Trains until `when(keeper)` holds after a step, then simulates the signal; returns the exception."""
    step_done = callbacks.Keeper.on_train_batch_end

    def with_signal(keeper, batch, logs=None):
        if when(keeper):
            keeper.stop.signal = number
        step_done(keeper, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Keeper, "on_train_batch_end", with_signal)
        with pytest.raises(Stopped) as stopped:
            run_training(**arguments)
    return stopped.value


def assert_same_model(one: Path, other: Path) -> None:
    """Asserts that the weights in two results' `model.keras` have equal bytes."""
    from kresume.checkpoints.read import read_checkpoint

    assert_same_bytes(
        dict(read_checkpoint(one / "model.keras").arrays), dict(read_checkpoint(other / "model.keras").arrays)
    )
