"""Tests the promises of Keras's own callback, and the backups when a training ends badly."""

import importlib
import importlib.util
import sys

import keras
import numpy as np
import pytest

import kresume
from kresume.checkpoints import snapshot
from kresume.errors import UsageError
from tests.helpers import forking
from tests.helpers.runs import assert_same_bytes

pytestmark = pytest.mark.optimized_graphs

BATCH, STEPS = 4, 3


class Interrupted(RuntimeError):
    """Represents an exception of another callback."""


class Raise(keras.callbacks.Callback):
    """Raises after a number of batches or epochs."""

    def __init__(self, batches=None, epochs=None):
        super().__init__()
        self.left = {"batches": batches, "epochs": epochs}

    def _one(self, kind):
        if self.left[kind] is not None:
            self.left[kind] -= 1
            if self.left[kind] == 0:
                raise Interrupted

    def on_train_batch_end(self, batch, logs=None):
        self._one("batches")

    def on_epoch_end(self, epoch, logs=None):
        self._one("epochs")


def build(**options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    model.compile(**{"optimizer": "sgd", "loss": "mse", **options})
    return model


def data():
    x = np.random.default_rng(0).normal(size=(BATCH * STEPS, 3)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def fit(model, callbacks, epochs=3, x=None):
    return model.fit(data()[0] if x is None else x, data()[1], BATCH, epochs, 0, callbacks=callbacks, shuffle=False)


def arrays_of(model):
    variables = [*model.variables, *model.optimizer.variables]
    return {str(index): np.array(keras.ops.convert_to_numpy(variable)) for index, variable in enumerate(variables)}


# Keras's promises

THEIRS = "keras.src.callbacks.backup_and_restore_test"


@pytest.mark.skipif(importlib.util.find_spec(THEIRS) is None, reason="this Keras was installed without its tests")
@pytest.mark.filterwarnings("ignore")
def test_kerass_own_tests_pass(monkeypatch, request):
    """Keras's own tests of its callback pass with ours in its place."""
    import unittest

    from keras.src import callbacks

    request.config.addinivalue_line("markers", "requires_trainable_backend: a mark of Keras's tests")
    monkeypatch.setattr(callbacks, "BackupAndRestore", kresume.BackupAndRestore)
    suite = unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(THEIRS))
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=2).run(suite)
    keras.config.enable_traceback_filtering()  # Keras's own test case turns it off and leaves it so
    assert result.testsRun >= 7
    assert result.wasSuccessful(), result.failures + result.errors


def test_an_epoch_that_ended_counts_although_another_callback_raised(tmp_path):
    """An epoch that ended counts although another callback raised, wherever it is in the list.

    The state of the callbacks after it is backed up, too.
    """
    whole = build()
    history = fit(whole, []).history
    backup = kresume.BackupAndRestore(tmp_path, delete_checkpoint=False)
    with pytest.raises(Interrupted):
        fit(build(), [backup, Raise(epochs=2)])
    assert (backup._current_epoch, backup._last_batch_seen) == (2, 0)
    model = build()
    counter = Raise()
    epochs = []
    counter.on_epoch_end = lambda epoch, logs=None: epochs.append(epoch)
    again = fit(model, [kresume.BackupAndRestore(tmp_path), counter])
    assert epochs == [2]
    assert_same_bytes(arrays_of(whole), arrays_of(model))
    assert again.history == history


def test_a_batch_that_was_trained_counts_although_another_callback_raised(tmp_path):
    """With a number as save_freq, the backup holds the step after which another callback raised.

    Its index is Keras's.
    """
    backup = kresume.BackupAndRestore(tmp_path, save_freq=1)
    with pytest.raises(Interrupted):
        fit(build(), [Raise(batches=2), backup])
    assert (backup._current_epoch, backup._last_batch_seen) == (0, 1)
    assert backup._weights_path == str(tmp_path / "step-00000002" / "state.safetensors")


