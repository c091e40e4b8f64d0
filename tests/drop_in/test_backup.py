"""Tests `kresume.BackupAndRestore`: a killed script, run again, ends with equal bytes."""

import functools
import json
import os
import re
import shutil
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

import kresume
from kresume.checkpoints import snapshot
from kresume.drop_in import backup_place
from kresume.drop_in.stream import stream_of
from kresume.errors import CheckpointError, UsageError
from tests.helpers import forking
from tests.helpers.backends import few_under_jax
from tests.helpers.flaky_bucket import bucket
from tests.helpers.noise import noise
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import assert_same_bytes

# Keras warns every user who passes fit a tf.data.Dataset without shuffle=False.
pytestmark = pytest.mark.filterwarnings("ignore:.shuffle=True. was passed:UserWarning")

STEPS, EPOCHS, BATCH = 6, 3, 4


class Killed(BaseException):
    """Represents SIGKILL: no state of the process is used afterwards."""


class Kill(keras.callbacks.Callback):
    """Dies after a number of batches, counted over epochs; at the end of an epoch if `in_validation`."""

    def __init__(self, after, in_validation=False):
        super().__init__()
        self.after, self.in_validation, self.done = after, in_validation, 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == self.after and not self.in_validation:
            raise Killed

    def on_test_begin(self, logs=None):
        if self.in_validation and self.done >= self.after:
            raise Killed


def numbers(position):
    """Returns endless batches of noise from a position on; the labels are learnable."""
    return noise(position, BATCH, 8)


def build(width=8, **compiled):
    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(width),
            layers.BatchNormalization(),
            layers.Dropout(0.4),
            layers.Dense(2, "softmax"),
        ]
    )
    options = {
        "optimizer": keras.optimizers.AdamW(1e-2),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
    }
    model.compile(**{**options, **compiled})
    return model


def validation():
    x = np.random.default_rng(5).normal(size=(10, 8)).astype("float32")
    return x, (x.sum(axis=1) > 0).astype("int32")


def watchers():
    return [
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=1, min_delta=0.5),
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=3, restore_best_weights=True),
    ]


class Remade:
    """Returns a model as a new process would build it. It is built and traced once: tracing takes most of a small fit.

    Its variables, slots, seeds and metrics have their first values again. Keep arrays of it, not the model.
    """

    def __init__(self, make):
        self.model = make()
        self.model.optimizer.build(self.model.trainable_variables)
        self.first = arrays_of(self.model)

    def __call__(self):
        keras.utils.set_random_seed(3)
        model = self.model
        for variable, array in zip([*model.variables, *model.optimizer.variables], self.first.values(), strict=True):
            variable.assign(array.copy())  # JAX may keep an aligned buffer as the variable, and a step overwrites it
        model.reset_metrics()
        model._initial_epoch, model.stop_training = None, False
        return model


@functools.cache
def default_model():
    return Remade(build)


def train(folder, *, kill=None, data=None, epochs=EPOCHS, model=None, extra=(), first=False, **options):
    """Fits, perhaps killed; returns the model and the history, None if killed."""
    data = kresume.resumable(numbers, STEPS) if data is None else data
    model = model or default_model()()
    callback = kresume.BackupAndRestore(folder, data=data, **{"save_freq": 1, "delete_checkpoint": False, **options})
    others = [*watchers(), *extra, *([kill] if kill else [])]
    callbacks = [callback, *others] if first else [*others, callback]
    try:
        history = model.fit(data, epochs=epochs, validation_data=validation(), callbacks=callbacks, verbose=0)
    except Killed:
        release(folder)
        return model, None
    return model, history.history


def release(folder):
    """Releases the lock, as the death of the process would.

    The writer finishes first, so that tests know the state of the disk.
    """
    for thread in threading.enumerate():
        if thread.name == "kresume-writer":
            thread.join()
    for lock in Path(folder).glob("lock.json"):
        lock.unlink()


