"""Tests promise 3: a killed and continued run has the bits of an undisturbed one."""

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import kresume
from kresume import runs
from kresume.checkpoints import snapshot
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ModelError, RunError, Stopped
from kresume.evaluation.live import LiveScorer
from kresume.evaluation.score import flatten
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.training import resume
from kresume.training.loop import callback_state, callbacks, scoring
from kresume.training.resume import train
from tests.helpers import forking
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    kill_at_every_snapshot,
    lines_without_time,
    make_interrupted,
    result_arrays,
    run_training,
    stopped_by,
    trained,
)

pytestmark = pytest.mark.optimized_graphs

# With an epoch's scoring pending, in the middle of the second, and at the end.
TELLING = (4, -3, -1)
# In the middle of the last epoch, and with its scoring pending: every kind of state exists by then.
LATE = (-3, -2)


def test_a_run_killed_after_any_step_ends_with_the_same_bits(tmp_path, pictures):
    """A run killed after any step continues to equal weights, optimizer, seeds, metrics and lines."""
    names = kill_at_every_snapshot(tmp_path, data=[str(pictures / "old")], **TINY)
    assert len(names) >= 8


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"ema": 0.9, "weight_decay": 0.01, "accumulate": 3, "cache": "off", "augment": "none"},
            id="ema-accumulate-cache-off",
        ),
        pytest.param(
            {"mixup": 0.2, "optimizer": "sgd", "lr": 0.05, "precision": "mixed_bfloat16", "lr_schedule": "constant",
             "warmup_steps": 3, "steps_per_execution": 2, "metric": ("sparse_top_k_categorical_accuracy",)},
            id="mixup-sgd-bfloat16-two-steps-per-call-another-metric",
        ),
        pytest.param(
            {"precision": "mixed_float16", "ema": 0.9, "optimizer": "adam", "lr_schedule": "plateau", "patience": 1,
             "monitor": "val_accuracy", "epochs": 4},
            id="float16-plateau-patience",
        ),
    ],
)  # fmt: skip
def test_every_feature_continues_exactly(tmp_path, pictures, options):
    """Averages, accumulation, mixing, mixed precision, plateau and patience continue bit for bit.

    Also a metric, another optimizer, several steps per call and pictures that no cache holds. Each group has features
    that do not exclude each other: one that is not continued changes the bits beside any other.
    """
    options = {**TINY, **options}
    names = kill_at_every_snapshot(tmp_path, LATE, data=[str(pictures / "old")], **options)
    assert [name.endswith(snapshot.PENDING) for name in names] == [False, True]


def test_strong_augmentation_continues_exactly(tmp_path, pictures):
    """Strong augmentation continues exactly: flips, rotations, zooms and erasing depend on the position.

    Only one snapshot, because tracing these layers takes seconds each.
    """
    options = {**TINY, "augment": "strong"}
    kill_at_every_snapshot(tmp_path, (-3,), data=[str(pictures / "old")], **options)


def test_an_extension_continues_exactly(tmp_path, pictures):
    """A run that extends another continues exactly."""
    trained(tmp_path / "parent", data=[str(pictures / "old")], **TINY)
    arguments = {"from_": str(tmp_path / "parent"), "add": [str(pictures / "new")], "lr": 1e-3, "epochs": 2}
    kill_at_every_snapshot(tmp_path, TELLING, **arguments)


def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(tmp_path, pictures, capfd, monkeypatch):
    """A damaged newest snapshot is named and costs only steps: the result has equal bytes.

    The run continues from the snapshot before it: three are kept.
    """
    arguments = {"data": [str(pictures / "old")], "snapshot_every": "1", **TINY}
    whole = trained(tmp_path / "whole", **arguments)
    killed = tmp_path / "killed"
    stopped_by(monkeypatch, lambda keeper: keeper.progress.step == 5, out=str(killed), **arguments)
    taken = snapshot.list_snapshots(killed / "snapshots")
    assert [step for step, _ in taken] == [4, 5, 6]
    newest = taken[-1][1]
    file = newest / snapshot.ARRAYS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    train(from_arguments(None, {"out": str(killed)}), Reporter())
    told = " ".join(capfd.readouterr().err.split())
    assert f"{newest.name} is damaged" in told
    assert "does not match its digest" in told
    assert_same_bytes(result_arrays(whole), result_arrays(killed))
    assert lines_without_time(whole) == lines_without_time(killed)
    assert "snapshot damaged" in (killed / "events.jsonl").read_text()


