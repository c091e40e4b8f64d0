"""Promise 3: a run that was killed and continued has the bits of one that was not."""

import json
import shutil
from pathlib import Path

import pytest

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import RunError
from tests.support import (
    TINY,
    assert_same_bytes,
    kill_at_every_snapshot,
    lines_without_time,
    result_arrays,
    run_training,
)

# After one step, with an epoch's scoring pending, between epochs, in the middle of the second, and at the very end.
TELLING = (1, 4, 5, 7, -1)


def test_a_run_killed_after_any_step_ends_with_the_same_bits(monkeypatch, tmp_path, pictures):
    """Every snapshot of a run leads to the same weights, optimizer, seeds, metrics and lines: none is a special case."""
    count = kill_at_every_snapshot(monkeypatch, tmp_path, data=[str(pictures / "old")], **TINY)
    assert count >= 8


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"ema": 0.9, "weight_decay": 0.01}, id="ema"),
        pytest.param({"accumulate": 3, "augment": "strong"}, id="accumulate-strong"),
        pytest.param({"mixup": 0.2, "optimizer": "sgd", "lr": 0.05}, id="mixup-sgd"),
        pytest.param({"precision": "mixed_bfloat16", "lr_schedule": "constant", "warmup_steps": 3}, id="bfloat16"),
        pytest.param({"precision": "mixed_float16", "ema": 0.9}, id="float16"),
        pytest.param(
            {"lr_schedule": "plateau", "patience": 1, "monitor": "val_accuracy", "epochs": 4}, id="plateau-patience"
        ),
        pytest.param({"cache": "off", "augment": "none", "optimizer": "adam"}, id="cache-off"),
    ],
)
def test_every_feature_continues_exactly(monkeypatch, tmp_path, pictures, options):
    """Averages, accumulation, mixing, mixed precision, plateau and patience all survive a kill bit for bit."""
    kill_at_every_snapshot(monkeypatch, tmp_path, TELLING, data=[str(pictures / "old")], **{**TINY, **options})


def test_an_extension_continues_exactly(monkeypatch, tmp_path, pictures):
    """A run that added images to another continues like any other."""
    run_training(out=str(tmp_path / "parent"), data=[str(pictures / "old")], **TINY)
    arguments = {"from_": str(tmp_path / "parent"), "add": [str(pictures / "new")], "lr": 1e-3, "epochs": 2}
    kill_at_every_snapshot(monkeypatch, tmp_path, TELLING, **arguments)


def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(monkeypatch, tmp_path, pictures, capfd):
    """A byte flipped in the newest snapshot costs the steps since the one before, and no bit of the result."""
    from kresume.config import from_arguments
    from kresume.progress import Reporter
    from kresume.training.resume import train
    from tests.support import make_interrupted

    arguments = {"data": [str(pictures / "old")], **TINY}
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        whole = Path(run_training(out=str(tmp_path / "whole"), snapshot_every="1", **arguments).run)
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    newest = snapshot.list_snapshots(killed / "snapshots")[6][1]
    make_interrupted(killed, newest.name)
    file = newest / snapshot.ARRAYS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    train(from_arguments(None, {"out": str(killed)}), Reporter())
    told = " ".join(capfd.readouterr().err.split())
    assert f"{newest.name} is damaged" in told
    assert "does not have its digest" in told
    assert_same_bytes(result_arrays(whole), result_arrays(killed))
    assert lines_without_time(whole) == lines_without_time(killed)
    assert "snapshot damaged" in (killed / "events.jsonl").read_text()


def test_the_same_command_after_the_end_points_to_the_next_one(tmp_path, pictures):
    """A finished run is not trained again: the error gives the command that extends it."""
    arguments = {"data": [str(pictures / "old")], "out": str(tmp_path / "run"), **TINY}
    run_training(**arguments)
    with pytest.raises(RunError, match=r"is finished .*kresume train --from .*run --add"):
        run_training(**arguments)


def test_the_result_is_the_best_epoch_whole(tmp_path, pictures):
    """With a monitor the result is one snapshot: weights, optimizer and step of the same moment."""
    arguments = {"data": [str(pictures / "old")], **TINY, "epochs": 4, "monitor": "val_loss"}
    path = Path(run_training(out=str(tmp_path / "run"), **arguments).run)
    lines = runs.read_metrics(path / "metrics.jsonl")
    best = min(lines, key=lambda line: line["all"]["loss"])
    record = json.loads((path / "run.json").read_text())
    assert record["result"]["step"] == best["step"]
    assert record["result"]["which"] == "best"
    assert record["result"]["scores"]["all"] == best["all"]
    assert [step for step, _ in snapshot.list_snapshots(path / "snapshots")] == [best["step"]]
    arrays = result_arrays(path)
    assert int(arrays["optimizer/0"]) == best["step"]