def arrays_of(model):
    variables = [*model.variables, *model.optimizer.variables]
    return {str(index): np.array(keras.ops.convert_to_numpy(variable)) for index, variable in enumerate(variables)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trains without interruption, by plain `fit` on plain tf.data: every other training must equal it."""
    model = build()
    data = numbers(0)
    history = model.fit(
        data, epochs=EPOCHS, steps_per_epoch=STEPS, validation_data=validation(), callbacks=watchers(), verbose=0
    )
    return arrays_of(model), history.history


def test_the_callback_changes_nothing_about_the_training(tmp_path, whole):
    """Training with the callback, on resumable data, equals plain training: the same bits and history."""
    model, history = train(tmp_path)
    assert_same_bytes(whole[0], arrays_of(model))
    assert history == whole[1]


@pytest.mark.parametrize("after", [5, 12])
def test_killed_once_it_ends_with_the_same_bits(tmp_path, whole, after):
    """Killed within an epoch or after its last batch, a training continues to equal weights, slots, rates and history."""
    train(tmp_path, kill=Kill(after))
    model, history = train(tmp_path)
    assert_same_bytes(whole[0], arrays_of(model))
    assert history == whole[1]


def test_backups_in_a_bucket_continue_on_another_machine(tmp_path, whole, monkeypatch):
    """Killed there, a training continues elsewhere to the same bits; at the end nothing is left in the bucket."""
    bucket.reset()
    address = "flaky://b/backup"
    monkeypatch.setenv("KRESUME_STAGE", str(tmp_path / "one"))
    _, killed = train(address, kill=Kill(8))
    assert killed is None
    backup_place._open[address].finish(60)
    backup_place._open.pop(address)._lock._stop.set()
    bucket.store.pop(f"{address}/lock-1.json")
    monkeypatch.setenv("KRESUME_STAGE", str(tmp_path / "two"))
    model, history = train(address, delete_checkpoint=True)
    assert_same_bytes(whole[0], arrays_of(model))
    assert history == whole[1]
    assert sorted(bucket.store) == []


def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path, whole):
    """Killed after the first batch, before, on and behind an epoch's last one, each time it continues to the same bits.

    A backup is one batch behind: the batch after which the process dies is trained again.
    """
    reached = []
    for after in (1, 6, 2, 5, 2, 5):
        _, history = train(tmp_path, kill=Kill(after))
        assert history is None
        reached += [step for step, _ in snapshot.list_snapshots(tmp_path)]
    assert reached == [5, 6, 10, 11, 15]
    model, history = train(tmp_path)
    assert_same_bytes(whole[0], arrays_of(model))
    assert history == whole[1]


def test_killed_in_validation_while_it_stands_first_in_the_list(tmp_path, whole):
    """Killed once in validation, with the callback first in the list, it ends with equal bits."""
    train(tmp_path, kill=Kill(4), first=True)
    train(tmp_path, kill=Kill(2, in_validation=True), first=True)
    model, history = train(tmp_path, first=True)
    assert_same_bytes(whole[0], arrays_of(model))
    assert history == whole[1]


def test_a_coarse_save_freq_goes_back_and_comes_again_to_the_same_bits(tmp_path, whole):
    """With a backup every 4 batches, the steps since the backup are repeated to the same bits."""
    train(tmp_path, kill=Kill(11), save_freq=4)
    assert [step for step, _ in snapshot.list_snapshots(tmp_path)] == [8]
    model, _ = train(tmp_path, save_freq=4)
    assert_same_bytes(whole[0], arrays_of(model))


def test_without_data_it_is_exact_at_epoch_ends(tmp_path):
    """With save_freq="epoch" on numpy arrays, dropout and patience continue exactly."""
    x = np.random.default_rng(1).normal(size=(24, 8)).astype("float32")
    y = (x.sum(axis=1) > 0).astype("int32")

    def run(folder, kill=()):
        model = default_model()()
        callback = kresume.BackupAndRestore(folder, delete_checkpoint=False)
        callbacks = [*watchers(), *kill, callback]
        try:
            model.fit(x, y, 4, epochs=4, shuffle=False, validation_data=validation(), callbacks=callbacks, verbose=0)
        except Killed:
            release(folder)
        return arrays_of(model)

    expected = run(tmp_path / "whole")
    run(tmp_path / "killed", [Kill(15)])
    assert_same_bytes(expected, run(tmp_path / "killed"))


@pytest.mark.parametrize("kind", ["averages-accumulation", "per-call"])
def test_averages_accumulation_and_several_steps_per_call(tmp_path, kind):
    """use_ema, gradient accumulation and steps_per_execution continue exactly in a user's fit.

    Averages and sums of gradients are slots of their own: one that is not continued changes the bits beside the other.
    """

    def make():
        averages = {"use_ema": True, "ema_momentum": 0.8, "gradient_accumulation_steps": 4}
        optimizer = keras.optimizers.AdamW(1e-2, **({} if kind == "per-call" else averages))
        return build(optimizer=optimizer, **({"steps_per_execution": 3} if kind == "per-call" else {}))

    model = Remade(make)
    expected = arrays_of(train(tmp_path / "whole", model=model())[0])
    train(tmp_path / "killed", kill=Kill(3 if kind == "per-call" else 8), model=model())
    continued, _ = train(tmp_path / "killed", model=model())
    assert_same_bytes(expected, arrays_of(continued))


def test_a_training_that_was_stopped_early_is_not_trained_again(tmp_path):
    """A training stopped early and killed before the end of fit ends at once, with the same result."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    class Die(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise Killed

    train(tmp_path, extra=[Stop(), Die()])
    model, _ = train(tmp_path, extra=[Stop()])
    assert int(model.optimizer.iterations) == 2 * STEPS


def test_a_stop_that_falls_on_a_cut_epoch_is_honoured(tmp_path):
    """A stop by another callback holds although the callback itself cuts the interrupted epoch."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    train(tmp_path, kill=Kill(3))
    model, _ = train(tmp_path, extra=[Stop()])
    assert int(model.optimizer.iterations) == STEPS


def test_a_backup_of_an_earlier_version_says_what_begins_fresh():
    """A backup of an earlier version restores, and a line names the optimizers that start fresh.

    It holds no optimizers besides the compiled one.
    """
    from kresume.drop_in import other_optimizers

    model = build()
    assert other_optimizers.restore(model, None, []) == []
    model.another = keras.optimizers.SGD(0.1, momentum=0.9)
    assert "start fresh" in other_optimizers.restore(model, None, [])[0]
    model.layers[0].trainable = False  # frozen as a GAN's discriminator is while the generator trains
    frozen = model.layers[0].variables
    model.another.build(frozen)
    model.another.momentums[0].assign(np.full(frozen[0].shape, 7.0, "float32"))
    facts, arrays = other_optimizers.capture(model)
    again = build()
    again.another = keras.optimizers.SGD(0.1, momentum=0.9)
    assert other_optimizers.restore(again, facts, arrays) == []
    assert float(np.asarray(again.another.momentums[0].value).min()) == 7.0
    assert [tuple(slot.shape) for slot in again.another.momentums] == [tuple(variable.shape) for variable in frozen]


class StopAt(keras.callbacks.Callback):
    """Stops training once the optimizer has made a number of steps."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) >= self.step:
            self.model.stop_training = True


@pytest.mark.parametrize(
    ("step", "kill"),
    [
        pytest.param(2 * STEPS, Kill(STEPS + 2), id="on the last batch of an epoch that was interrupted"),
        pytest.param(
            STEPS + 2, Kill(STEPS + 2, in_validation=True), id="in the middle of one, killed as it is validated"
        ),
    ],
)
def test_a_stop_that_a_step_asks_for_comes_again(tmp_path, step, kill):
    """A stop at a given step comes at the same step after a kill: no extra step, no extra epoch."""
    expected = arrays_of(train(tmp_path / "whole", extra=[StopAt(step)])[0])
    _, killed = train(tmp_path / "killed", extra=[StopAt(step)], kill=kill)
    assert killed is None
    model, _ = train(tmp_path / "killed", extra=[StopAt(step)])
    assert int(model.optimizer.iterations) == step
    assert_same_bytes(expected, arrays_of(model))


def decay(epoch, lr):
    """Multiplies the previous epoch's rate, as in Keras's documentation."""
    return lr * 0.8


BEGINNING = {
    "a rate that each epoch lowers": (lambda: [keras.callbacks.LearningRateScheduler(decay)], {}),
    "averages that each epoch swaps in": (
        lambda: [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
        {"optimizer": lambda: keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.9)},
    ),
}


@pytest.mark.parametrize("kind", few_under_jax(BEGINNING, ["averages that each epoch swaps in"]))
def test_callbacks_that_begin_an_epoch_do_so_once(tmp_path, kind):
    """A callback's on_epoch_begin counts once, although two processes begin the interrupted epoch.

    The first is killed in the validation of an epoch, the second in the middle of the next one.
    """
    extra, options = BEGINNING[kind]
    made = Remade(lambda: build(**{name: make() for name, make in options.items()}))
    trained, history = train(tmp_path / "whole", model=made(), extra=extra())
    expected = arrays_of(trained)
    for kill in (Kill(STEPS, in_validation=True), Kill(3)):
        train(tmp_path / "killed", model=made(), extra=extra(), kill=kill)
    model, again = train(tmp_path / "killed", model=made(), extra=extra())
    assert_same_bytes(expected, arrays_of(model))
    assert history["loss"] == again["loss"]


class Scale(keras.layers.Layer):
    """Holds a single scalar weight; adds noise from Keras's own generator where the backend allows it."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        noise = keras.random.normal((8,), stddev=0.1) if self.noise else 0.0
        return inputs * self.factor + noise


def test_a_weight_without_dimensions_and_noise_without_a_seed(tmp_path):
    """A scalar weight, and noise from Keras's own generator, continue exactly with EarlyStopping.

    EarlyStopping's best weights may hold a single number.
    """

    def made():  # anew each time: Keras's own generator is no part of a model
        keras.utils.set_random_seed(11)
        noisy = Scale(noise=keras.config.backend() == "tensorflow")  # JAX refuses it in a compiled step
        model = keras.Sequential([keras.Input((8,)), noisy, keras.layers.Dense(2, "softmax")])
        model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    expected, _ = train(tmp_path / "whole", model=made())
    train(tmp_path / "killed", model=made(), kill=Kill(STEPS + 2))
    model, _ = train(tmp_path / "killed", model=made())
    assert_same_bytes(arrays_of(expected), arrays_of(model))


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="a train_step with two optimizers is TensorFlow's form"
)
def test_optimizers_beside_the_compiled_one_are_restored(tmp_path):
    """Optimizers besides the compiled one are restored with their slots and counts, as in a GAN."""
    import tensorflow as tf

    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = keras.layers.Dense(8, "relu"), keras.layers.Dense(2, "softmax")
            self.more = {"one": keras.optimizers.Adam(1e-2), "two": [keras.optimizers.SGD(1e-2, momentum=0.9)]}

        def call(self, inputs):
            return self.two(self.one(inputs))

        def train_step(self, data):
            x, y = data
            with tf.GradientTape(persistent=True) as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            self.more["one"].apply(tape.gradient(loss, self.one.trainable_variables), self.one.trainable_variables)
            self.more["two"][0].apply(tape.gradient(loss, self.two.trainable_variables), self.two.trainable_variables)
            return {"loss": loss}

    def made():
        keras.utils.set_random_seed(13)
        model = Two()
        model(np.zeros((BATCH, 8), "float32"))
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    def all_of(model):
        slots = [*model.more["one"].variables, *model.more["two"][0].variables]
        return {**arrays_of(model), **{f"slot {place}": np.array(slot.value) for place, slot in enumerate(slots)}}

    expected, _ = train(tmp_path / "whole", model=made())
    train(tmp_path / "killed", model=made(), kill=Kill(STEPS + 2))
    model, _ = train(tmp_path / "killed", model=made())
    assert_same_bytes(all_of(expected), all_of(model))
    assert int(model.more["one"].iterations) > 0


def test_a_rate_that_the_script_changed_takes_effect(tmp_path, capfd):
    """A model recompiled with another rate trains at that rate, says so, and keeps slots and iterations."""
    train(tmp_path, kill=Kill(8))
    model = build(optimizer=keras.optimizers.AdamW(5e-5))
    model, _ = train(tmp_path, model=model)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) <= 5.1e-5
    assert "(backup) -> 5e-05 (compile)" in capfd.readouterr().err
    assert int(model.optimizer.iterations) == STEPS * EPOCHS


def test_a_changed_rate_takes_effect_under_loss_scaling_too(tmp_path):
    """A changed rate takes effect under mixed_float16, whose wrapper has a rate without meaning."""

    def scaled(rate):
        return build(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate)))

    train(tmp_path, kill=Kill(2), model=scaled(1e-2))
    model, _ = train(tmp_path, model=scaled(1e-4))
    assert float(keras.ops.convert_to_numpy(model.optimizer.inner_optimizer.learning_rate)) <= 1.01e-4


def test_steps_per_epoch_and_data_contradict_each_other(tmp_path):
    """steps_per_epoch with `data` is refused.

    Keras keeps its iterator over epochs then, and would silently lose the data after a continued epoch.
    """
    data = kresume.resumable(numbers, STEPS)
    with pytest.raises(UsageError, match="leave steps_per_epoch out"):
        build().fit(data, steps_per_epoch=3, callbacks=[kresume.BackupAndRestore(tmp_path, data=data)], verbose=0)


def test_a_later_fit_goes_on_with_the_data(tmp_path, whole):
    """After a fit with the callback, the data continue with the following epochs."""
    data = kresume.resumable(numbers, STEPS)
    train(tmp_path, data=data)
    after = np.concatenate([labels.numpy() for _, labels in data])
    expected = np.concatenate([labels.numpy() for _, labels in numbers(STEPS * EPOCHS).take(STEPS)])
    np.testing.assert_array_equal(after, expected)


@pytest.mark.one_backend(trains=True)
def test_what_scripts_read_of_kerass_callback(tmp_path):
    """Attributes and files that scripts read of Keras's callback exist.

    These are the folder, the metadata file, `_current_epoch` and `_last_batch_seen`.
    """
    folder = tmp_path / "backup"
    train(folder, kill=Kill(8))
    assert json.loads((folder / "training_metadata.json").read_text()) == {"epoch": 1, "batch": 1}
    callback = kresume.BackupAndRestore(folder, data=kresume.resumable(numbers, STEPS))
    assert (callback.backup_dir, callback.save_freq) == (str(folder), "epoch")
    model = default_model()()
    model.fit(numbers(0), steps_per_epoch=1, epochs=1, verbose=0)
    (folder / "foreign.txt").write_text("mine")
    train(folder, delete_checkpoint=True)
    assert [path.name for path in folder.iterdir()] == ["foreign.txt"]
    shutil.rmtree(folder)
    train(folder, delete_checkpoint=True)
    assert not folder.exists()


def test_kerass_own_backup_is_read_and_its_torn_pair_passed_over(tmp_path, capfd):
    """A backup of Keras's own callback is continued: weights, optimizer, epoch; a torn pair is skipped."""
    x, y = validation()

    class Die(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise Killed

    model = default_model()()
    theirs = keras.callbacks.BackupAndRestore(str(tmp_path), double_checkpoint=True)
    with pytest.raises(Killed):
        model.fit(x, y, 5, epochs=5, shuffle=False, callbacks=[theirs, Die()], verbose=0)
    weights = tmp_path / "latest.weights.h5"
    weights.write_bytes(weights.read_bytes()[:1000])
    model = default_model()()
    model.fit(x, y, 5, epochs=5, shuffle=False, callbacks=[kresume.BackupAndRestore(tmp_path)], verbose=0)
    told = capfd.readouterr().err
    assert "continuing from Keras's own backup (latest.weights.h5.bkp) at epoch 3" in told
    assert int(model.optimizer.iterations) == 10
    # After a finished training nothing is left that a new start would continue.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest.weights.h5.bkp.taken-over",
        "latest.weights.h5.taken-over",
        "training_metadata.json.bkp.taken-over",
        "training_metadata.json.taken-over",
    ]
    for name in ("latest.weights.h5", "latest.weights.h5.bkp"):
        (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        default_model()().fit(x, y, 5, epochs=5, callbacks=[kresume.BackupAndRestore(tmp_path)], verbose=0)


@pytest.mark.parametrize("per_call", few_under_jax([1, 3, 4], [4]))
@pytest.mark.sample("4")
def test_the_step_of_a_backup_is_that_of_the_optimizer(tmp_path, capfd, per_call):
    """With several steps per call Keras counts beyond the end of an epoch, and so did the backup's step."""
    from kresume.checkpoints.read import read_checkpoint

    x, y = validation()

    class Die(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.epoch == 2 and batch + 1 >= 2 * per_call:
                raise Killed

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    made = Remade(lambda: build(steps_per_execution=per_call))

    def fit(*others):
        model = made()
        backup = kresume.BackupAndRestore(tmp_path / "b", save_freq=per_call, delete_checkpoint=False)
        model.fit(x, y, 1, epochs=3, shuffle=False, callbacks=[backup, *others], verbose=0)
        return int(model.optimizer.iterations)

    with pytest.raises(Killed):
        fit(Die())
    capfd.readouterr()
    assert fit() == 30
    told = re.search(r"at step (\d+) \(epoch (\d)(?:, batch (\d+))?\)", capfd.readouterr().err)
    step, epoch, batch = (int(number or 0) for number in told.groups())
    assert step == 10 * (epoch - 1) + batch > 10
    state = read_checkpoint(tmp_path / "b")
    assert state.step == int(state.arrays["optimizer/0"]) > 26


def test_kerass_own_backup_in_an_epoch_is_continued_as_keras_does(tmp_path, capfd):
    """Its epoch begins again on top of the batches that it had trained, to the same weights as with Keras's callback."""
    x, y = validation()

    class Die(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 7:
                raise Killed

    arrays = []
    for callback in (keras.callbacks.BackupAndRestore, kresume.BackupAndRestore):
        folder = tmp_path / callback.__module__
        model = default_model()()
        theirs = keras.callbacks.BackupAndRestore(str(folder), save_freq=2)
        with pytest.raises(Killed):
            model.fit(x, y, 3, epochs=3, shuffle=False, callbacks=[theirs, Die()], verbose=0)
        model = default_model()()
        model.fit(x, y, 3, epochs=3, shuffle=False, callbacks=[callback(str(folder))], verbose=0)
        arrays.append([variable.numpy().tobytes() for variable in (*model.variables, *model.optimizer.variables)])
    assert "at epoch 2, whose first 2 batches it trains again, as Keras does" in capfd.readouterr().err
    assert arrays[0] == arrays[1]


def test_a_backup_is_a_checkpoint_like_any_other(tmp_path):
    """`--from backup/` reads optimizer, step, rate and every array; a flipped byte is an error.

    The architecture is the script's.
    """
    from kresume.checkpoints.read import read_checkpoint
    from kresume.models import optimizers, restore

    trained, _ = train(tmp_path, kill=Kill(8), double_checkpoint=True)
    state = read_checkpoint(tmp_path)
    assert (state.format, state.step, state.optimizer.class_name) == ("kresume-backup", 7, "AdamW")
    assert state.records["interrupted"]
    model = build()
    optimizer = optimizers.make_optimizer(state.optimizer, state.rate.value)
    optimizer.build(model.trainable_variables)
    restore.restore(model, state, optimizer=optimizer)
    for group, variables in {"trainable": model.trainable_variables, "optimizer": optimizer.variables}.items():
        for index, variable in enumerate(variables):
            array = np.asarray(keras.ops.convert_to_numpy(variable))
            assert array.tobytes() == state.arrays[f"{group}/{index}"].tobytes(), variable.path
    newest = snapshot.list_snapshots(tmp_path)[-1][1]
    data = bytearray((newest / snapshot.ARRAYS).read_bytes())
    data[-1] ^= 1
    (newest / snapshot.ARRAYS).write_bytes(data)
    older = read_checkpoint(tmp_path)
    assert older.step == 6
    assert newest.name in older.records["passed_over"]
    with pytest.raises(CheckpointError, match="does not match its digest"):
        read_checkpoint(newest)
    assert int(trained.optimizer.iterations) == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"save_freq": 5, "strict": True}, "needs data="),
        ({"save_freq": False}, "'epoch' or a number"),
        ({"save_freq": 0}, "'epoch' or a number"),
        ({"save_freq": 0.15}, "Invalid value"),
        ({"backup_dir": ""}, "Empty `backup_dir` argument passed"),
        ({"backup_dir": None}, "Empty `backup_dir` argument passed"),
        ({"on_new_data": "now"}, "next-epoch"),
        ({"data": [1, 2]}, "whose position cannot be set"),
    ],
)
@pytest.mark.one_backend
def test_what_cannot_be_meant_is_refused(tmp_path, arguments, words):
    """Each mistake is an error that names the argument and the remedy."""
    with pytest.raises(UsageError, match=words):
        kresume.BackupAndRestore(**{"backup_dir": tmp_path, **arguments})


