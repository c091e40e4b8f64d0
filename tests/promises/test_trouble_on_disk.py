"""Tests a disk that fails during training: training continues, the last snapshot stays, exit code 5."""

from pathlib import Path

import pytest

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.evaluation.score import flatten
from kresume.storage import atomic
from kresume.training.loop import scoring
from kresume.training.snapshot_policy import Retention
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    lines_without_time,
    result_arrays,
    run_training,
    stopped_by,
    trained,
)


def test_snapshots_that_cannot_be_written_do_not_end_the_training(monkeypatch, tmp_path, pictures):
    """Failed snapshots do not end training: the result is the same, each is named, the exit code is 5.

    Every snapshot but the first and last fails.
    """
    arguments = {"data": [str(pictures / "old")], **TINY}
    whole = trained(tmp_path / "whole", **arguments)
    write = snapshot.write_snapshot

    def failing(directory, step, groups, records):
        if 0 < step < 7:
            raise OSError(28, "No space left on device")
        return write(directory, step, groups, records)

    monkeypatch.setattr(snapshot, "write_snapshot", failing)
    result = run_training(out=str(tmp_path / "run"), snapshot_every="2", **arguments)
    assert result.exit_code == 5
    assert any("the disk is full" in failure for failure in result.failures)
    assert "not written" in (tmp_path / "run" / "events.jsonl").read_text()
    assert_same_bytes(result_arrays(whole), result_arrays(tmp_path / "run"))


@pytest.mark.one_backend(trains=True)
def test_lines_that_could_not_be_written_are_written_later(monkeypatch, tmp_path, pictures):
    """Metrics lines that could not be written are written with the next ones, each once."""
    arguments = {"data": [str(pictures / "old")], **TINY, "epochs": 4}
    whole = Path(run_training(out=str(tmp_path / "whole"), **arguments).run)
    append, calls = atomic.append_line, [0]

    def failing(path, line):
        if path.name == "metrics.jsonl":
            calls[0] += 1
            if calls[0] in (2, 3):
                raise OSError(5, "Input/output error")
        append(path, line)

    monkeypatch.setattr(atomic, "append_line", failing)
    result = run_training(out=str(tmp_path / "run"), **arguments)
    assert result.exit_code == 5
    assert lines_without_time(whole) == lines_without_time(tmp_path / "run")


@pytest.mark.one_backend(trains=True)
def test_a_run_that_was_taken_over_writes_nothing_more(monkeypatch, tmp_path, pictures):
    """A run that was taken over stops and writes nothing more: each commit checks the lock.

    The snapshots of the other process stay.
    """
    from kresume.errors import RunError
    from kresume.lock import Lock

    monkeypatch.setattr(Lock, "check", lambda self: (_ for _ in ()).throw(RunError("it was taken over")))
    with pytest.raises(RunError, match="taken over"):
        run_training(out=str(tmp_path / "run"), data=[str(pictures / "old")], **TINY, snapshot_every="1")
    assert [step for step, _ in snapshot.list_snapshots(tmp_path / "run" / "snapshots")] == [0]
    assert runs.open_run(tmp_path / "run").status == "running"  # as the other process will leave it


@pytest.mark.one_backend(trains=True)
def test_a_best_epoch_that_could_not_be_written_is_said(monkeypatch, tmp_path, pictures):
    """If the best epoch's snapshot was not written, the last step is the result; the exit code is 5.

    The run says so.
    """
    write = snapshot.write_snapshot
    losses = iter((2.0, 1.0, 3.0))

    def failing(directory, step, groups, records):
        if step > 0 and (records["best"] or {}).get("step") == step and records["epoch"] == 2:
            raise OSError(28, "No space left on device")
        return write(directory, step, groups, records)

    monkeypatch.setattr(snapshot, "write_snapshot", failing)
    monkeypatch.setattr(scoring, "flatten", lambda scores: {**flatten(scores), "val_loss": next(losses)})
    arguments = {"data": [str(pictures / "old")], **TINY, "epochs": 3, "monitor": "val_loss"}
    result = run_training(out=str(tmp_path / "run"), **arguments)
    assert result.exit_code == 5
    assert result.step == runs.read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert any("best epoch" in failure for failure in result.failures)


@pytest.mark.one_backend
def test_a_disk_that_does_not_answer_is_told_of_and_not_waited_for(tmp_path):
    """A stalled disk does not stop training; a warning repeats whenever the writer's patience ends."""
    import threading

    import numpy as np

    from kresume.training.loop.writer import RunWriter

    answer, told = threading.Event(), []
    writer = RunWriter(
        tmp_path, retention=Retention(1), guard=lambda: answer.wait(30), on_stall=told.append, stalled_seconds=0.05
    )
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