@pytest.mark.one_backend(trains=True)
def test_the_same_command_after_the_end_points_to_the_next_one(tmp_path, pictures):
    """A finished run is not trained again: the error gives the command that extends it."""
    arguments = {"data": [str(pictures / "old")], "out": str(tmp_path / "run"), **TINY}
    trained(**arguments)
    with pytest.raises(RunError, match=r"is finished .*kresume train --from .*run --add"):
        run_training(**arguments)


def test_the_result_is_the_best_epoch_whole(tmp_path, pictures):
    """With a monitor, the result is one snapshot: weights, optimizer and step of the same moment."""
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


@pytest.mark.one_backend(trains=True)
def test_best_and_last_are_what_they_say(tmp_path, pictures, monkeypatch):
    """A finished run keeps only its result, and `LATEST` names it.

    An unfinished run knows its best epoch so far.
    """
    arguments = {"data": [str(pictures / "old")], **TINY, "epochs": 3, "monitor": "val_loss"}
    worse = iter((2.0, 1.0, 3.0))
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        patch.setattr(scoring, "flatten", lambda scores: {**flatten(scores), "val_loss": next(worse)})
        path = Path(run_training(out=str(tmp_path / "run"), snapshot_every="1epochs", **arguments).run)
    lines = runs.read_metrics(path / "metrics.jsonl")
    best, last = lines[1]["step"], lines[2]["step"]
    finished = tmp_path / "finished"
    shutil.copytree(path, finished)
    snapshot.prune_snapshots(finished / "snapshots", 0, {best})
    assert (finished / "snapshots" / "LATEST").read_text() == f"step-{best:08d}\n"
    assert read_checkpoint(f"{finished}@best").step == read_checkpoint(str(finished)).step == best
    with pytest.raises(CheckpointError, match=rf"@last: the last step, {last}, .*the best epoch \(step {best}\)"):
        read_checkpoint(f"{finished}@last")
    make_interrupted(path, f"step-{last:08d}")
    assert read_checkpoint(f"{path}@best").step == best
    assert read_checkpoint(f"{path}@last").step == read_checkpoint(str(path)).step == last


@pytest.mark.one_backend(trains=True)
def test_a_run_that_another_process_has_finished_is_not_trained_again(monkeypatch, tmp_path, pictures):
    """A run that another process has just finished is not trained again.

    The run was read before the frameworks loaded and the lock was taken, so its state is read again.
    """
    arguments = {"data": [str(pictures / "old")], "out": str(tmp_path / "run"), **TINY}
    path = trained(**arguments)
    done = {file: file.read_bytes() for file in (path / "run.json", path / "model.keras", path / "metrics.jsonl")}
    (last,) = snapshot.list_snapshots(path / "snapshots")
    make_interrupted(path, last[1].name)
    built = resume.rebuild

    def finished_meanwhile(*given):
        for file, content in done.items():
            file.write_bytes(content)
        return built(*given)

    monkeypatch.setattr(resume, "rebuild", finished_meanwhile)
    with pytest.raises(RunError, match=r"was finished by another process meanwhile .*kresume train --from"):
        run_training(**arguments)
    assert {file: file.read_bytes() for file in done} == done


@pytest.mark.one_backend(trains=True)
def test_one_bar_at_a_time(tmp_path, pictures):
    """Progress bars do not overlap. Those of epochs and steps are below them: see `test_reporter`."""
    open_bars, most = [], []

    class Watched(Reporter):
        @contextlib.contextmanager
        def progress(self, label, total, unit=""):
            open_bars.append(label)
            most.append(list(open_bars))
            try:
                yield lambda count: None
            finally:
                open_bars.remove(label)

    resume.train(
        from_arguments(None, {"data": [str(pictures / "old")], "out": str(tmp_path / "run"), **TINY}), Watched()
    )
    assert max(map(len, most)) == 1
    assert {"preparing images", "statistics of batch normalisation", "scoring"} <= {
        each for bars in most for each in bars
    }


