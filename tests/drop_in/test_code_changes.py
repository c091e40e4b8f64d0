"""Tests that a script that was edited between its kill and its restart is told so, and that an unchanged one is not."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

import kresume
from kresume.drop_in import code_changes, fit_of_script, script_record
from tests.helpers.paths import ROOT
from tests.helpers.script_records import load, record

pytestmark = [
    pytest.mark.one_backend(trains=True),
    pytest.mark.filterwarnings(
        "ignore:.shuffle=True. was passed:UserWarning", "ignore:.build... was called on layer:UserWarning"
    ),
]
layers, losses = keras.layers, keras.losses
X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
Y = (np.arange(8) % 3).astype("int32")
EDITED, DIFFERS = f"{code_changes.EDITED}: ", f"{code_changes.DIFFERS}: "
OTHER = "this is no longer the training that was interrupted"
SAME_WEIGHTS = "the weights train as before, unless a callback decides by it"
LAST_DIGITS = "the last digits of results may differ"


class Killed(BaseException):
    """Represents SIGKILL: no state of the process is used afterwards."""


class Kill(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch:  # the first one is backed up
            raise Killed


def sequential(at):
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, at.get("activation", "relu"), kernel_regularizer=at.get("l2"), dtype=at.get("dtype")),
            layers.BatchNormalization(momentum=at.get("momentum", 0.9), dtype=at.get("dtype")),
            layers.Dropout(at.get("rate", 0.1), dtype=at.get("dtype")),
            *[layers.Activation("tanh") for _ in range(at.get("more", 0))],
            layers.Dense(3, name="top", trainable=at.get("trainable", True), dtype=at.get("dtype")),
        ]
    )


def functional(at):
    x = inputs = keras.Input((4,))
    for layer in sequential(at).layers:
        x = layer(x)
    return keras.Model(inputs, x * at.get("scale", 2.0))


class Own(keras.Model):
    def __init__(self, at):
        super().__init__()
        self.parts, self.scale = sequential(at), at.get("scale", 2.0)

    def call(self, x, training=False):
        return self.parts(x, training=training) * self.scale


def subclassed(at):
    model = Own(at)
    model.build((None, 4))
    return model


def nested(at):
    x = inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Activation("linear")(sequential(at)(x)))


KINDS = (sequential, functional, subclassed, nested)


def make(kind, at, *, others=False):
    """Compiles a new model as a new process would."""
    keras.utils.clear_session()
    for _ in range(others):  # names that Keras generates differ from those of the restart
        layers.Dense(1), layers.Dropout(0.1), keras.Sequential()
    keras.utils.set_random_seed(3)
    model = kind(at)
    loss = at.get("loss", losses.SparseCategoricalCrossentropy(from_logits=True))
    compiled = {"metrics": ["accuracy"], "run_eagerly": True, **at.get("compile", {})}
    model.compile(keras.optimizers.SGD(0.01), loss, **compiled)
    return model


def train(kind, at, folder, *, kill=False):
    """Trains a new model; the last epoch if it is not killed."""
    model = make(kind, at, others=kill)
    backup = kresume.BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    given = {"batch_size": 4, "shuffle": False, "epochs": 2, **at.get("fit", {})}
    try:
        model.fit(X, Y, verbose=0, callbacks=[backup, *[Kill()] * kill], **given)
    except Killed:
        release()
    return model


def release():
    """Waits for the writer of the fit that was killed, so that tests know the state of the disk."""
    for thread in threading.enumerate():
        if thread.name == "kresume-writer":
            thread.join()


def custom(y_true, y_pred):
    return losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def focal(gamma):
    def loss(y_true, y_pred):
        return custom(y_true, y_pred) ** gamma

    return loss


CHANGES = {
    "activation": (sequential, {}, {"activation": "gelu"}, "dense: activation relu -> gelu. ", OTHER),
    "dropout": (functional, {}, {"rate": 0.5}, "dropout: rate 0.1 -> 0.5. ", OTHER),
    "regularizer": (subclassed, {}, {"l2": keras.regularizers.L2(0.01)}, "kernel_regularizer none -> L2(l2=0.01). ", OTHER),
    "no regularizer": (nested, {"l2": keras.regularizers.L2(0.01)}, {}, "kernel_regularizer L2(l2=0.01) -> none. ", OTHER),
    "momentum": (functional, {}, {"momentum": 0.99}, "batch_normalization: momentum 0.9 -> 0.99. ", OTHER),
    "trainable": (sequential, {}, {"trainable": False}, "top: trainable True -> False. ", OTHER),
    "policy": (sequential, {}, {"dtype": "mixed_bfloat16"}, "dense and 3 more: dtype float32 -> mixed_bfloat16. ", OTHER),
    "layers": (subclassed, {}, {"more": 2}, "layers added: 2 Activation. ", OTHER),
    "no layers": (functional, {"more": 1}, {"rate": 0.5}, "layers removed: Activation, dropout: rate 0.1 -> 0.5. ", OTHER),
    "constant in the graph": (functional, {}, {"scale": 3.0}, "Functional: connections of its layers. ", OTHER),
    "attribute": (subclassed, {}, {"scale": 3.0}, "Own: scale 2 -> 3. ", OTHER),
    "setting of a loss": (
        sequential, {}, {"loss": "sparse_categorical_crossentropy"}, "loss.from_logits True -> False. ", OTHER,
    ),
    "another loss": (
        sequential, {}, {"loss": custom}, "loss SparseCategoricalCrossentropy -> custom. ", OTHER,
    ),
    "closure of a loss": (nested, {"loss": focal(1.0)}, {"loss": focal(2)}, "loss.gamma 1 -> 2. ", OTHER),
    "code of a loss": (
        sequential,
        {"loss": lambda y, z: custom(y, z) * 1.0},
        {"loss": lambda y, z: custom(y, z) * 2.0},
        "the code of loss. ",
        OTHER,
    ),
    "loss_weights": (functional, {}, {"compile": {"loss_weights": [0.5]}}, "loss_weights none -> 0.5. ", OTHER),
    "metrics": (
        sequential, {}, {"compile": {"metrics": ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)]}},
        "metrics accuracy -> accuracy, SparseTopKCategoricalAccuracy. ", SAME_WEIGHTS,
    ),
    "eager": (sequential, {}, {"compile": {"run_eagerly": False}}, "run_eagerly True -> False", LAST_DIGITS),
    "steps_per_execution": (
        sequential,
        {"compile": {"run_eagerly": False}},
        {"compile": {"run_eagerly": False, "steps_per_execution": 2}},
        "steps_per_execution 1 -> 2. ",
        SAME_WEIGHTS,
    ),
    "class_weight": (
        sequential, {}, {"fit": {"class_weight": {0: 1.0, 1: 2.5}}}, "class_weight none -> {0: 1, 1: 2.5}. ", OTHER,
    ),
    "one class's weight": (
        subclassed,
        {"fit": {"class_weight": {0: 1.0, 1: 2.5, 2: 1.0}}},
        {"fit": {"class_weight": {0: 1.0, 1: 2.0, 2: 1.0}}},
        "class_weight[1] 2.5 -> 2. ",
        OTHER,
    ),
    "sample_weight": (sequential, {}, {"fit": {"sample_weight": np.ones(8)}}, "sample_weight none -> given. ", OTHER),
    "batch_size": (
        sequential, {"fit": {"steps_per_epoch": 2}}, {"fit": {"steps_per_epoch": 2, "batch_size": 2}},
        "batch_size 4 -> 2. ", OTHER,
    ),
    "several": (
        functional,
        {},
        {"rate": 0.2, "momentum": 0.8, "activation": "gelu", "scale": 3.0, "loss": custom, "fit": {"class_weight": {0: 2.0}}},
        "Functional: connections of its layers, dense: activation relu -> gelu, batch_normalization: momentum 0.9 -> 0.8, "
        "dropout: rate 0.1 -> 0.2, loss SparseCategoricalCrossentropy -> custom and 1 more. ",
        OTHER,
    ),
}  # fmt: skip


EDITS = {
    "STARTED = 2.0": "STARTED = 2.5",
    "NoConfig(0.2,": "NoConfig(0.3,",
    "smooth(0.1)": "smooth(0.2)",
    "return super().train_step(*data)": "return dict(super().train_step(*data))",
    "layers.LSTM(3,": "layers.LSTM(3, recurrent_dropout=0.1,",
    "y_pred * 1.0": "y_pred * 2.0",
    "base(inputs, training=False)": "base(inputs)",
}
TOLD = {
    "make_without_config": "no_config and 1 more: rate 0.2 -> 0.3, no_config: call.SCALE 2 -> 2.5. ",
    "make_subclassed": "the code of train_step. ",
    "make_recurrent": " and 3 more: recurrent_dropout 0 -> 0.1",
    "make_holding": "loss.eps 0.1 -> 0.2. ",
    "make_prepared": "the code of loss. ",
    "make_shared": "Functional: connections of its layers. ",
}
"""Words that the line of each edited model must hold; the other models must get no line."""


TRAINED = {"activation", "another loss", "metrics", "class_weight", "batch_size"}
"""Changes that are tested with a training that is killed; of the others only the records are compared."""


def prefix(words):
    """Returns how the line about a change begins: only code and layers are certainly edited."""
    return EDITED if words.startswith(("the code of", "layers added")) else DIFFERS


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_script_is_told(name):
    """The killed training continued with the changed code in silence."""
    kind, before, now, words, effect = CHANGES[name]
    old, new = (record(make(kind, at), at.get("fit")) for at in (before, now))
    [line] = code_changes.message(old, new)
    assert words in line
    assert effect in line
    assert line.startswith(prefix(words))


@pytest.mark.parametrize("name", TRAINED)
def test_a_change_of_the_script_takes_effect(tmp_path, capfd, name):
    """The line is told when training continues. This process has the same files, so it edited nothing."""
    kind, before, now, words, effect = CHANGES[name]
    train(kind, before, tmp_path, kill=True)
    capfd.readouterr()
    train(kind, now, tmp_path)
    said = capfd.readouterr().err
    assert "continuing at step 1" in said
    line = said[said.index(DIFFERS) :]
    assert words in line
    assert effect in line


def test_a_later_fit_of_one_process_is_another_training(tmp_path, capfd, monkeypatch):
    """A second stage goes on from the kept backup of the first one, with settings of its own. None was interrupted."""
    longer = {"rate": 0.5, "fit": {"epochs": 3}}
    train(sequential, {}, tmp_path)
    train(sequential, longer, tmp_path)
    said = capfd.readouterr().err
    assert "continuing at step 4" in said
    assert EDITED not in said
    assert DIFFERS not in said
    monkeypatch.setattr(fit_of_script, "PROCESS", "another")
    train(sequential, {"fit": {"epochs": 4}}, tmp_path)
    said = capfd.readouterr().err
    assert f"{DIFFERS}dropout: rate 0.5 -> 0.1. It takes effect from this step on" in said
    assert "interrupted" not in said
    train(sequential, {"rate": 0.9, "fit": {"epochs": 4}}, tmp_path)
    said = capfd.readouterr().err
    assert "nothing is left to train" in said
    assert EDITED not in said
    assert DIFFERS not in said


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_script_is_told_nothing(tmp_path, capfd, kind):
    """Names that Keras generates differ, and so does the order in which a process built other models."""
    train(kind, {}, tmp_path, kill=True)
    capfd.readouterr()
    train(kind, {}, tmp_path)
    said = capfd.readouterr().err
    assert "continuing at step 1" in said
    assert EDITED not in said
    assert DIFFERS not in said


def test_another_metric_in_an_interrupted_epoch_with_data(tmp_path, capfd):
    """It was refused. The averages of the backup are not those of the new metrics, and begin anew."""
    import tensorflow as tf

    def fit(metrics, kill=False):
        keras.utils.set_random_seed(3)
        model = sequential({})
        model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True), metrics=metrics)
        batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat()
        data = kresume.resumable(batches.skip, 2)
        backup = kresume.BackupAndRestore(tmp_path, save_freq=1, data=data, delete_checkpoint=False)
        model.fit(data, epochs=1, verbose=0, callbacks=[backup, *[Kill()] * kill])
        return model.history.history

    with pytest.raises(Killed):
        fit(["accuracy"], kill=True)
    release()
    assert set(fit(["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(3, name="top")])) == {
        "accuracy", "loss", "top",
    }  # fmt: skip
    said = capfd.readouterr().err
    assert f"{DIFFERS}metrics accuracy -> accuracy, SparseTopKCategoricalAccuracy. " in said
    assert "the metrics of the interrupted epoch cover its rest alone" in said


def test_a_backup_of_an_earlier_version_is_told_nothing(tmp_path, capfd):
    """It has no description; nor has one whose objects could not be described."""
    now = script_record.describe(compiled(sequential({})), None).records[script_record.RECORD]
    assert code_changes.message(None, now) == code_changes.message({}, now) == code_changes.message(now, {}) == []
    assert not code_changes.other_metrics(None, now)


def compiled(model):
    model.compile("sgd", "mse")
    return model


def test_a_large_model_is_described_in_little_space():
    model = compiled(keras.applications.MobileNetV2(weights=None))
    assert len(json.dumps(script_record.describe(model, None).records)) < 60_000


def test_a_model_that_training_changed_is_not_compared_with_its_first_attributes(tmp_path, capfd):
    """A callback lowers a rate; given to `fit` again in the same process, the model has what training left."""

    class Lower(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.layers[2].rate = 0.05

        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    class Counting(losses.Loss):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def call(self, y_true, y_pred):
            self.calls += 1
            return keras.losses.mean_squared_error(y_true, y_pred)

    model = sequential({})
    model.compile("sgd", Counting())
    for kill in (True, False):
        backup = kresume.BackupAndRestore(tmp_path, save_freq=1, delete_checkpoint=False)
        try:
            model.fit(X, X[:, :3], 4, 2, 0, callbacks=[backup, Lower(), *[Kill()] * kill], shuffle=False)
        except Killed:
            release()
    said = capfd.readouterr().err
    assert "continuing at step 1" in said
    assert EDITED not in said
    assert DIFFERS not in said


def test_another_process_describes_odd_models_in_the_same_way(monkeypatch):
    """Nothing is told of an unchanged script, in another process with another hash seed; an edited one is told of its edits.

    The script has lambdas, classes without a config, configs with dates and addresses, sets, and generated names.
    """
    path = Path(__file__).parent / "odd_models.py"
    script = path.read_text(encoding="utf-8")
    given = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1", "MADE_BEFORE": "3"}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, env=given)
    assert done.returncode == 0, done.stderr
    before = json.loads(done.stdout)

    def told(source):
        now = load(source).records()
        assert now.keys() == before.keys()
        return {name: line for name in now for line in code_changes.message(before[name], now[name])}

    assert told("# a comment\n" + script) == {}
    edited = script
    for old, new in EDITS.items():
        assert old in edited
        edited = edited.replace(old, new)
    lines = told(edited)
    for name, words in TOLD.items():
        assert words in lines.pop(name)
    assert lines == {}