@pytest.mark.one_backend
def test_nothing_is_committed_after_a_snapshot_that_was_waited_for_is_broken(tmp_path):
    """A snapshot that waits for a broken one raises the error of that one, and is not written."""
    import threading

    import numpy as np

    from kresume.errors import NotFinite
    from kresume.training.loop.writer import RunWriter

    asked, answer = threading.Event(), threading.Event()
    writer = RunWriter(
        tmp_path,
        retention=Retention(1),
        guard=lambda: answer.wait(30),
        on_stall=lambda text: asked.set(),
        stalled_seconds=0,
    )
    records = {"phase": "training", "best": None, "callbacks": {}}
    broken, whole = ({"trainable": [np.array([value], np.float32)]} for value in (np.nan, 1))
    assert writer.submit(6, lambda buffers: broken, records, extra={}, must=True)
    threading.Thread(target=lambda: asked.wait(30) and answer.set()).start()  # the disk answers while 8 waits for it
    with pytest.raises(NotFinite) as raised:
        writer.submit(8, lambda buffers: whole, records, extra={}, must=True)
    assert raised.value.step == 6
    with pytest.raises(NotFinite):
        writer.join()
    assert snapshot.list_snapshots(tmp_path) == []


@pytest.mark.one_backend(trains=True)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, pictures):
    """A run path that cannot be written is one line with another suggestion, and leaves nothing.

    Tried: a run below a file, and a read-only disk.
    """
    from kresume.errors import RunError

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"a run cannot be created at .*give another folder with --out"):
        run_training(out=str(tmp_path / "file" / "run"), data=[str(pictures / "old")], **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.one_backend(trains=True)
def test_a_disk_that_is_full_for_the_arrays_is_a_disk_that_refuses(monkeypatch, tmp_path, pictures):
    """A full disk while arrays are written is recorded like any other disk error, with exit code 5.

    The library that writes the arrays has its own error class.
    """
    import safetensors.numpy
    from safetensors import SafetensorError

    save, calls = safetensors.numpy.save_file, [0]

    def full(arrays, path):
        calls[0] += 1
        if calls[0] == 2:
            raise SafetensorError("Error while serializing: I/O error: No space left on device")
        save(arrays, path)

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    arguments = {"data": [str(pictures / "old")], **TINY, "snapshot_every": "2"}
    result = run_training(out=str(tmp_path / "run"), **arguments)
    assert result.exit_code == 5
    assert any("the disk is full" in failure for failure in result.failures)


@pytest.mark.one_backend
def test_a_line_that_was_half_written_leaves_nothing(monkeypatch, tmp_path):
    """A half-written line leaves nothing: after a failed flush and a retry it exists once."""
    import os

    path, fsync = tmp_path / "metrics.jsonl", os.fsync
    atomic.append_line(path, "one")

    def failing(descriptor):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output"):
            atomic.append_line(path, "two")
    assert os.fsync is fsync
    assert path.read_text() == "one\n"
    atomic.append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"


@pytest.mark.one_backend(trains=True)
def test_a_best_snapshot_that_was_damaged_since_does_not_hold_the_run_up(monkeypatch, tmp_path, pictures):
    """If the best snapshot is damaged later, the last step is the result, and the exit code is 5.

    The run says why and does not fail at every start.
    """
    from kresume.training import finish

    take = finish._take_best

    def damaged(session):
        best = session.progress.best
        if best["step"] == session.progress.step:  # make another epoch the best one
            best = session.progress.best = {**best, "step": session.amount.boundaries[0]}
        path = snapshot.snapshot_path(session.run.snapshots, best["step"]) / snapshot.ARRAYS
        if path.exists():
            path.write_bytes(b"damaged")
        return take(session)

    monkeypatch.setattr(finish, "_take_best", damaged)
    result = run_training(out=str(tmp_path / "run"), data=[str(pictures / "old")], **TINY, monitor="val_loss")
    assert result.exit_code == 5
    assert any("the result is the last step" in failure for failure in result.failures)
    assert result.step == runs.read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]


@pytest.mark.one_backend(trains=True)
def test_a_stop_whose_snapshot_failed_does_not_say_that_it_was_written(monkeypatch, tmp_path, pictures):
    """SIGTERM on a full disk exits with 75 and does not claim that a snapshot was written."""
    import signal

    write = snapshot.write_snapshot

    def failing(directory, step, groups, records):
        if step:
            raise OSError(28, "No space left on device")
        return write(directory, step, groups, records)

    monkeypatch.setattr(snapshot, "write_snapshot", failing)
    arguments = {"data": [str(pictures / "old")], **TINY}
    stopped = stopped_by(
        monkeypatch, lambda keeper: keeper.progress.step == 1, signal.SIGTERM, out=str(tmp_path / "run"), **arguments
    )
    assert stopped.exit_code == 75
    assert "its snapshot could NOT be written" in str(stopped)
