"""Tests that a snapshot is complete or absent, and that damage is noticed."""

import json
import random

import ml_dtypes
import numpy as np
import pytest

from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError

pytestmark = pytest.mark.one_backend

GROUPS = {
    "trainable": [np.arange(12, dtype=np.float32).reshape(3, 4), np.array(1.5, np.float32)],
    "non_trainable": [np.array([3, 2**32 - 1], np.uint32), np.array([1.5, 2], ml_dtypes.bfloat16)],
    "optimizer": [np.array(16431, np.int64), np.ones((2, 2), np.float16), np.zeros((0, 3), np.float32)],
    "metrics": [np.array(np.inf, np.float32)],
}
RECORDS = {"phase": "training", "best": None, "callbacks": {}}


def write(directory, step, **records):
    return snapshot.write_snapshot(directory, step, GROUPS, {**RECORDS, **records})


def test_what_is_read_is_what_was_written(tmp_path):
    """Every type and shape round-trips byte for byte: scalars, bfloat16, unsigned seeds, empty arrays."""
    state = snapshot.read_snapshot(write(tmp_path, 7))
    assert state.step == 7
    assert state.records == RECORDS
    for group, arrays in GROUPS.items():
        for index, array in enumerate(arrays):
            found = state.arrays[f"{group}/{index}"]
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert (tmp_path / "LATEST").read_text() == "step-00000007\n"


@pytest.mark.parametrize("kind", ["flip", "cut", "extend", "zero"])
@pytest.mark.parametrize("name", [snapshot.ARRAYS, snapshot.META])
def test_damage_anywhere_is_noticed_and_the_one_before_is_used(tmp_path, name, kind):
    """Damage at any place of a snapshot is noticed, and the snapshot before it is used.

    Tried: bits flipped, bytes cut, added or zeroed in either file.
    """
    write(tmp_path, 1)
    file = write(tmp_path, 2) / name
    whole = file.read_bytes()
    rng = random.Random(f"{name}{kind}")
    for _ in range(60):
        place = rng.randrange(len(whole))
        data = bytearray(whole)
        if kind == "flip":
            data[place] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            data = data[:place]
        elif kind == "extend":
            data += b"\0"
        else:
            data[place : place + 8] = bytes(len(data[place : place + 8]))
        if bytes(data) == whole or (name == snapshot.META and _same_json(bytes(data), whole)):
            continue
        file.write_bytes(data)
        state, skipped = snapshot.newest_snapshot(tmp_path)
        assert state.step == 1
        assert [path.name for path, _ in skipped] == ["step-00000002"]
    file.write_bytes(whole)
    assert snapshot.newest_snapshot(tmp_path)[0].step == 2


def _same_json(data, whole):
    """Returns True if both parse to equal JSON: white space at the end of meta.json has no meaning."""
    try:
        return json.loads(data) == json.loads(whole)
    except ValueError:
        return False


def test_no_snapshot_left_is_an_error_that_names_each(tmp_path):
    """If every snapshot is damaged, the error names each; training never starts fresh."""
    (write(tmp_path, 1) / snapshot.ARRAYS).unlink()
    with pytest.raises(CheckpointError, match=r"step-00000001: .*cannot be read"):
        snapshot.newest_snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="there is none"):
        snapshot.newest_snapshot(tmp_path / "nothing")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_snapshot_of_a_broken_model_is_kept(tmp_path, value):
    """A weight that is not finite is refused before anything is written."""
    with pytest.raises(CheckpointError, match="not finite at step 3: trainable/0;"):
        snapshot.write_snapshot(tmp_path, 3, {"trainable": [np.array([1, value], np.float32)]}, RECORDS)
    assert snapshot.list_snapshots(tmp_path) == []