@pytest.mark.one_backend
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_another_backend_is_refused_before_fit(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(keras.config, "backend", lambda: backend)
    with pytest.raises(
        UsageError, match=f"Keras runs on {backend} .* set KERAS_BACKEND=tensorflow or KERAS_BACKEND=jax"
    ):
        kresume.BackupAndRestore(tmp_path)


def test_another_length_of_the_epoch_is_refused(tmp_path):
    """Another steps_per_epoch is refused, because the position depends on it."""
    train(tmp_path, kill=Kill(8))
    with pytest.raises(
        UsageError, match=f"^{tmp_path}: the interrupted training had 6 steps per epoch, this one has 5"
    ):
        train(tmp_path, data=kresume.resumable(numbers, 5))


@pytest.mark.one_backend(trains=True)
def test_another_model_is_refused_and_the_folder_named(tmp_path):
    """Another optimizer or another layer is an error that names the folder to keep or to leave."""
    train(tmp_path, kill=Kill(2))
    with pytest.raises(
        CheckpointError, match=f"^{tmp_path}: the snapshot holds .* optimizer variables, this model has"
    ):
        train(tmp_path, model=build(optimizer=keras.optimizers.SGD(0.1)))
    release(tmp_path)
    wider = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, "softmax")])
    wider.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: the snapshot holds .* weights and seed states"):
        train(tmp_path, model=wider)
    release(tmp_path)
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: (?s:.*); give another folder to start again$"):
        train(tmp_path, model=build(width=9))
    release(tmp_path)


