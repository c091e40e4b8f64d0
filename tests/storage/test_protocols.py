"""Buckets by the protocols of S3 and Google Cloud Storage, on loopback: files, the lock, a training that is killed."""

import contextlib
import json
import os
import shutil
import signal
import sys

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from kresume import runs
from kresume.errors import RunError
from kresume.lock import Lock
from kresume.staging.bucket_lock import BucketLock
from kresume.storage.stores import Bucket, Mount
from tests.helpers import forking
from tests.helpers.flaky_bucket import bucket
from tests.helpers.object_stores import gs_server, s3_server
from tests.helpers.runs import TINY, assert_same_bytes, lines_without_time, result_arrays, run_training, trained

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of gcsfs to its own library

SERVERS = {"s3": s3_server, "gs": gs_server, "flaky": contextlib.nullcontext, "drive": contextlib.nullcontext}


@pytest.fixture(scope="module", params=SERVERS)
def place(request, tmp_path_factory):
    """Returns a function that opens a store by its name, for each kind of store."""
    bucket.reset()
    with SERVERS[request.param]():
        folder = tmp_path_factory.mktemp("drive")
        yield (
            lambda name: (
                Mount(f"{folder}/{name}") if request.param == "drive" else Bucket(f"{request.param}://signs/{name}")
            )
        )


@pytest.mark.one_backend
def test_every_store_keeps_files_in_the_same_way(place, tmp_path):
    """Files are written whole, listed with their sizes, created once, moved and removed; what is missing is told."""
    store = place("runs/1")
    assert store.names() == {}
    (tmp_path / "large").write_bytes(os.urandom(2**20))
    store.send("snapshots/step-1/state", tmp_path / "large")
    store.write("run.json", b"{}")
    store.write("run.json", b"{1}")
    assert store.names() == {"run.json": 3, "snapshots/step-1/state": 2**20}
    assert store.names(deep=False) == {"run.json": 3}
    store.fetch("snapshots/step-1/state", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == (tmp_path / "large").read_bytes()
    assert store.read("run.json") == b"{1}"
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    store.remove("nothing")
    assert store.create("lock-1.json", b"one")
    if not store.address.startswith("gs://"):  # the emulator creates it again; Google's own servers do not
        assert not store.create("lock-1.json", b"two")
        assert store.read("lock-1.json") == b"one"
    moved = place("runs/1.before-1")
    store.move(moved.address)
    assert store.names() == {}
    assert sorted(moved.names()) == ["lock-1.json", "run.json", "snapshots/step-1/state"]


@pytest.mark.one_backend
def test_one_machine_holds_a_run_in_a_bucket(place, tmp_path):
    """A second machine waits for a sign of life and is refused; a dead one is taken over; who lost it is told."""
    store, said = place("runs/2"), []
    if isinstance(store, Mount):
        pytest.skip("a drive has the lock of tests/test_lock.py")
    stage = tmp_path / "stage"
    first = BucketLock(store, stage, host="one")
    first.acquire()

    def refresh(seconds):
        first._refresh()

    for number in (1, 2):  # a heartbeat that is fresh, and one that looks expired because the clocks differ
        clock = {1: first.clock, 2: lambda: first.clock() + 3600.0}[number]
        second = BucketLock(store, stage, host="two", say=said.append, sleep=refresh, clock=clock)
        with pytest.raises(RunError, match=r"is being trained by pid \d+ on one.*--take-over takes it over"):
            second.acquire()
    assert "watching whether it is alive" in said[-1]
    with pytest.raises(RunError, match=r"is being trained by pid \d+ on one: wait for it"):
        BucketLock(store, stage, host="one").acquire()
    first.check()
    second = BucketLock(store, stage, host="two", sleep=lambda seconds: None)
    second.acquire()
    assert list(store.names()) == ["lock-2.json"]
    with pytest.raises(RunError, match="was taken over"):
        first.check()
    first.release()
    second.check()
    third = BucketLock(store, stage, host="three", take_over=True)
    third.acquire()
    third.check()
    for lock in (second, third):
        lock.release()
    assert store.names() == {}


@pytest.mark.one_backend
def test_of_two_machines_at_the_same_moment_one_gets_the_run(tmp_path):
    """Between the look and the object of the one, the other takes the lock: the first one looks again and is refused."""
    bucket.reset()
    store = Bucket("flaky://signs/runs/3")
    first, second = (BucketLock(store, tmp_path, host=host, sleep=lambda seconds: None) for host in ("one", "two"))
    look = Lock._wait_for

    def late(lock, **options):
        found = look(lock, **options)
        if lock is first and not second.held:
            second.acquire()
            second.sleep = first.sleep = lambda seconds: second._refresh()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lock, "_wait_for", late)
        with pytest.raises(RunError, match="on two"):
            first.acquire()
    second.check()
    second.release()


