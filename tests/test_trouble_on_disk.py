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