@pytest.mark.one_backend
def test_data_that_ends_too_early_says_so(tmp_path):
    """A pipeline with fewer batches than steps_per_epoch is an error, not a warning."""
    data = kresume.resumable(lambda position: numbers(position).take(4), STEPS)
    with pytest.raises(Exception, match="the data ended after 4 of the 6 batches"):
        list(data)


@pytest.mark.one_backend
def test_what_fit_makes_of_the_data_has_its_length():
    """A further map keeps the number of batches, so that no epoch adds an update."""
    data = kresume.resumable(numbers, STEPS)
    assert int(data.map(lambda x, y: (x * 2.0, y)).prefetch(2).cardinality()) == len(data) == STEPS


# Images


SCRIPT = """
import os, sys, numpy as np, keras, kresume
folder, source, added = sys.argv[1:4]
keras.utils.set_random_seed(1)
layers = keras.layers
augment = keras.Sequential([layers.RandomFlip(), layers.RandomTranslation(0.2, 0.2)])
options = {"image_size": (12, 12), "batch_size": 5, "cache": None, "verbose": False, "map": augment}
data = kresume.image_dataset(source, add=added or None, **options)
model = keras.Sequential([keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.Flatten(),
                          layers.Dropout(0.3), layers.Dense(3, "softmax")])
model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
class Die(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) == int(os.environ.get("DIE_AT", -1)):
            os.kill(os.getpid(), 9)
backup = kresume.BackupAndRestore(folder, save_freq=1, data=data, delete_checkpoint=False)
history = model.fit(data, epochs=3, verbose=0, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, callbacks=[Die(), backup])
np.savez(folder + ".npz", *[np.asarray(keras.ops.convert_to_numpy(v)) for v in (*model.variables, *model.optimizer.variables)])
print(int(model.optimizer.iterations))
"""


