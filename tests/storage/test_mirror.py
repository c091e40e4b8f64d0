"""Copying a run behind its training: what is at the place is a state of the run, whenever the copying ends."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from kresume.checkpoints import snapshot
from kresume.errors import RunError
from kresume.reporter import Reporter
from kresume.staging.fetch import fetch
from kresume.storage import atomic, capture, mirror
from kresume.storage.mirror import Known, Mirror
from kresume.storage.stores import Bucket, Mount, is_slow_drive
from tests.helpers.flaky_bucket import Died, bucket

pytestmark = pytest.mark.one_backend
QUIET = Reporter(quiet=True)


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """Leaves out what protects from a power failure: it takes most of the time."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def life(run):
    """Yields after each change of a run, as training makes them: snapshots, lines, a status, fewer snapshots at the end."""
    (run / "snapshots").mkdir(parents=True)
    atomic.write_bytes(run / "images.parquet", b"the images")
    _snapshot(run, 0, 0)
    _record(run, "running")
    yield 0
    for step in (1, 2, 3):
        atomic.append_line(run / "metrics.jsonl", json.dumps({"epoch": step}))
        _snapshot(run, step, step)
        snapshot.prune_snapshots(run / "snapshots", 1, set())
        yield step
    _snapshot(run, 3, 3, value=7.0)  # the same step again, with other bits: another machine's
    yield 3
    atomic.write_bytes(run / "model.keras", b"the model" * 100)
    _record(run, "accepted", result=3)
    snapshot.prune_snapshots(run / "snapshots", 0, {3})
    yield 3


def _snapshot(run, step, lines, value=1.0):
    arrays = {"trainable": [np.full(5, value * step)]}
    snapshot.write_snapshot(run / "snapshots", step, arrays, {"phase": "epoch", "lines": lines})


def _record(run, status, **facts):
    atomic.write_json(run / "run.json", {"status": status, **facts})


def copier(run, store, known=None, **options):
    """Returns a mirror that links to a folder beside the run."""
    return Mirror(run, store, "me", known or Known(), **{"guard": lambda: None, **options})


def check(place, reached):
    """Asserts that a fetched run is one that can be continued, and is at most one state behind."""
    if not (place / "run.json").is_file():
        assert reached == 0
        return
    record = json.loads((place / "run.json").read_text())
    state, skipped = snapshot.newest_snapshot(place / "snapshots")
    assert not skipped
    assert state.step in {reached, reached - 1}
    lines = (place / "metrics.jsonl").read_bytes().splitlines() if state.records["lines"] else []
    assert len(lines) >= state.records["lines"]
    assert (place / "images.parquet").read_bytes() == b"the images"
    if record["status"] == "accepted":
        assert (place / "model.keras").read_bytes() == b"the model" * 100
        assert state.step == record["result"]


def contents(folder):
    """Returns the bytes of every file that is copied."""
    return {name: path.read_bytes() for name, path in capture.files_of(folder)}


def lived(folder, store):
    """Copies every state of a run; returns whether the process ended, and the state that it had reached."""
    reached = 0
    mirrored = copier(folder, store)
    for reached in life(folder):
        try:
            mirrored.copy()
        except Died:
            return True, reached
    return False, reached


def test_a_process_that_ends_in_any_operation_leaves_a_run_that_continues(tmp_path):
    """Whenever the copying ends, what is there is the last copied state or the one before.

    Another machine that goes on from there, and the same machine with its stage, make the place equal to what they have.
    """
    bucket.reset()
    lived(tmp_path / "whole", Bucket("flaky://b/run"))
    operations = bucket.count
    assert operations > 30
    for number in range(1, operations + 1):
        bucket.reset(lambda count, name, number=number: "die" if count == number else None)
        store = Bucket("flaky://b/run")
        run, place = tmp_path / f"run-{number}", tmp_path / f"place-{number}"
        died, reached = lived(run, store)
        assert died
        bucket.reset(empty=False)
        known = fetch(store, place, QUIET)
        check(place, reached)
        before = contents(place)
        copier(place, store, known).copy()
        fetch(store, place, QUIET)
        assert contents(place) == before
        copier(run, store, Known(files=mirror.read_marker(store).get("files", {}))).copy()
        fetch(store, place, QUIET)
        assert contents(place) == contents(run)
        shutil.rmtree(run)
        shutil.rmtree(place)


def test_a_place_that_refuses_now_and_then_gets_everything(tmp_path):
    """Refused operations and lost answers are tried again, until the place equals the run."""
    draw = random.Random(3)
    bucket.reset(lambda count, name: draw.choice([None, None, "refuse", "lose"]))
    store = Bucket("flaky://b/run")
    run = tmp_path / "run"
    mirrored = copier(run, store)
    for _ in life(run):
        for _ in range(200):
            try:
                mirrored.copy()
                break
            except OSError:
                continue
        else:
            pytest.fail("it never got through")
    bucket.reset(empty=False)
    fetch(store, tmp_path / "place", QUIET)
    assert contents(tmp_path / "place") == contents(run)
    assert sorted(mirror.read_marker(store)["files"]) == sorted(contents(run))


