"""Tests models that keep state where Keras does not look for it, or parts that are never used: killed and continued exactly."""

import threading

import keras
import numpy as np
import pytest

import kresume
from tests.helpers.runs import assert_same_bytes

pytestmark = [
    pytest.mark.one_backend(trains=True),
    pytest.mark.filterwarnings(
        "ignore:Your input ran out of data:UserWarning",
        "ignore:.build... was called on layer:UserWarning",
        "ignore:.shuffle=True. was passed:UserWarning",
    ),
]
IMAGES = np.random.default_rng(1).normal(size=(52, 4)).astype("float32")
LABELS = (IMAGES.sum(axis=1) > 0).astype("float32")


class Killed(BaseException):
    """Represents SIGKILL: no state of the process is used afterwards."""


class Kill(keras.callbacks.Callback):
    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0

    def on_train_batch_end(self, batch, logs=None):
        self.calls += 1
        if self.calls == self.at:
            raise Killed


def train(make, folder, *, kill=None, **options):
    """Trains a new model as a new process would; returns it and the number of its calls, or None if it was killed."""
    keras.utils.set_random_seed(3)
    model = make()
    counter = Kill(kill)
    backup = kresume.BackupAndRestore(folder, delete_checkpoint=False, **{"save_freq": 2, **options.pop("backup", {})})
    given = {"x": IMAGES, "y": LABELS, "batch_size": 4, "shuffle": False, "epochs": 3, "verbose": 0, **options}
    try:
        model.fit(**given, callbacks=[backup, counter])
    except Killed:
        for thread in threading.enumerate():
            if thread.name == "kresume-writer":
                thread.join()
        return None
    return model, counter.calls


def arrays_of(model, *others):
    variables = [*model.variables, *model.optimizer.variables, *others]
    return {str(index): np.array(keras.ops.convert_to_numpy(variable)) for index, variable in enumerate(variables)}


class Counting(keras.Model):
    """Changes variables that Keras does not track, and reads them in each step."""

    def __init__(self):
        super().__init__()
        import tensorflow as tf

        self.dense = keras.layers.Dense(1)
        self.steps = tf.Variable(0.0, trainable=False)
        self.seen = {"of": [tf.Variable(np.zeros(2, np.float32), trainable=False)]}

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        self.steps.assign_add(1.0)
        self.seen["of"][0].assign_add([1.0, 0.5])
        return super().train_step((x + 0.01 * self.steps + 0.01 * self.seen["of"][0][1], y))


class Falling(keras.losses.Loss):
    """Weighs each step less than the one before."""

    def __init__(self):
        super().__init__()
        self.scale = keras.Variable(1.0, trainable=False)

    def call(self, y_true, y_pred):
        self.scale.assign(self.scale * 0.9)
        return keras.ops.mean((y_true - y_pred) ** 2, axis=-1) * self.scale


def counting():
    model = Counting()
    model(IMAGES[:4])
    model.compile(keras.optimizers.Adam(0.01), Falling())
    return model


def test_variables_beside_the_models_own_are_restored(tmp_path):
    def beside(model):
        return [model.steps, model.seen["of"][0], model.loss.scale]

    model, _ = train(counting, tmp_path / "whole")
    expected = arrays_of(model, *beside(model))
    assert float(model.steps) == 39
    for kill in (5, 20):
        assert train(counting, tmp_path / "killed", kill=kill) is None
    model, _ = train(counting, tmp_path / "killed")
    assert_same_bytes(expected, arrays_of(model, *beside(model)))


def test_variables_of_another_script_are_named(tmp_path, capfd):
    """A script that has other variables than the backup continues, and a line names them."""

    def another():
        model = counting()
        model.moved, model.steps = model.steps, None
        model.train_step = keras.Model.train_step.__get__(model)
        return model

    assert train(counting, tmp_path, kill=5) is None
    capfd.readouterr()
    train(another, tmp_path)
    told = capfd.readouterr().err
    assert "variables that were not saved keep their first values: model.moved" in told
    assert "variables that were saved are not in the code now: model.steps" in told


class Unused(keras.Model):
    """Has a head that this configuration never calls."""

    def __init__(self):
        super().__init__()
        self.dense, self.other = keras.layers.Dense(1), keras.layers.Dense(5)

    def call(self, x):
        return self.dense(x)


def unused():
    model = Unused()
    model(IMAGES[:4])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def test_a_layer_that_is_never_called_needs_no_weights(tmp_path):
    expected, _ = train(unused, tmp_path / "whole")
    assert train(unused, tmp_path / "killed", kill=20) is None
    found, _ = train(unused, tmp_path / "killed")
    assert_same_bytes(arrays_of(expected), arrays_of(found))


def small(**options):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse", **options)
    return model


def test_a_finished_fit_that_keeps_its_backup_trains_nothing_again(tmp_path):
    """The last steps are in the backup, although they are fewer than `save_freq`."""
    first, _ = train(small, tmp_path, backup={"save_freq": 5})
    again, calls = train(small, tmp_path, backup={"save_freq": 5})
    assert calls == 0
    assert_same_bytes(arrays_of(first), arrays_of(again))


def test_data_that_end_within_an_epoch(tmp_path):
    """13 batches, epochs of 7 in calls of 3: Keras draws 9 of them, then 4 in the next call and ends the epoch."""
    options = {"steps_per_epoch": 7, "epochs": 4}

    def make():
        return small(steps_per_execution=3)

    expected, _ = train(make, tmp_path / "whole", **options)
    for kill in range(2, 9):
        folder = tmp_path / str(kill)
        assert train(make, folder, kill=kill, **options) is None
        found, _ = train(make, folder, **options)
        assert_same_bytes(arrays_of(expected), arrays_of(found))


def test_a_map_that_counts_its_calls_is_told(tmp_path, capfd):
    import tensorflow as tf

    def data(noise):
        plain = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4)
        return plain.map(lambda x, y: (noise(x, training=True), y)).prefetch(1) if noise else plain

    for noise in (None, keras.layers.GaussianNoise(0.1)):
        folder = tmp_path / str(noise is None)
        options = {"y": None, "batch_size": None, "shuffle": True}
        assert train(small, folder, kill=20, x=data(noise), **options) is None
        capfd.readouterr()
        train(small, folder, x=data(noise), **options)
        assert ("a map of the data changes a variable" in capfd.readouterr().err) == (noise is not None)


@pytest.mark.parametrize("shuffles", [False, True])
def test_a_loader_that_shuffles_is_told(tmp_path, capfd, shuffles):
    torch = pytest.importorskip("torch")
    images, labels = map(torch.from_numpy, (IMAGES, LABELS))
    dataset = torch.utils.data.TensorDataset(images, labels)
    options = {"y": None, "batch_size": None, "shuffle": True}
    for kill in (20, None):
        capfd.readouterr()
        loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=shuffles)
        train(small, tmp_path / "backup", kill=kill, x=loader, **options)
    assert ("shuffles by a generator of torch, whose state no backup holds" in capfd.readouterr().err) == shuffles