@pytest.mark.one_backend(trains=True)
def test_a_real_script_really_killed_on_images(tmp_path, pictures):
    """A script killed by SIGKILL in its first epoch of images ends, run again, with equal bytes."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def script(name, run, die_at=-1):
        environment = {**os.environ, "DIE_AT": str(die_at)}
        arguments = [sys.executable, tmp_path / "script.py", tmp_path / name, pictures / "old", ""]
        return run(arguments, env=environment, capture_output=True, text=True, check=False)

    assert script("whole", forking.run).stdout.strip() == "15"
    assert script("killed", forking.run, 3).returncode == -9
    done = script("killed", forking.FRESH)
    assert re.search(r"continuing at step [12] \(epoch 1, batch [12]\)", done.stderr), done.stderr
    one, other = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("whole", "killed"))
    assert_same_bytes(one, other)


@pytest.fixture
def growing(tmp_path):
    write_pictures(tmp_path / "old", 4, 0)
    return tmp_path / "old"


def labels_of(data):
    return np.concatenate([labels.numpy() for _, labels in data])


def make(folder, **options):
    return kresume.image_dataset(folder, image_size=(12, 12), batch_size=5, cache=None, verbose=False, **options)


@pytest.mark.one_backend
def test_image_dataset_deals_permutations_in_full_batches(growing):
    """Each permutation holds every image once; batches are full and run over epoch ends.

    12 images in batches of 5 are 3 batches, and the next epoch continues from there.
    """
    data = make(growing)
    assert len(data) == 3
    row = np.concatenate([labels_of(data) for _ in range(4)])
    assert len(row) == 60
    for start in range(0, 60, 12):
        assert np.bincount(row[start : start + 12]).tolist() == [4, 4, 4]
    assert data.class_names == ["circle", "square", "stripes"]


@pytest.mark.one_backend
def test_a_look_at_the_data_does_not_move_it(growing):
    """Looking at the data does not move its position: neither `take` nor Keras's look at a first batch."""
    one, other = make(growing), make(growing)
    for _ in one.take(1):
        pass
    np.testing.assert_array_equal(labels_of(one), labels_of(other))