def test_the_thread_copies_behind_and_says_when_a_place_refuses(tmp_path, monkeypatch):
    """A training is told of a place that takes nothing, is not stopped by it, and everything is there at the end."""
    monkeypatch.setattr(mirror, "TELL_AFTER", 0.0)
    told = []
    refusing = [True]
    bucket.reset(lambda count, name: "refuse" if refusing[0] and name.startswith("p") else None)
    run = tmp_path / "run"
    mirrored = copier(run, Bucket("flaky://b/run"), tell=told.append, pauses=(0.01,))
    mirrored.start()
    for _ in life(run):
        pass
    assert not mirrored.finish(0.0)
    assert "the bucket refuses" in mirrored.trouble
    assert "flaky://b/run has taken nothing" in told[0]
    refusing[0] = False
    assert mirrored.finish(60.0)
    assert "takes files again" in told[-1]
    fetch(Bucket("flaky://b/run"), tmp_path / "place", QUIET)
    assert contents(tmp_path / "place") == contents(run)


def test_a_process_that_lost_the_place_copies_nothing_more(tmp_path):
    """Once another machine has taken over, nothing is written over what it wrote."""
    bucket.reset()
    run, lost = tmp_path / "run", []
    held = [True]

    def guard():
        if not held[0]:
            raise RunError("taken over")

    mirrored = copier(run, Bucket("flaky://b/run"), guard=guard, on_lost=lost.append)
    states = life(run)
    next(states)
    mirrored.copy()
    before = dict(bucket.store)
    held[0] = False
    mirrored.start()
    next(states)
    assert not mirrored.finish(10.0)
    assert mirrored.lost
    assert [str(each) for each in lost] == ["taken over"]
    assert bucket.store == before


def test_nothing_is_sent_twice(tmp_path):
    """A pass without changes sends nothing, and a growing file alone is sent again."""
    bucket.reset()
    run = tmp_path / "run"
    mirrored = copier(run, Bucket("flaky://b/run"))
    for _ in life(run):
        mirrored.copy()
    bucket.reset(empty=False)
    mirrored.copy()
    assert not bucket.count
    atomic.append_line(run / "metrics.jsonl", json.dumps({"epoch": 4}))
    mirrored.copy()
    sent = [path.rpartition("/")[2] for _, path in bucket.log]
    assert sent == ["metrics.jsonl", "mirror.json"]


def test_a_drive_that_drops_out_in_a_write_keeps_the_file_before(tmp_path, monkeypatch):
    """On a drive a file is replaced whole or not at all."""
    store = Mount(str(tmp_path / "drive"))
    run = tmp_path / "run"
    mirrored = copier(run, store)
    states = life(run)
    next(states)
    mirrored.copy()
    before = contents(tmp_path / "drive")
    next(states)

    def half(source, target):
        data = Path(source).read_bytes()
        Path(target).write_bytes(data[: len(data) // 2])
        raise OSError("the drive is gone")

    monkeypatch.setattr(shutil, "copyfile", half)
    monkeypatch.setattr(atomic, "write_bytes", lambda path, data: (_ for _ in ()).throw(OSError("the drive is gone")))
    with pytest.raises(OSError, match="drive is gone"):
        mirrored.copy()
    assert contents(tmp_path / "drive") == before
    monkeypatch.undo()
    for _ in states:
        mirrored.copy()
    assert contents(tmp_path / "drive") == contents(run)


def test_a_damaged_file_of_a_run_is_refused_by_name(tmp_path):
    """Refuses a file of a run that differs from its digest; leaves out a snapshot that was not copied whole."""
    bucket.reset()
    store = Bucket("flaky://b/run")
    run = tmp_path / "run"
    mirrored = copier(run, store)
    states = life(run)
    next(states)
    next(states)
    mirrored.copy()
    store.write("snapshots/step-00000002/state.safetensors", b"half")
    known = fetch(store, tmp_path / "place", QUIET)
    assert known.junk == {"snapshots/step-00000002/state.safetensors"}
    check(tmp_path / "place", 1)
    store.write("images.parquet", b"the imag")
    with pytest.raises(RunError, match=r"flaky://b/run/images\.parquet is not what was copied there"):
        fetch(store, tmp_path / "other", QUIET)


def test_which_folders_are_on_a_slow_drive(monkeypatch):
    """Google Drive and file systems in user space have a stage; disks and KRESUME_STAGE=off have none."""
    mounts = "\n".join(
        [
            "/dev/sda1 / ext4 rw 0 0",
            "rclone /mnt/my\\040drive fuse.rclone rw 0 0",
            "overlay /mnt/box fuse.fuse-overlayfs rw 0 0",
            "/dev/sdb1 /mnt/ntfs fuseblk rw 0 0",
        ]
    )
    slow = [path for path in ("/x", "/mnt/my drive/runs/1", "/mnt/box/1", "/mnt/ntfs/1") if is_slow_drive(path, mounts)]
    assert slow == ["/mnt/my drive/runs/1"]
    assert is_slow_drive("/content/drive/MyDrive/runs/1", "")
    assert not is_slow_drive("gs://bucket/run", mounts)
    monkeypatch.setenv("KRESUME_STAGE", "off")
    assert not is_slow_drive("/content/drive/MyDrive/runs/1", mounts)