@pytest.mark.parametrize("place", ["write", "fsync", "rename"])
@pytest.mark.parametrize("after", range(0, 12, 2))
@pytest.mark.parametrize("before", [1, 2])
def test_a_disk_that_fails_at_any_moment_leaves_the_one_before(tmp_path, monkeypatch, place, after, before):
    """OSError at any write, flush or rename leaves the previous snapshot intact and no partial file.

    This holds for a previous snapshot of the same step, too.
    """
    import os
    from pathlib import Path

    write(tmp_path, before)
    calls = [0]

    def failing(function):
        def call(*arguments, **options):
            calls[0] += 1
            if calls[0] > after:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        if place == "write":
            patch.setattr(Path, "write_bytes", failing(Path.write_bytes))
        elif place == "fsync":
            patch.setattr(os, "fsync", failing(os.fsync))
        else:
            patch.setattr(os, "rename", failing(os.rename))
            patch.setattr(os, "replace", failing(os.replace))
        try:
            write(tmp_path, 2)
            failed = False
        except OSError:
            failed = True
    state, skipped = snapshot.newest_snapshot(tmp_path)
    assert skipped == []
    assert state.step in ({before, 2} if failed else {2})
    assert not list(tmp_path.glob(".tmp-step*"))


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """Every file of a snapshot is flushed before the snapshot has its name, and the name after it."""
    import os

    done, rename = [], os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "rename", lambda old, new: (done.append("renamed"), rename(old, new)))
    path = write(tmp_path, 5)
    named = done.index("renamed")
    assert {file.stat().st_ino for file in (path, *path.iterdir())} <= set(done[:named])
    assert tmp_path.stat().st_ino in done[named:]


def test_a_kill_while_a_snapshot_takes_the_place_of_its_like_loses_neither(tmp_path, monkeypatch):
    """A kill between the two renames of a replacement loses neither snapshot.

    Directories cannot be renamed over each other, so the old one has another name in between.
    """
    import os

    write(tmp_path, 5, phase="training")
    renames, real = [], os.rename

    class Killed(BaseException):
        """Represents a kill: no handler of ours catches it."""

    def dies_before_the_second(source, target):
        renames.append(target)
        if len(renames) > 1:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", dies_before_the_second)
        patch.setattr(snapshot.shutil, "rmtree", lambda *_, **__: None)  # a dead process cleans up nothing
        with pytest.raises(Killed):
            write(tmp_path, 5, phase="epoch")
    assert [path.name for _, path in snapshot.list_snapshots(tmp_path)] == ["replaced-step-00000005"]
    assert snapshot.newest_snapshot(tmp_path)[0].records["phase"] == "training"
    snapshot.undo_replacements(tmp_path)
    assert [path.name for _, path in snapshot.list_snapshots(tmp_path)] == ["step-00000005"]
    write(tmp_path, 5, phase="epoch")
    assert snapshot.newest_snapshot(tmp_path)[0].records["phase"] == "epoch"
    assert not list(tmp_path.glob("replaced-*"))


def test_pruning_keeps_the_newest_and_the_pinned(tmp_path):
    """Pruning keeps the last N snapshots and the best one, however old it is."""
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step, best={"step": 2})
    snapshot.prune_snapshots(tmp_path, 2, {2})
    assert [step for step, _ in snapshot.list_snapshots(tmp_path)] == [2, 4, 5]
    assert snapshot.best_steps(tmp_path) == {2: 2, 4: 2, 5: 2}
    snapshot.prune_snapshots(tmp_path, 0, {4})
    assert [step for step, _ in snapshot.list_snapshots(tmp_path)] == [4]


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_as_many_as_asked_are_kept_while_they_are_written(tmp_path, keep):
    """Pruned after each one, as a run does, the last N stay; so a damaged one has another before it."""
    for step in range(1, 8):
        write(tmp_path, step)
        snapshot.prune_snapshots(tmp_path, keep, set())
        taken = [found for found, _ in snapshot.list_snapshots(tmp_path)]
        assert taken == list(range(max(1, step - keep + 1), step + 1))


def test_a_pending_snapshot_comes_before_the_scored_one_of_its_step(tmp_path):
    """The snapshot before an epoch's scoring is older than the one after it, at the same step."""
    write(tmp_path, 5, phase="scoring")
    assert snapshot.newest_snapshot(tmp_path)[0].records["phase"] == "scoring"
    write(tmp_path, 5, phase="epoch")
    assert snapshot.newest_snapshot(tmp_path)[0].records["phase"] == "epoch"