@pytest.mark.one_backend
def test_images_that_came_meanwhile_join_at_the_next_epoch(growing, tmp_path, capfd):
    """Added images join at the next epoch, and a line says so; "error" refuses them.

    The interrupted epoch ends on its old list.
    """
    before = make(growing)
    first = stream_of(before)
    first.save(tmp_path)
    whole = labels_of(before)
    write_pictures(growing, 9, 500)
    after = make(growing)
    stream = stream_of(after)
    with pytest.raises(UsageError, match="12 then, 39 now"):
        stream.adopt(tmp_path, first.identity(), 0, 1, "error")
    assert "the new list is used from epoch 2 on" in stream.adopt(tmp_path, first.identity(), 0, 1, "next-epoch")
    stream.seek(0, 1)
    assert (stream.steps(0), stream.steps(1), stream.longest()) == (3, 8, 8)
    for path in growing.rglob("*"):
        assert path.exists()
    np.testing.assert_array_equal(labels_of(after), whole[5:])
    stream.recount()
    assert int(after.map(lambda *batch: batch).cardinality()) == 8
    stream.seek(1, 0)
    assert len(labels_of(after)) == 40
    stream.save(tmp_path)
    again = stream_of(make(growing))
    assert again.adopt(tmp_path, stream.identity(), 1, 3, "error") == ""
    assert again.step(1, 3) == stream.step(1, 3) == 3