class Forgetful(MemoryFileSystem):
    """Is a file system that accepts `mode="create"` and ignores it, as those of fsspec did before 2024.12."""

    store, pseudo_dirs = {}, [""]

    def pipe_file(self, path, value, **options):
        """Writes the file, whether it is there or not."""
        with self.open(path, "wb") as file:
            file.write(value)


@pytest.mark.one_backend
def test_a_store_that_cannot_create_what_is_absent_alone_is_refused(tmp_path):
    """Two machines would both believe that they hold the run."""
    store = Bucket("memory://signs/runs/4", Forgetful(skip_instance_cache=True))
    with pytest.raises(OSError, match="two machines could train one run in memory://signs/runs/4"):
        store.create("lock-1.json", b"one")
    assert store.names() == {}
    for place in (Bucket("memory://signs/runs/5"), Bucket("flaky://signs/runs/5")):
        assert place.create("lock-1.json", b"one")
        assert not place.create("lock-1.json", b"two")
        assert place.read("lock-1.json") == b"one"


KILLED = """
import os, signal, sys, time
from kresume.storage.stores import Bucket
from kresume.training.loop import callbacks
step_done = callbacks.Keeper.on_train_batch_end
def dying(keeper, batch, logs=None):
    step_done(keeper, batch, logs)
    if keeper.progress.step == 7:
        while "snapshots/step-00000006/meta.json" not in Bucket("s3://signs/runs/1-signs").names():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
callbacks.Keeper.on_train_batch_end = dying
from kresume.cli import main
main(sys.argv[1:])
"""


@pytest.mark.one_backend(trains=True)
def test_a_training_on_s3_is_killed_and_continued_on_another_machine(tmp_path, pictures, monkeypatch):
    """SIGKILL in one process; the same command elsewhere ends with the bits and lines of a run on a disk."""
    given = {**TINY, "data": [str(pictures / "old")], "snapshot_every": "2"}
    expected = trained(tmp_path / "disk", **given)
    words = ["--data", given["data"][0], "--snapshot-every", "2", "--image-size", "10", "--batch-size", "5"]
    words += ["--epochs", "2", "--val-split", "0.25", "--out", "s3://signs/runs/1-signs"]
    with s3_server():
        environment = {**os.environ, "KRESUME_STAGE": str(tmp_path / "one")}
        killed = forking.start([sys.executable, "-c", KILLED, "train", *words], env=environment)
        assert killed.wait() == -signal.SIGKILL, killed.stderr
        left = Bucket("s3://signs/runs/1-signs")
        assert json.loads(left.read("run.json"))["status"] == "running"
        shutil.rmtree(tmp_path / "one")
        monkeypatch.setenv("KRESUME_STAGE", str(tmp_path / "two"))
        run_training(out="s3://signs/runs/1-signs", take_over=True, **given)
        place = tmp_path / "two/s3/signs/runs/1-signs"
        assert_same_bytes(result_arrays(expected), result_arrays(place))
        assert lines_without_time(expected) == lines_without_time(place)
        assert "--out s3://signs/runs/1-signs" in runs.open_run(place).record.command
        names = left.names()
        assert json.loads(left.read("run.json"))["status"] == "accepted"
        assert not [name for name in names if name.startswith("lock")]
        assert {name for name in names if name.startswith("snapshots/step")} == {
            f"snapshots/step-00000008/{name}" for name in ("meta.json", "state.safetensors")
        }
