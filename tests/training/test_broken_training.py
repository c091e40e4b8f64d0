"""Tests trainings whose loss or state becomes NaN or infinite: they stop, and no snapshot holds such a value."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, TrainingError
from kresume.training.loop.breakdown import what_to_try
from kresume.training.loop.writer import RunWriter
from tests.helpers.runs import TINY, run_training, stopped_by

OWN = """
import keras
from keras import ops

class Breaks(keras.layers.Layer):
    def build(self, shape):
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")
        self.kept = self.add_weight(shape=(2,), initializer="{start}", trainable=False, name="kept")

    def call(self, inputs, training=False):
        if training:
            self.seen.assign(self.seen + 1.0)
            kept = ops.convert_to_tensor(self.kept)
            self.kept.assign(ops.where(ops.convert_to_tensor(self.seen) > {after}, {value}, kept))
        return inputs * ops.where(ops.convert_to_tensor(self.seen) > {after}, {factor}, 1.0)

def build(num_classes, image_size):
    return keras.Sequential([
        keras.Input((*image_size, 3)), keras.layers.Rescaling(1 / 255), Breaks(), keras.layers.Flatten(),
        keras.layers.Dense(num_classes, activation="softmax"),
    ])
"""


def own(folder, name, *, after=4, value="float('nan')", factor="1.0", start="zeros"):
    """Writes a model with a layer that breaks after some steps, and returns its `--model`."""
    path = folder / f"{name}.py"
    path.write_text(OWN.format(after=after, value=value, factor=factor, start=start))
    return f"{path}:build"


def assert_all_finite(run):
    """Asserts that every snapshot of a run holds numbers alone."""
    taken = snapshot.list_snapshots(run / "snapshots")
    assert taken
    for _, path in taken:
        arrays = snapshot.read_snapshot(path).arrays
        assert [name for name, array in arrays.items() if not np.isfinite(array.astype(np.float64)).all()] == []


CASES = {
    "loss": (
        {"factor": "float('nan')", "value": "0.0"},
        r"the loss became nan between steps (2|4) and (5|6|7|8); the last good snapshot is that of step 4",
    ),
    "infinite loss": (
        {"factor": "float('inf')", "value": "0.0"},
        r"the loss became (nan|inf) between steps (2|4) and (5|6|7|8); the last good snapshot is that of step 4",
    ),
    "state, not loss": (
        {},
        r"breaks(_\d+)?/kept became NaN or infinite between steps 4 and 6; the last good snapshot is that of step 4",
    ),
    "infinite state, not loss": (
        {"value": "float('-inf')"},
        r"breaks(_\d+)?/kept became NaN or infinite between steps 4 and 6; the last good snapshot is that of step 4",
    ),
}


@pytest.fixture
def fast_disk(monkeypatch):
    """Lets each snapshot be on the disk before the next step: on a busy disk the next one is taken some steps later."""

    def waited(writer):
        if writer._thread is not None:
            writer._thread.join()
        return False

    monkeypatch.setattr(RunWriter, "busy", property(waited))


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.sample("loss", "state, not loss")
def test_a_training_that_breaks_stops_at_its_last_good_snapshot(tmp_path, pictures, case):
    """NaN or infinity in the loss, or in the state alone, ends the training with the place and what to try."""
    broken, message = CASES[case]
    run = tmp_path / "run"
    model = own(tmp_path, case.replace(" ", "_").replace(",", ""), **broken)
    with pytest.raises(TrainingError, match=message) as raised:
        run_training(
            data=[str(pictures / "old")], model=model, out=str(run), snapshot_every="2", **{**TINY, "epochs": 3}
        )
    assert f"--from {run} and --lr 0.0001" in str(raised.value) or f"from_={str(run)!r}" in str(raised.value)
    assert runs.open_run(run).status == "interrupted"
    assert "between steps" in runs.open_run(run).events("failed")[0]["reason"]
    assert_all_finite(run)
    assert [step for step, _ in snapshot.list_snapshots(run / "snapshots")][-1] == 4


def test_a_continued_training_that_breaks_names_steps_of_the_run(tmp_path, pictures, monkeypatch):
    """A process that continues counts the steps of the run, and falls back to the snapshot that it began with."""
    run = tmp_path / "run"
    arguments = {
        "data": [str(pictures / "old")],
        "model": own(tmp_path, "continued", after=5, factor="float('nan')"),
        "out": str(run),
    }
    stopped_by(monkeypatch, lambda keeper: keeper.progress.step == 2, **arguments, **{**TINY, "epochs": 3})
    with pytest.raises(
        TrainingError, match=r"between steps (4|5) and (6|7|8); the last good snapshot is that of step 3\."
    ):
        run_training(out=str(run))
    assert_all_finite(run)


AT_THE_END = {
    "state": {"value": "float('nan')"},
    "predictions": {"value": "0.0"},
}


@pytest.mark.parametrize("case", AT_THE_END)
def test_a_model_that_breaks_at_the_last_step_is_no_result(tmp_path, pictures, case):
    """The loss of the last step is computed before the update that may break the weights; the scores show it."""
    run = tmp_path / "run"
    model = own(tmp_path, case, after=0, factor="1.0 if training else float('nan')", **AT_THE_END[case])
    what = {"state": "kept became NaN or infinite", "predictions": "the loss of the validation images became nan"}[case]
    message = rf"{what} between steps 0 and 1; .* step 0\. .*start again with --lr 0.0001 and --overwrite"
    with pytest.raises(TrainingError, match=message):
        run_training(data=[str(pictures / "old")], model=model, out=str(run), **{**TINY, "epochs": None}, steps=1)
    assert not (run / "model.keras").exists()
    assert not (run / "metrics.jsonl").exists()
    assert_all_finite(run)


def test_a_buffer_that_starts_at_infinity_may_stay_there(tmp_path, pictures):
    """A layer of the user may keep a value that was never finite, such as a running minimum."""
    model = own(tmp_path, "sentinel", after=999, start="sentinel")
    path = tmp_path / "sentinel.py"
    path.write_text(path.read_text().replace('"sentinel"', "lambda shape, dtype=None: ops.full(shape, float('inf'))"))
    arguments = {"data": [str(pictures / "old")], "model": model, "out": str(tmp_path / "run"), "snapshot_every": "2"}
    assert run_training(**arguments, **TINY).exit_code == 0
    meta = json.loads((snapshot.list_snapshots(tmp_path / "run" / "snapshots")[-1][1] / "meta.json").read_text())
    assert meta["records"]["not_finite"] == ["non_trainable/1"]


def test_a_checkpoint_that_is_broken_is_refused(tmp_path, pictures):
    """A checkpoint with a NaN among its weights is an error that names the weight, before any training."""
    model = keras.Sequential(
        [keras.Input((10, 10, 3)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax", name="head")]
    )
    model.layers[-1].bias.assign([0.0, np.nan, 0.0])
    model.save(tmp_path / "broken.keras")
    with pytest.raises(CheckpointError, match=r"1 of 2 weights hold NaN or infinity \(the first is head/bias\)"):
        run_training(
            str(tmp_path / "broken.keras"),
            data=[str(pictures / "old")],
            optimizer="adam:reset",
            lr=0.1,
            pixels="0-255",
            out=str(tmp_path / "run"),
        )


@pytest.mark.one_backend
def test_which_arrays_must_be_finite():
    """Weights, their optimizer's slots and averages, and buffers must be finite; metrics and callbacks need not."""
    bad = np.array([1, np.nan], np.float32)
    groups = {name: [np.ones(2), bad] for name in ("trainable", "non_trainable", "optimizer", "metrics", "callbacks")}
    found = ["trainable/1", "non_trainable/1", "optimizer/1"]
    assert snapshot.broken_arrays(groups, allowed=()) == found
    assert snapshot.broken_arrays(groups, allowed=["non_trainable/1"]) == ["trainable/1", "optimizer/1"]
    assert snapshot.broken_arrays(groups, allowed=None) == ["trainable/1"]


@pytest.mark.one_backend
def test_the_advised_rate_has_no_rounding_errors():
    """A tenth of 3e-4 is written as 3e-05, as a user would."""
    record = SimpleNamespace(rate=SimpleNamespace(peak=3e-4), options={}, given={})
    assert "start again with --lr 3e-05" in what_to_try(SimpleNamespace(record=record, path="runs/1"), 0)