@pytest.mark.one_backend
def test_a_backup_of_another_version_of_the_decoding_is_adopted(growing, tmp_path):
    """Its version is no argument that a user could give; another size is one."""
    stream = stream_of(make(growing))
    stream.save(tmp_path)
    saved = stream.identity()
    version, rest = saved["spec"].split("-", 1)
    assert stream.adopt(tmp_path, {**saved, "spec": f"v1-{rest}"}, 0, 1, "error") == ""
    with pytest.raises(UsageError, match=f"had spec={version}-99"):
        stream.adopt(tmp_path, {**saved, "spec": f"{version}-99{rest}"}, 0, 1, "error")


@pytest.mark.one_backend
def test_images_that_went_meanwhile_leave_at_the_next_epoch(growing, tmp_path):
    """Removed images leave at the next epoch.

    The interrupted epoch is longer than later ones: the dataset that the user already holds has its length.
    """
    before = make(growing)
    first = stream_of(before)
    first.save(tmp_path)
    for path in sorted(growing.rglob("*.png"))[::2]:
        path.unlink()
    after = make(growing)
    stream = stream_of(after)
    assert len(after) == 2
    stream.adopt(tmp_path, first.identity(), 0, 1, "next-epoch")
    stream.seek(0, 0)
    stream.recount()
    assert len(after) == int(after.map(lambda *batch: batch).cardinality()) == 3
    stream.release(1)
    assert len(after) == 2


