"""Tests which run a folder of runs stands for where one of them cannot be read."""

import json

import pytest

from kresume import runs
from kresume.checkpoints.read import read_checkpoint
from kresume.checkpoints.run import describe_unreadable, find_run, named
from kresume.errors import CheckpointError, RunError
from kresume.options.table import TrainConfig
from kresume.training.start import start_or_continue
from tests.helpers.run_records import when, write_run

pytestmark = pytest.mark.one_backend


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Returns `runs/` with an accepted, a rejected and a newer accepted run."""
    monkeypatch.chdir(tmp_path)
    for number, status in ((1, "accepted"), (2, "rejected"), (3, "accepted")):
        path = write_run(tmp_path / "runs" / f"{number}-signs", number, status=status)
        (path / "model.keras").write_bytes(b"")
        (path / "events.jsonl").write_text(json.dumps({"time": when(number), "event": "started"}) + "\n")
    return tmp_path / "runs"


def damage(folder, name, *, result=True, events=True):
    """Damages the record of a run, and removes what else would tell about it."""
    (folder / name / "run.json").write_text('{"format"')
    if not result:
        (folder / name / "model.keras").unlink()
    if not events:
        (folder / name / "events.jsonl").unlink()


@pytest.mark.parametrize(
    ("name", "left", "found"),
    [
        ("1-signs", {}, "3-signs"),
        ("1-signs", {"events": False}, None),  # when it began is unknown
        ("1-signs", {"events": False, "result": False}, "3-signs"),
        ("2-signs", {}, "3-signs"),
        ("3-signs", {}, None),  # it may be the newest accepted one
        ("3-signs", {"result": False}, "1-signs"),  # it did not finish, so it was not accepted
    ],
)
def test_a_folder_with_a_damaged_run(folder, name, left, found):
    """It stands for its newest accepted run where that is certain, and says what was left out; else it names both ways on."""
    damage(folder, name, **left)
    if found is not None:
        assert find_run("runs").path.name == found
        assert named("runs") == f"runs/{found}"
        assert f"left out, because it cannot be read: cannot read runs/{name}/run.json" in describe_unreadable("runs")
        return
    newest = "1-signs" if name == "3-signs" else "3-signs"
    ways = (
        rf"runs/{name}/run.json: .* from a copy of the run, or move runs/{name} elsewhere, or give --from runs/{newest}"
    )
    with pytest.raises(CheckpointError, match=ways):
        find_run("runs")
    with pytest.raises(CheckpointError, match=ways):
        read_checkpoint("runs")
    assert find_run(f"runs/{newest}").path.name == newest
    (folder / name).rename(folder.parent / "aside")
    assert find_run("runs").path.name == newest


def test_a_damaged_run_that_may_be_interrupted(folder):
    """`train` without `--out` starts no second run beside it; a finished one does not matter."""
    config = TrainConfig(data=("digits",), model="convnet")
    damage(folder, "3-signs")
    assert start_or_continue(config).path.name == "4-digits"
    damage(folder, "2-signs", result=False)
    with pytest.raises(RunError, match=r"move runs/2-signs elsewhere, or give --out runs/NAME: it may be the run that"):
        start_or_continue(config)
    assert start_or_continue(config.model_copy(update={"out": "runs/4-new"})).path.name == "4-new"
    assert [run.path.name for run in runs.list_runs(folder).runs] == ["1-signs"]


def test_a_preset_of_keras_hub_is_a_model(tmp_path):
    """The error says that it is started from as a model, whatever files it holds."""
    for name, facts in (("config", {"class_name": "ResNetBackbone"}), ("metadata", {"keras_hub_version": "0.32.0"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(facts))
    (tmp_path / "model.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(CheckpointError, match=rf"a preset of keras-hub.* --model hub:{tmp_path}, without --from"):
        read_checkpoint(tmp_path)