@pytest.mark.one_backend
def test_what_a_callback_remembers_keeps_its_type_and_every_digit():
    """A callback's state keeps its types and every digit.

    Tried: integers beyond a float's precision, NumPy's booleans and infinities, a scalar weight.
    """
    arrays: list = []
    numbers = {
        "count": np.int64(2**53 + 1),
        "found": np.bool_(True),
        "best": np.float32(0.1),
        "worst": np.float64(-np.inf),
    }
    state = {"wait": 3, "none": None, **numbers, "weights": [np.array(1.5, np.float32), np.ones(2)]}
    packed = json.loads(json.dumps(callback_state._pack(state, arrays, "Own.0"), allow_nan=False))
    back = callback_state._unpack(packed, arrays)
    weights, expected = back.pop("weights"), state.pop("weights")
    assert back == state
    # numpy.float64 is a subclass of float and returns as a float: histories hold thousands of them.
    assert [type(value) for value in back.values()] == [
        float if isinstance(value, float) else type(value) for value in state.values()
    ]
    for one, other in zip(weights, expected, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


STOPPED = [("last-step", signal.SIGTERM, 75), ("in-the-middle", signal.SIGINT, 130)]


@pytest.mark.parametrize(("place", "number", "code"), few_under_jax(STOPPED, STOPPED[:1]))
def test_stopped_by_a_signal_it_continues_exactly(monkeypatch, tmp_path, pictures, place, number, code):
    """A run stopped by SIGTERM or Ctrl-C writes a snapshot, exits with its code and continues exactly.

    The signal comes on an epoch's last step, with its scoring pending, or before.
    """
    arguments = {"data": [str(pictures / "old")], **TINY, "monitor": "val_loss"}
    whole = trained(tmp_path / "whole", **arguments)
    out = tmp_path / "stopped"

    def when(keeper):
        following = keeper.progress.step + 1
        return following == keeper.boundaries[0] if place == "last-step" else following == 2

    stopped = stopped_by(monkeypatch, when, number, out=str(out), **arguments)
    assert stopped.exit_code == code
    assert "snapshot written; continue with: kresume train --out" in str(stopped)
    assert runs.open_run(out).status == "interrupted"
    newest = snapshot.list_snapshots(out / "snapshots")[-1][1]
    assert newest.name.endswith("-unscored") == (place == "last-step")
    run_training(out=str(out), **arguments)
    assert_same_bytes(result_arrays(whole), result_arrays(out))
    assert lines_without_time(whole) == lines_without_time(out)


@pytest.mark.parametrize(
    "options",
    few_under_jax([{}, {"ema": 0.9}], [{"ema": 0.9}]),
    ids=lambda options: "averages" if options else "statistics",
)
def test_stopped_while_scoring_it_scores_again(monkeypatch, tmp_path, pictures, options):
    """A run stopped while scoring keeps its last step and scores again.

    A grace period may be shorter than a scoring pass. The snapshot has the weights and statistics of training, not those
    with which the scorer predicts.
    """
    arguments = {"data": [str(pictures / "old")], **TINY, **options}
    whole = trained(tmp_path / "whole", **arguments)
    score = LiveScorer.score

    def interrupted(self, reporter, label, rows=None, poll=lambda: None, **options):
        def signal_comes():
            raised.append(True)
            stop[0].signal = signal.SIGTERM
            poll()

        return score(self, reporter, label, rows, signal_comes if stop else poll, **options)

    raised, stop = [], []
    enter = callbacks.StopRequest.__enter__
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StopRequest, "__enter__", lambda self: stop.append(self) or enter(self))
        patch.setattr(LiveScorer, "score", interrupted)
        with pytest.raises(Stopped, match="stopped while scoring"):
            run_training(out=str(tmp_path / "run"), **arguments)
    assert raised
    assert snapshot.list_snapshots(tmp_path / "run" / "snapshots")[-1][1].name.endswith("-unscored")
    run_training(out=str(tmp_path / "run"), **arguments)
    assert_same_bytes(result_arrays(whole), result_arrays(tmp_path / "run"))
    assert lines_without_time(whole) == lines_without_time(tmp_path / "run")


