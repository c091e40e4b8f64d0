"""A run in a bucket: the same command, the same bits; killed, continued elsewhere, extended and read there."""

import shutil
import time

import pytest

import kresume
from kresume import runs
from kresume.errors import RunError
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
        monkeypatch.setattr("kresume.staging.bucket_lock.this_machine", lambda: name)

    become("one")
    return become


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


def _wait_for(name):

    for _ in range(200):
        if name in Bucket("flaky://b/runs/1-signs").names():
            return
        time.sleep(0.05)
    pytest.fail(f"{name} never came")
