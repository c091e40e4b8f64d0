"""A disk that fails while training: training goes on, the last good snapshot stands, the run says so and ends with 5."""

from pathlib import Path

import pytest

from kresume import files, runs
from kresume.checkpoints import snapshot
from tests.support import TINY, assert_same_bytes, lines_without_time, result_arrays, run_training


def test_snapshots_that_cannot_be_written_do_not_end_the_training(monkeypatch, tmp_path, pictures):
    """Every snapshot but the first and last fails: the result is the same, the failures are named, exit code 5."""
    arguments = {"data": [str(pictures / "old")], **TINY, "snapshot_every": "2"}
    whole = Path(run_training(out=str(tmp_path / "whole"), **arguments).run)
    write = snapshot.write_snapshot

    def failing(directory, step, groups, records):
        if 0 < step < 7:
            raise OSError(28, "No space left on device")
        return write(directory, step, groups, records)

    monkeypatch.setattr(snapshot, "write_snapshot", failing)
    result = run_training(out=str(tmp_path / "run"), **arguments)
    assert result.exit_code == 5
    assert any("No space left" in failure for failure in result.failures)
    assert "not written" in (tmp_path / "run" / "events.jsonl").read_text()
    assert_same_bytes(result_arrays(whole), result_arrays(tmp_path / "run"))


def test_lines_that_could_not_be_written_are_written_later(monkeypatch, tmp_path, pictures):
    """A drive that is away while an epoch ends: its line comes with the next, each once."""
    arguments = {"data": [str(pictures / "old")], **TINY, "epochs": 4}
    whole = Path(run_training(out=str(tmp_path / "whole"), **arguments).run)
    append, calls = files.append_line, [0]

    def failing(path, line):
        if path.name == "metrics.jsonl":
            calls[0] += 1
            if calls[0] in (2, 3):
                raise OSError(5, "Input/output error")
        append(path, line)

    monkeypatch.setattr(files, "append_line", failing)
    result = run_training(out=str(tmp_path / "run"), **arguments)
    assert result.exit_code == 5
    assert lines_without_time(whole) == lines_without_time(tmp_path / "run")


def test_a_run_that_was_taken_over_writes_nothing_more(monkeypatch, tmp_path, pictures):
    """Each commit checks the lock: the process that lost the run stops, the other's snapshots stay."""
    from kresume.errors import RunError
    from kresume.lock import Lock

    monkeypatch.setattr(Lock, "check", lambda self: (_ for _ in ()).throw(RunError("it was taken over")))
    with pytest.raises(RunError, match="taken over"):
        run_training(out=str(tmp_path / "run"), data=[str(pictures / "old")], **TINY, snapshot_every="1")
    assert [step for step, _ in snapshot.list_snapshots(tmp_path / "run" / "snapshots")] == [0]
    assert runs.open_run(tmp_path / "run").status == "interrupted"


def test_a_best_epoch_that_could_not_be_written_is_said(monkeypatch, tmp_path, pictures):
    """The disk refused the best epoch's snapshot: the last step is the result, the run says so and ends with 5."""
    write = snapshot.write_snapshot

    def failing(directory, step, groups, records):
        if step > 0 and (records["best"] or {}).get("step") == step and records["epoch"] < 4:
            raise OSError(28, "No space left on device")
        return write(directory, step, groups, records)

    monkeypatch.setattr(snapshot, "write_snapshot", failing)
    arguments = {
        "data": [str(pictures / "old")],
        **TINY,
        "epochs": 5,
        "monitor": "loss",
        "lr": 3.0,
        "lr_schedule": "constant",
    }
    arguments["optimizer"] = "sgd"
    result = run_training(out=str(tmp_path / "run"), **arguments)
    best = min(runs.read_metrics(tmp_path / "run" / "metrics.jsonl"), key=lambda line: line["loss"])
    if best["epoch"] < 4:  # the first four epochs' best snapshots were refused
        assert result.exit_code == 5
        assert result.step == runs.read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
        assert any("best epoch" in failure for failure in result.failures)
    else:
        assert result.step == best["step"]


def test_a_disk_that_does_not_answer_is_told_of_and_not_waited_for(tmp_path):
    """While the disk stalls training goes on; it is said again each time the patience of the writer has passed."""
    import threading

    import numpy as np

    from kresume.training.snapshots import RunWriter

    answer, told = threading.Event(), []
    writer = RunWriter(tmp_path, keep=1, guard=lambda: answer.wait(30), on_stall=told.append, stalled_seconds=0.05)
    groups = {"trainable": [np.ones(3, np.float32)]}
    records = {"phase": "training", "best": None, "callbacks": {}}
    assert writer.submit(1, lambda buffers: groups, records, extra={}, must=True)
    assert not writer.submit(2, lambda buffers: groups, records, extra={}, must=False)
    while len(told) < 2:
        writer.tell_of_stall()
    answer.set()
    writer.join()
    assert "has not answered for 0 s (snapshot of step 1)" in told[0]
    assert [step for step, _ in snapshot.list_snapshots(tmp_path)] == [1]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, pictures):
    """A run below a file, or on a read-only disk: what, where, and another place; no half of a run."""
    from kresume.errors import RunError

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"no run can be made at .*give another place with --out"):
        run_training(out=str(tmp_path / "file" / "run"), data=[str(pictures / "old")], **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