@pytest.mark.one_backend
def test_a_second_ctrl_c_leaves_at_once():
    """A second Ctrl-C exits at once; the first waits for a snapshot at the next step."""
    request = callbacks.StopRequest()
    request._handle(signal.SIGINT, None)
    assert request.exit_code == 130
    with pytest.raises(KeyboardInterrupt):
        request._handle(signal.SIGINT, None)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_averages_switched_on_while_extending_start_from_the_weights(tmp_path, pictures):
    """`--ema` on a parent without averages starts the averages from the weights, not from zero."""
    parent = trained(tmp_path / "parent", data=[str(pictures / "old")], **TINY)
    run_training(parent, add=[str(pictures / "new")], lr=1e-5, ema=0.99, epochs=1, out=str(tmp_path / "run"))
    arrays, before = result_arrays(tmp_path / "run"), result_arrays(parent)
    weights = [before[name] for name in sorted(before) if name.startswith("trainable/")]
    slots = [array for name, array in arrays.items() if name.startswith("optimizer/")]
    for weight in weights:
        near = [slot for slot in slots if slot.shape == weight.shape and np.abs(slot - weight).max() < 1e-2]
        assert near, weight.shape


PLAIN_MODEL = """
import keras
def build(num_classes):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((10, 10, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(),
        layers.Flatten(), layers.Dense(num_classes, "softmax"),
    ])
"""


def interrupted_after(tmp_path, pictures, **arguments):
    """Returns an undisturbed run and a copy killed after its second step."""
    arguments = {"data": [str(pictures / "old")], **TINY, "batch_size": 4, **arguments}
    whole = trained(tmp_path / "whole", every_snapshot=True, **arguments)
    shutil.copytree(whole, tmp_path / "killed")
    make_interrupted(tmp_path / "killed", "step-00000002")
    return whole, tmp_path / "killed"


def assert_same_within_tolerance(whole, other):
    one, two = lines_without_time(whole), lines_without_time(other)
    assert [(line["epoch"], line["step"], line["position"]) for line in one] == [
        (line["epoch"], line["step"], line["position"]) for line in two
    ]
    for mine, theirs in zip(one, two, strict=True):
        assert mine["lr"] == pytest.approx(theirs["lr"], rel=1e-5)
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    arrays, others = result_arrays(whole), result_arrays(other)
    for name in arrays:
        if name.startswith("trainable/"):
            np.testing.assert_allclose(arrays[name], others[name], atol=2e-3)
    assert "continued elsewhere" in (other / "events.jsonl").read_text()


def continue_in_a_process(path, *options, **environment):
    command = [sys.executable, "-m", "kresume", "train", "--out", str(path), *options]
    return forking.run(command, env={**os.environ, **environment}, check=True).stderr


def test_a_run_continues_under_the_other_backend(tmp_path, pictures):
    """A run continues under the other backend, within float tolerance, and records the change.

    The model has no dropout: the two backends draw other random numbers from the same seeds.
    """
    (tmp_path / "model.py").write_text(PLAIN_MODEL)
    whole, killed = interrupted_after(tmp_path, pictures, model=f"{tmp_path / 'model.py'}:build")
    other = {"tensorflow": "jax", "jax": "tensorflow"}[os.environ["KERAS_BACKEND"]]
    told = continue_in_a_process(killed, "--backend", other, KERAS_BACKEND=other)
    assert "same data and steps, last digits may differ" in told
    assert_same_within_tolerance(whole, killed)


@pytest.mark.one_backend(trains=True)
def test_what_came_since_is_counted_and_waits(tmp_path, pictures, capfd):
    """A continued run keeps its recorded images, and prints how many came since and how they join."""
    old = tmp_path / "old"
    shutil.copytree(pictures / "old", old)
    shutil.copy(old / "circle" / "0.png", old / "circle" / "copy.png")
    (old / "circle" / "broken.png").write_bytes(b"no picture")
    whole, killed = interrupted_after(tmp_path, pictures, data=[str(old)])
    train(from_arguments(None, {"out": str(killed)}), Reporter())
    assert "came since" not in capfd.readouterr().err
    shutil.copytree(whole, tmp_path / "again")
    make_interrupted(tmp_path / "again", "step-00000002")
    write_pictures(old, 2, 700)
    train(from_arguments(None, {"out": str(tmp_path / "again")}), Reporter())
    told = " ".join(capfd.readouterr().err.split())
    assert "6 new pictures were found since this run began: it continues with the images that it recorded" in told
    assert_same_bytes(result_arrays(killed), result_arrays(tmp_path / "again"))