@pytest.mark.parametrize(("strict", "updates"), [(None, 2 + 3 * STEPS), (False, 3 * STEPS)])
def test_a_callback_that_is_used_again_begins_the_epoch_again(tmp_path, strict, updates):
    """A callback that is used again begins the epoch again, as Keras's tests require.

    With strict=False, and in a new process, the epoch continues.
    """
    model = build()
    backup = kresume.BackupAndRestore(tmp_path, save_freq=1, strict=strict)
    with pytest.raises(Interrupted):
        fit(model, [backup, Raise(batches=2)])
    fit(model, [backup])
    assert int(model.optimizer.iterations) == updates
    assert not tmp_path.exists()


def test_one_callback_instead_of_a_list(tmp_path):
    """A single callback instead of a list trains to the same bits.

    Keras would call it from another thread, while the next step changes the variables that it reads.
    """
    whole, model = build(), build()
    fit(whole, [])
    fit(model, kresume.BackupAndRestore(tmp_path, save_freq=1))
    assert_same_bytes(arrays_of(whole), arrays_of(model))


# The end of a training


def broken(batch):
    x = data()[0].copy()
    x[batch * BATCH] = np.nan
    return x


def scaled():
    """Returns an optimizer like mixed_float16's: it skips steps with gradients that are not finite.

    So the weights stay finite.
    """
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))


@pytest.mark.parametrize("made", [lambda: "sgd", scaled], ids=["the weights break too", "the weights stay finite"])
@pytest.mark.parametrize("freq", [1, "epoch"])
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.sample("1-the weights stay finite", "epoch-the weights break too")
def test_a_loss_that_is_no_number_keeps_the_backups(tmp_path, capfd, made, freq):
    """TerminateOnNaN keeps the backups; the next start trains from them.

    It ends fit without an error. It does not count as a stop.
    """
    fit(build(optimizer=made()), [kresume.BackupAndRestore(tmp_path, freq, delete_checkpoint=False), Raise()], epochs=1)
    end = [keras.callbacks.TerminateOnNaN()]
    fit(build(optimizer=made()), [*end, kresume.BackupAndRestore(tmp_path, freq)], x=broken(1))
    told = capfd.readouterr().err
    assert "the loss is nan" in told
    assert "the backups are kept" in told
    good = STEPS + 1 if freq == 1 else STEPS
    assert [step for step, _ in snapshot.list_snapshots(tmp_path)] == [good]
    model = build(optimizer=made())
    fit(model, [*end, kresume.BackupAndRestore(tmp_path, freq)])
    assert int(model.optimizer.iterations) == 3 * STEPS
    assert not tmp_path.exists()


def test_weights_that_break_in_the_last_step_keep_the_backups(tmp_path, capfd):
    """Weights that are not finite after the last step keep the backups.

    The loss of an update is computed before it, so the weights are checked, too.
    """

    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                self.model.layers[0].kernel.assign(np.full((3, 4), np.inf, "float32"))

    fit(build(), [Break(), kresume.BackupAndRestore(tmp_path)])
    assert "the weights are not finite, so the backups are kept. The newest is of step 6" in capfd.readouterr().err


def test_early_stopping_is_an_end(tmp_path):
    """Early stopping is a regular end: the backups are deleted, as Keras does."""
    stop = keras.callbacks.EarlyStopping(monitor="loss", patience=0, min_delta=1e9)
    fit(build(), [stop, kresume.BackupAndRestore(tmp_path)], epochs=9)
    assert not tmp_path.exists()


# The data of fit and the value of data=


def numbers(position=0):
    import tensorflow as tf

    return tf.data.Dataset.range(position, 10**6).map(lambda index: tf.fill((2, 3), tf.cast(index, tf.float32)))