@pytest.mark.one_backend
def test_sides_follow_from_content(growing):
    """Adding images moves none from training to validation; both subsets together hold every image."""
    train_before, val_before = make(growing, validation_split=0.3, subset="both")
    names = set(train_before.file_paths)
    assert names.isdisjoint(val_before.file_paths)
    write_pictures(growing, 6, 700)
    train_after, val_after = make(growing, validation_split=0.3, subset="both")
    assert names <= set(train_after.file_paths)
    assert sum(len(labels) for _, labels in val_after) > sum(len(labels) for _, labels in val_before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": "none"}, "from the names of the folders"),
        ({"label_mode": "text"}, "label_mode"),
        ({"color_mode": "rgba"}, "color_mode"),
        ({"subset": "training"}, "give validation_split and subset"),
        ({"interpolation": "lanczos7"}, "interpolation"),
        ({"label_mode": "binary"}, "needs two classes"),
    ],
)
@pytest.mark.one_backend
def test_image_dataset_refuses_what_it_does_not_do(growing, arguments, words):
    """`image_dataset` refuses arguments that it does not support."""
    with pytest.raises(UsageError, match=words):
        make(growing, **arguments)


@pytest.mark.parametrize(("mode", "shape"), [("int", (5,)), ("categorical", (5, 3)), (None, None)])
@pytest.mark.one_backend
def test_label_modes_and_grey(growing, mode, shape):
    """Label modes and grey images have the shapes of image_dataset_from_directory."""
    batch = next(iter(make(growing, label_mode=mode, color_mode="grayscale")))
    images = batch if mode is None else batch[0]
    assert images.shape == (5, 12, 12, 1)
    assert mode is None or batch[1].shape == shape