COUNTING = """
import keras
import tensorflow as tf

class Counting(keras.Model):
    def __init__(self, num_classes, **options):
        super().__init__(**options)
        self.number = num_classes
        self.inner = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(num_classes, "softmax")]
        self.steps = tf.Variable(0.0, trainable=False)

    def call(self, values):
        for layer in self.inner:
            values = layer(values)
        return values

    def get_config(self):
        return {**super().get_config(), "num_classes": self.number}

    def train_step(self, data):
        x, *rest = data
        self.steps.assign_add(1.0)
        return super().train_step((keras.ops.cast(x, "float32") + 10 * self.steps, *rest))

def build(num_classes):
    model = Counting(num_classes)
    model(keras.ops.zeros((1, 10, 10, 3)))
    return model
"""


@pytest.mark.one_backend(trains=True)
def test_variables_that_keras_does_not_track_continue(monkeypatch, tmp_path, pictures, capfd):
    """A step count in the model's own code is in a snapshot, although it is none of `model.variables`."""
    monkeypatch.chdir(tmp_path)
    Path("mymodel.py").write_text(COUNTING)
    whole, killed = interrupted_after(tmp_path, pictures, model="mymodel.py:build")
    state, _ = snapshot.newest_snapshot(killed / "snapshots")
    assert state.records["other_variables"] == ["model.steps"]
    assert state.arrays["other_variables/0"] == 2.0
    run_training(out=str(killed))
    assert_same_bytes(result_arrays(whole), result_arrays(killed))
    # A child goes on with them, also if it is killed before its first snapshot.
    ended = result_arrays(whole)["other_variables/0"]
    asked = {"add": [str(pictures / "new")], "epochs": 1, "batch_size": 5, "lr": 1e-3}
    child = trained(tmp_path / "child", every_snapshot=True, checkpoint=str(whole), **asked)
    assert result_arrays(child)["other_variables/0"] == ended + runs.open_run(child).result_step()
    shutil.copytree(child, "again")
    make_interrupted(Path("again"), "step-00000000")
    run_training(out="again")
    assert_same_bytes(result_arrays(child), result_arrays(Path("again")))
    plan = kresume.plan(str(whole / "model.keras"), **asked, new_only=True, model="mymodel.py:build")
    assert plan.action == "extend"
    assert "that were not saved keep their first values: model.steps" in capfd.readouterr().err


OWN_LAYERS = """
import keras

class Doubled(keras.layers.Layer):
    def call(self, values):
        return 2.0 * values

def build(num_classes):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((10, 10, 3)), layers.Rescaling(1 / 255), Doubled(), layers.Conv2D(4, 3), layers.Flatten(),
        layers.Dense(num_classes, "softmax"),
    ])
"""


def test_a_users_own_layers_come_from_the_code_that_a_run_names(monkeypatch, tmp_path, pictures):
    """A user's layers are loaded from the code that the run names, through continuing and extending.

    They need not be registered, and no option has to name the code again. Deleted code is an error.
    """
    monkeypatch.chdir(tmp_path)
    Path("mymodel.py").write_text(OWN_LAYERS)
    whole, killed = interrupted_after(tmp_path, pictures, model="mymodel.py:build")
    run_training(out=str(killed))
    assert_same_bytes(result_arrays(whole), result_arrays(killed))
    child = run_training(str(killed), add=[str(pictures / "new")], epochs=1, out="child").run
    grandchild = run_training(child, epochs=1, lr=1e-3, lr_schedule="constant", out="grandchild").run
    assert runs.open_run(grandchild).record.as_dict()["options"]["imports"] == ["mymodel.py"]
    Path("mymodel.py").unlink()
    with pytest.raises(ModelError, match=r"cannot be built .*Doubled.*--import FILE.py"):
        run_training(grandchild, epochs=1, lr=1e-3, out="orphan")