@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed:UserWarning")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(lambda ours: data()[0], "does not come from data=", id="arrays"),
        pytest.param(lambda ours: numbers().take(4), "does not come from data=", id="another dataset"),
        pytest.param(lambda ours: kresume.resumable(numbers, 4), "another dataset than data=", id="another of ours"),
        pytest.param(lambda ours: ours.shuffle(4), r"changes its batches or their order \(Shuffle\)", id="shuffle"),
        pytest.param(lambda ours: ours.map(abs).cache(), r"\(Cache\)", id="cache"),
        pytest.param(lambda ours: ours.take(2), r"\(Take\)", id="take"),
        pytest.param(lambda ours: ours.repeat(), r"\(Repeat\)", id="repeat"),
        pytest.param(lambda ours: ours.unbatch().batch(4), r"\(Batch\)", id="batch"),
        pytest.param(
            lambda ours: ours.map(abs, num_parallel_calls=2, deterministic=False), r"\(ParallelMap\)", id="any order"
        ),
        pytest.param(lambda ours: (batch for batch in ours), "generator", id="a generator over it"),
    ],
)
@pytest.mark.one_backend
def test_what_cannot_be_followed_is_refused_before_the_first_step(tmp_path, given, words):
    """`data=` is refused before the first step unless fit draws its batches one by one."""
    from kresume.drop_in.stream import reason_not_followed, stream_of

    ours = kresume.resumable(numbers, 4)
    import re

    assert re.search(words, reason_not_followed(given(ours), stream_of(ours)))
    for followed in (ours, ours.map(abs), ours.map(abs, num_parallel_calls=2).prefetch(2)):
        assert reason_not_followed(followed, stream_of(ours)) == ""
        assert stream_of(followed) is stream_of(ours)


def test_fit_on_other_data_than_data_is_refused(tmp_path):
    """fit on other data than `data=` is refused before the first step, and leaves the model usable."""
    model = build()
    backup = kresume.BackupAndRestore(tmp_path, data=kresume.resumable(numbers, 4))
    with pytest.raises(UsageError, match="a ndarray that does not come from data=: give fit the dataset"):
        fit(model, [backup])
    fit(model, [])
    assert int(model.optimizer.iterations) == 3 * STEPS


# Several replicas

MIRRORED = """
import sys, threading
import keras, numpy as np, tensorflow as tf
import kresume
devices = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

class Killed(BaseException):
    pass

class Kill(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == 7:
            raise Killed

def numbers(position=0):
    def batch(index):
        x = tf.random.stateless_normal((8, 4), tf.stack([index, tf.constant(7, tf.int64)]))
        return x, tf.cast(tf.reduce_sum(x, axis=1) > 0, tf.int32)
    return tf.data.Dataset.range(position, 10**6).map(batch)

def run(folder=None, kill=False):
    keras.utils.set_random_seed(3)
    with strategy.scope():
        layers = keras.layers
        model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(), layers.Dropout(0.3),
                                  layers.Dense(2, "softmax")])
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    data = numbers().take(8) if folder is None else kresume.resumable(numbers, 4)
    options = {"steps_per_epoch": 4} if folder is None else {}
    callbacks = [] if folder is None else [kresume.BackupAndRestore(folder, save_freq=1, data=data, delete_checkpoint=False)]
    try:
        model.fit(data, epochs=2, callbacks=[*callbacks, *([Kill()] if kill else [])], verbose=0, **options)
    except Killed:
        for thread in threading.enumerate():
            if thread.name == "kresume-writer":
                thread.join()
    return [np.array(keras.ops.convert_to_numpy(v)) for v in [*model.variables, *model.optimizer.variables]]

expected = run()
run(sys.argv[1], kill=True)
found = run(sys.argv[1])
print(all(one.tobytes() == other.tobytes() for one, other in zip(expected, found, strict=True)))
"""


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="tf.distribute is TensorFlow's")
def test_mirrored_variables_are_read_and_restored(tmp_path):
    """Killed under MirroredStrategy, a training continues to the bits of plain Keras under it."""
    done = forking.run([sys.executable, "-c", MIRRORED, tmp_path / "backup"])
    assert done.stdout.strip().splitlines()[-1:] == ["True"], done.stderr[-3000:]
    assert "continuing at step 6 (epoch 2, batch 2)" in done.stderr
