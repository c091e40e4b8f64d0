"""A run in a bucket: the same command, the same bits; killed, continued elsewhere, extended and read there."""

import shutil
import time
from contextlib import suppress

import pytest

import kresume
from kresume import runs
from kresume.addresses import root
from kresume.errors import CheckpointError, RunError, UsageError
from kresume.reporter import Reporter
from kresume.reports.page.write import write_report
from kresume.staging import fetch
from kresume.staging import stage as staging
from kresume.staging.publish import Publication
from kresume.staging.usage import usage
from kresume.storage import atomic
from kresume.storage.stores import Bucket
from kresume.training.loop import callbacks
from tests.helpers.flaky_bucket import Died, bucket
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    lines_without_time,
    result_arrays,
    run_training,
    trained,
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns a function that makes this process another machine, with an empty disk."""

    def become(name):
        monkeypatch.setenv("KRESUME_STAGE", str(tmp_path / name))
        fetch._here.clear()
        monkeypatch.setattr("kresume.staging.bucket_lock.host_and_machine", lambda: name)

    become("one")
    fetch._here.clear()
    yield become
    fetch._here.clear()


def test_a_run_in_a_bucket_is_killed_and_continues_on_another_machine(tmp_path, pictures, machine, monkeypatch):
    """The bucket is slow and refuses now and then; the result has the bits of a run on a disk, and its lines."""
    given = {**TINY, "data": [str(pictures / "old")], "snapshot_every": "2"}
    expected = trained(tmp_path / "disk", **given)
    refused = {5, 6, 17, 30, 31, 32}
    bucket.reset(lambda count, name: "refuse" if count in refused and name == "put_file" else None, delay=0.002)
    step_done = callbacks.Keeper.on_train_batch_end

    def dying(keeper, batch, logs=None):
        step_done(keeper, batch, logs)
        if keeper.progress.step == 7:
            keeper.writer.wait()
            _wait_for("snapshots/step-00000006/meta.json")
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Keeper, "on_train_batch_end", dying)
        patch.setattr("kresume.lock.Lock.release", lambda lock: None)
        with pytest.raises(Died):
            run_training(out="flaky://b/runs/1-signs", **given)
    machine("two")
    result = run_training(out="flaky://b/runs/1-signs", take_over=True, **given)
    assert not result.failures
    shutil.rmtree(tmp_path / "two")
    machine("three")
    found = kresume.read_checkpoint("flaky://b/runs/1-signs")
    assert found.source == str(tmp_path / "three/flaky/b/runs/1-signs")
    place = tmp_path / "three/flaky/b/runs/1-signs"
    assert_same_bytes(result_arrays(expected), result_arrays(place))
    assert lines_without_time(expected) == lines_without_time(place)
    events = [event["event"] for event in runs.open_run(place).events()]
    assert events == ["started", "continued", "finished"]
    assert str(tmp_path / "one") not in (place / "run.json").read_text()
    assert not [name for name in Bucket("flaky://b/runs/1-signs").names() if name.startswith("lock")]
    with pytest.raises(RunError, match=r"^flaky://b/runs/1-signs is finished"):
        run_training(out="flaky://b/runs/1-signs", **given)


@pytest.fixture
def shelf(tmp_path, pictures, machine):
    """Copies a finished run to `flaky://b/runs/1-signs`; returns the run on the disk."""
    run = trained(tmp_path / "disk", **TINY, data=[str(pictures / "old")], snapshot_every="2")
    bucket.reset()
    store = Bucket("flaky://b/runs/1-signs")
    for path in run.rglob("*"):
        if path.is_file():
            store.send(path.relative_to(run).as_posix(), path)
    return run


@pytest.mark.one_backend(trains=True)
def test_runs_and_checkpoints_are_read_at_their_address(shelf):
    """A run, a folder of runs and a file have the arrays of the run on the disk, and messages name the address."""
    expected = result_arrays(shelf)
    for address in ("flaky://b/runs/1-signs", "flaky://b/runs", "flaky://b/runs/1-signs@last"):
        assert_same_bytes(expected, dict(kresume.read_checkpoint(address).arrays))
    plain = dict(kresume.read_checkpoint(shelf / "model.keras").arrays)
    assert_same_bytes(plain, dict(kresume.read_checkpoint("flaky://b/runs/1-signs/model.keras").arrays))
    with pytest.raises(CheckpointError, match="no checkpoint at flaky://b/runs/nowhere"):
        kresume.read_checkpoint("flaky://b/runs/nowhere")
    assert "* flaky://b/runs/1-signs  accepted" in str(kresume.lineage("flaky://b/runs"))
    bucket.reset(empty=False)
    assert kresume.read_checkpoint("flaky://b/runs/1-signs").step
    assert bucket.count == 0
    bucket.reset()
    fetch._here.clear()
    for gone in ("flaky://b/runs/1-signs", "flaky://b/runs/1-signs/model.keras"):
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            kresume.read_checkpoint(gone)


@pytest.mark.one_backend(trains=True)
def test_an_export_and_a_report_are_written_to_their_address(shelf):
    """An export is whole at its address, is not overwritten, and is recorded in the run there; a report lies in the run."""
    made = kresume.export("flaky://b/runs/1-signs", "flaky://b/exports/signs", format="weights-h5")
    assert made.path == "flaky://b/exports/signs"
    names = Bucket("flaky://b/exports/signs").names()
    assert "export.json" in names
    assert b'"exported"' in Bucket("flaky://b/runs/1-signs").read("events.jsonl")
    with pytest.raises(UsageError, match=r"^flaky://b/exports/signs exists already"):
        kresume.export("flaky://b/runs/1-signs", "flaky://b/exports/signs", format="weights-h5")
    with pytest.raises(UsageError, match=r"^flaky://b/runs/1-signs is a run"):
        kresume.export("flaky://b/runs/1-signs", "flaky://b/runs/1-signs", format="weights-h5")
    Bucket("flaky://b/runs/1-signs").remove("report.html")
    write_report("flaky://b/runs/1-signs")
    page = Bucket("flaky://b/runs/1-signs").read("report.html")
    assert str(root()).encode() not in page


@pytest.mark.one_backend
def test_the_next_version_in_a_bucket_leaves_the_others_alone(machine):
    """A new version and changed notes are copied, the mark of a whole version last; a removed version is removed there."""
    bucket.reset()
    store = Bucket("flaky://b/serving")
    for name in ("1/saved_model.pb", "1/export.json", "2/saved_model.pb", "models.config"):
        store.write(name, b"old")
    publication = Publication("flaky://b/serving")
    assert sorted(path.name for path in publication.folder.iterdir()) == ["1", "2", "models.config"]
    for name in ("3/saved_model.pb", "3/export.json", "3/variables/variables.index", "models.config"):
        atomic.write_bytes(publication.folder / name, b"new")
    shutil.rmtree(publication.folder / "1")
    bucket.reset(empty=False)
    publication.send(Reporter(quiet=True))
    assert {name: store.read(name) for name in store.names()} == {
        "2/saved_model.pb": b"old",
        "3/export.json": b"new",
        "3/saved_model.pb": b"new",
        "3/variables/variables.index": b"new",
        "models.config": b"new",
    }
    sent = [path.removeprefix("flaky://b/serving/") for name, path in bucket.log if name == "put_file"]
    assert sent[-2:] == ["3/saved_model.pb", "3/export.json"]
    publication = Publication("flaky://b/serving")
    publication.folder.rename(publication.folder.with_name("serving.before-1"))  # as --overwrite does
    atomic.write_bytes(publication.folder / "export.json", b"newer")
    publication.send(Reporter(quiet=True))
    assert list(store.names()) == ["export.json"]
    assert len(Bucket("flaky://b/serving.before-1").names()) == 5


@pytest.mark.one_backend(trains=True)
def test_a_run_on_a_drive_trains_on_the_disk_and_its_child_finds_it(tmp_path, pictures, machine, monkeypatch):
    """The drive has the whole run at the end, with equal bits; paths in it are those of the drive."""
    given = {**TINY, "data": [str(pictures / "old")], "snapshot_every": "2"}
    expected = trained(tmp_path / "disk", **given)
    drive = tmp_path / "drive"
    monkeypatch.setattr("kresume.staging.stage.is_slow_drive", lambda path: path.startswith(str(drive)))
    result = run_training(out=str(drive / "1-signs"), **given)
    assert not result.failures
    assert_same_bytes(result_arrays(expected), result_arrays(drive / "1-signs"))
    assert not list(drive.rglob("lock*"))
    with pytest.raises(RunError, match=f"^{drive}/1-signs is finished"):
        run_training(out=str(drive / "1-signs"), **given)
    shutil.rmtree(tmp_path / "one")
    run_training(drive / "1-signs", add=[str(pictures / "new")], out=str(drive / "2-signs"), epochs=1)
    child = runs.open_run(drive / "2-signs")
    assert child.record.parent.path == "../1-signs"
    assert child.parent_path() == drive / "1-signs"
    assert str(tmp_path / "one") not in (drive / "2-signs/run.json").read_text()
    assert "(unchanged)" in str(kresume.lineage(drive))


@pytest.mark.one_backend
def test_what_a_bucket_refused_at_the_end_is_copied_by_the_same_command(machine, monkeypatch):
    """The end of a run is not lost with the network: it is named, kept on this machine, and copied at the next start.

    Until then its stage counts as one that may not be removed.
    """
    bucket.reset()
    monkeypatch.setattr(staging, "PATIENCE_SECONDS", 0.0)
    quiet = Reporter(quiet=True)
    with staging.opened("flaky://b/runs/9", quiet) as stage:
        atomic.write_json(stage.folder / "run.json", {"status": "running"})
        stage.begin()
        bucket.reset(lambda count, name: "refuse" if name == "pipe_file" else None, empty=False)
        atomic.write_bytes(stage.folder / "model.keras", b"the result")
        atomic.write_json(stage.folder / "run.json", {"status": "accepted"})
    assert "the end of flaky://b/runs/9" in stage.left
    assert "the bucket refuses" in stage.left
    assert "model.keras" not in Bucket("flaky://b/runs/9").names()
    found = usage()
    assert found.unwritten == ("flaky://b/runs/9",)
    assert found.bytes > len(b"the result")
    assert found.folder == root()
    bucket.reset(empty=False)
    with suppress(RunError), staging.opened("flaky://b/runs/9", quiet) as stage:
        assert (stage.folder / "model.keras").read_bytes() == b"the result"
        raise RunError("the run is finished")
    assert Bucket("flaky://b/runs/9").read("model.keras") == b"the result"
    assert b"accepted" in Bucket("flaky://b/runs/9").read("run.json")
    assert usage().unwritten == ()


def _wait_for(name):

    for _ in range(200):
        if name in Bucket("flaky://b/runs/1-signs").names():
            return
        time.sleep(0.05)
    pytest.fail(f"{name} never came")
