"""Tests `kresume.BackupAndRestore` beside other callbacks: their state, their files and their stops."""

import gc
import inspect
import json
import random
import re
import shutil
import threading
from collections import deque

import keras
import numpy as np
import pytest

import kresume
from kresume.drop_in import generators
from kresume.drop_in.stream import stream_of
from kresume.errors import CheckpointError, RunError, UsageError
from kresume.training.loop import callback_state
from kresume.training.loop.fit import build_from_spec
from tests.helpers.backends import few_under_jax
from tests.helpers.noise import noise
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import assert_same_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.shuffle=True. was passed:UserWarning")

STEPS, EPOCHS, BATCH = 3, 3, 4


class Killed(BaseException):
    """Represents SIGKILL: no state of the process is used afterwards.

    Other callbacks are not notified, as with an exception.
    """


class Kill(keras.callbacks.Callback):
    """Dies after a number of batches of this process, or after the other callbacks at the end of an epoch."""

    def __init__(self, batches=None, epoch=None):
        super().__init__()
        self.batches, self.epoch, self.done = batches, epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == self.batches:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Killed


def numbers(position):
    """Returns endless batches of noise from a position on; the labels are learnable."""
    return noise(position, BATCH, 4)


def build():
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    return model


@pytest.fixture(scope="module")
def model():
    """Provides one model for all tests that only drive the callbacks, also with data that it does not fit.

    So its optimizer and metrics exist before: creating them calls the model.
    """
    model = build()
    build_from_spec(model, stream_of(kresume.resumable(numbers, STEPS)).element_spec)
    return model


def die(folder, callbacks):
    """Releases the lock and closes the files, as the death of a process would; its writer finishes first."""
    for thread in threading.enumerate():
        if thread.name == "kresume-writer":
            thread.join()
    (folder / "lock.json").unlink(missing_ok=True)
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger):
            callback.csv_file.close()
        if isinstance(callback, keras.callbacks.OrbaxCheckpoint):
            callback.checkpointer.close()
        if isinstance(callback, keras.callbacks.TensorBoard):
            callback._pop_writer()  # the process's default writer; buffered events remain buffered


def losses(epoch, batch):
    return {"loss": 1 / (1 + STEPS * epoch + batch), "val_loss": 2.0}


def drive(model, folder, callbacks=(), *, data=None, epochs=EPOCHS, **options):
    """Calls the callbacks as `fit` does, without training; returns the number of steps of each epoch."""
    data = kresume.resumable(numbers, STEPS) if data is None else data
    stream = stream_of(data)
    backup = kresume.BackupAndRestore(folder, data=data, **{"save_freq": 1, "delete_checkpoint": False, **options})
    done, model._initial_epoch, model.stop_training = {}, None, False
    called = keras.callbacks.CallbackList([*callbacks, backup], model=model, epochs=epochs, steps=STEPS, verbose=0)
    try:
        called.on_train_begin()
        for epoch in range(model._initial_epoch or 0, epochs):
            called.on_epoch_begin(epoch)
            first = stream.batch
            for batch in range(first, stream.steps(epoch)):
                called.on_train_batch_begin(batch - first)
                called.on_train_batch_end(batch - first, losses(epoch, batch))
                done[epoch] = done.get(epoch, 0) + 1
                if model.stop_training:
                    break
            called.on_test_begin()
            called.on_test_end({"loss": 2.0})
            called.on_epoch_end(epoch, losses(epoch, STEPS))
            if model.stop_training:
                break
        called.on_train_end()
    except Killed:
        die(folder, callbacks)
    return done


# Stops requested by a callback


def stopping(patience=1, **options):
    """Returns an EarlyStopping whose loss never improves enough: it stops once its patience ends."""
    return keras.callbacks.EarlyStopping(monitor="loss", patience=patience, min_delta=100, **options)


def images(folder):
    return kresume.image_dataset(folder, image_size=(8, 8), batch_size=6, cache=None, verbose=False)


def test_new_images_after_an_early_stop_are_trained(model, tmp_path, capfd):
    """Images added after an early stop are trained: patience restarts, and a line says so.

    The old images caused the stop.
    """
    write_pictures(tmp_path / "old", 4, 0)
    assert drive(model, tmp_path / "b", [stopping()], data=images(tmp_path / "old"), epochs=6) == {0: 2, 1: 2}
    write_pictures(tmp_path / "old", 2, 500)
    capfd.readouterr()
    assert drive(model, tmp_path / "b", [stopping()], data=images(tmp_path / "old"), epochs=6) == {2: 3}
    told = capfd.readouterr().err
    assert "continuing at step 4 (epoch 3)" in told
    assert "12 images before, 18 now: the new list is used from epoch 3 on" in told
    assert "new images arrived: EarlyStopping's patience starts again" in told


def test_new_images_when_all_epochs_are_done_say_what_to_change(model, tmp_path, capfd):
    """If all epochs are done, a line says so and its advice works."""
    write_pictures(tmp_path / "old", 4, 0)
    drive(model, tmp_path / "b", data=images(tmp_path / "old"), epochs=2)
    write_pictures(tmp_path / "old", 2, 500)
    assert drive(model, tmp_path / "b", data=images(tmp_path / "old"), epochs=2) == {}
    told = capfd.readouterr().err
    assert (
        "nothing is left to train: all 2 epochs are done (step 4); give fit(epochs=...) more than 2 to train further"
        in told
    )
    assert "12 images before, 18 now" in told
    assert drive(model, tmp_path / "b", data=images(tmp_path / "old"), epochs=3) == {2: 3}


def test_new_images_in_the_last_epoch_say_that_no_epoch_trains_them(model, tmp_path, capfd):
    """An interrupted epoch ends on its old list, so the last one leaves none for the new list."""
    write_pictures(tmp_path / "old", 4, 0)
    drive(model, tmp_path / "b", [Kill(4)], data=images(tmp_path / "old"), epochs=2)
    write_pictures(tmp_path / "old", 2, 500)
    for epochs, told in ((3, False), (2, True)):
        shutil.copytree(tmp_path / "b", tmp_path / f"{epochs}")
        capfd.readouterr()
        done = drive(model, tmp_path / f"{epochs}", data=images(tmp_path / "old"), epochs=epochs)
        assert done == {2: {1: 1}, 3: {1: 1, 2: 3}}[epochs]
        said = capfd.readouterr().err
        assert "12 images before, 18 now: the new list is used from epoch 3 on" in said
        assert ("so it is not trained unless fit(epochs=...) is more than 2" in said) == told


class StopAfter(keras.callbacks.Callback):
    """Stops after a number of batches of each process, as a user's time limit does."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.stop_training = True

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("first", "then", "options", "steps", "words"),
    [
        pytest.param(
            [stopping], [stopping], {}, 2, "nothing is left to train: EarlyStopping ended the training", id="same again"
        ),
        pytest.param(
            [stopping], [stopping], {"epochs": 9}, 3, "now 9 epochs are requested instead of 6", id="more epochs"
        ),
        pytest.param([stopping], [lambda: stopping(3)], {}, 4, "now it has more patience", id="more patience"),
        pytest.param([stopping], [], {}, 6, "now it has more patience", id="no EarlyStopping any more"),
        pytest.param([lambda: StopAfter(6)], [lambda: StopAfter(6)], {}, 4, "may end it again", id="a limit of time"),
        pytest.param([], [], {}, 6, "all 6 epochs are done", id="all epochs done"),
        pytest.param([], [], {"epochs": 8}, 8, "continuing at step 18", id="all epochs done, more asked"),
        pytest.param(
            [],
            [],
            {"epochs": 4},
            6,
            "the backup (step 18) is ahead of the requested 4 epochs",
            id="fewer epochs than done",
        ),
    ],
)
def test_a_finished_training_goes_on_or_says_why_not(model, tmp_path, capfd, first, then, options, steps, words):
    """A restart after a finished training trains the remaining epochs, or names what has to change."""
    before = drive(model, tmp_path, [make() for make in first], epochs=6)
    capfd.readouterr()
    after = drive(model, tmp_path, [make() for make in then], **{"epochs": 6, **options})
    assert words in capfd.readouterr().err
    assert list({**before, **after}.items()) == [(epoch, STEPS) for epoch in range(steps)]
    assert set(before).isdisjoint(after)


def test_a_stop_before_a_kill_holds_once(model, tmp_path, capfd):
    """A stop before a kill ends the next start at once; one more start trains on."""

    class Die(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise Killed

    assert drive(model, tmp_path, [StopAfter(3), Die()]) == {0: 3}
    assert drive(model, tmp_path, [StopAfter(3)]) == {}
    assert "run the script again to train further" in capfd.readouterr().err
    assert drive(model, tmp_path, [StopAfter(3)]) == {1: 3}


# State of the callbacks


class OwnRate(keras.callbacks.Callback):
    """Lowers the rate by its own state."""

    def __init__(self):
        super().__init__()
        self.rate = 8e-3

    def on_epoch_end(self, epoch, logs=None):
        self.rate /= 2
        self.model.optimizer.learning_rate = self.rate


class KeptRate(OwnRate):
    def get_state(self):
        return {"rate": self.rate}

    def set_state(self, state):
        self.rate = state["rate"]


class Stateless(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        return


class Counting(keras.callbacks.ReduceLROnPlateau):
    """Counts in an attribute that Keras's class does not have."""

    def __init__(self):
        super().__init__(monitor="loss")
        self.seen = 0


class LateCounting(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.late = epoch


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (OwnRate, "OwnRate (rate)"),
        (Counting, "Counting (seen)"),
        (LateCounting, "LateCounting (late)"),
        (lambda: keras.callbacks.LambdaCallback(on_epoch_end=print), None),
        (KeptRate, None),
        (Stateless, None),
        (keras.callbacks.Callback, None),
        (lambda: keras.callbacks.ReduceLROnPlateau(monitor="loss"), None),
        (lambda: keras.callbacks.LambdaCallback(get_state=dict, set_state=print), None),
    ],
)
def test_a_callback_that_nobody_can_restore_is_named_once(model, tmp_path, capfd, make, named):
    """A callback that cannot be restored is named once, with its attributes and the two methods to add.

    A callback that is kept or has no state is not named.
    """
    drive(model, tmp_path, [make()], epochs=2)
    told = capfd.readouterr().err
    assert told.count("get_state") == (2 if named else 0)
    assert named is None or told.count(f"{named}: no get_state and set_state") == 1


def test_the_two_methods_make_it_exact(model, tmp_path):
    """With the two methods a user's own rate continues exactly, and without them it does not."""

    def rate(kind, folder, *kill):
        model.optimizer.learning_rate = 1e-2
        drive(model, folder, [kind(), *kill])
        return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))

    for kind in (OwnRate, KeptRate):
        rate(kind, tmp_path / kind.__name__, Kill(5))
    assert rate(KeptRate, tmp_path / "KeptRate") == pytest.approx(rate(KeptRate, tmp_path / "whole"))
    assert rate(OwnRate, tmp_path / "OwnRate") != pytest.approx(rate(OwnRate, tmp_path / "other"))


class Heard(keras.callbacks.Callback):
    """Sets the rate by the number of the batch, as a warm-up within an epoch does, and keeps the numbers."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(batch)
        self.model.optimizer.learning_rate = 0.1 / (1 + batch)

    def on_batch_end(self, batch, logs=None):
        self.ended.append(batch)


@pytest.mark.parametrize(
    ("per_call", "with_data"),
    few_under_jax([(1, True), (1, False), (2, True), (2, False)], [(1, False), (2, True)]),
)
@pytest.mark.sample("1-False", "2-True")
def test_in_an_epoch_that_continues_callbacks_are_told_the_number_within_the_whole_epoch(
    tmp_path, capsys, per_call, with_data
):
    """A rate, the names of files and the progress bar that depend on `batch` are those of a training never killed."""
    pytest.importorskip("tensorboard")

    def fit(name, kill=None):
        data, model, heard = kresume.resumable(numbers, 6), build(), Heard()
        if not with_data:
            data = numbers(0).take(6)
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", steps_per_execution=per_call)
        files = str(tmp_path / name / "{epoch}-{batch}.weights.h5")
        logs = [
            keras.callbacks.CSVLogger(tmp_path / f"{name}.csv"),
            keras.callbacks.TensorBoard(tmp_path / name, update_freq=2),
            keras.callbacks.ModelCheckpoint(files, save_freq=2, save_weights_only=True),
        ]
        given = {"data": data} if with_data else {}
        backup = kresume.BackupAndRestore(tmp_path / f"{name}-backup", save_freq=2, **given)
        killed = [] if kill is None else [Kill(kill)]
        try:
            model.fit(data, epochs=3, callbacks=[heard, *logs, *killed, backup], verbose=1 if kill is None else 0)
        except Killed:
            die(tmp_path / f"{name}-backup", logs)
        found = {str(index): np.array(keras.ops.convert_to_numpy(each)) for index, each in enumerate(model.variables)}
        return found, heard

    expected, whole = fit("whole")
    kill = 10 // per_call + 1  # one call after the backup in the second epoch, behind four of its batches
    fit("killed", kill)
    capsys.readouterr()
    found, heard = fit("killed")
    assert heard.begun == whole.begun[-len(heard.begun) :]
    assert heard.ended == whole.ended[-len(heard.ended) :]
    assert len(heard.begun) == (2 + 6) // per_call
    assert_same_bytes(expected, found)
    names = [{path.name for path in (tmp_path / name).glob("*.h5")} for name in ("whole", "killed")]
    assert names[0] == names[1]
    assert len(names[0]) == 9
    if with_data:
        assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "killed.csv").read_bytes()
        steps = [scalars(tmp_path / name) for name in ("whole", "killed")]
        assert {tag: at for tag, at in steps[0].items() if tag[1] != "keras"} == {
            tag: at for tag, at in steps[1].items() if tag[1] != "keras"
        }
    shown = capsys.readouterr().out.split("Epoch 3/3")[0]
    assert "6/6" in shown
    assert not {f"{number}/6" for number in (1, 2, 3, 4)} & set(re.findall(r"\d+/6", shown))


class Drawn(keras.callbacks.Callback):
    """Draws rates from the global generators at every moment of a training, and keeps them."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def draw(self):
        self.rates.append(random.gauss(2, 1) ** 2 + np.random.normal(2, 1) ** 2)
        self.model.optimizer.learning_rate = 1e-2 * self.rates[-1]

    def on_epoch_begin(self, epoch, logs=None):
        self.draw()

    def on_train_batch_begin(self, batch, logs=None):
        self.draw()

    def on_epoch_end(self, epoch, logs=None):
        self.draw()


# Killed behind a backup and between two; what was drawn since is drawn again.
DRAWN = [(True, 1, 5), (False, 2, 4), (False, 2, 5), (False, "epoch", 4)]


@pytest.mark.parametrize(("with_data", "freq", "kill"), few_under_jax(DRAWN, [DRAWN[0], DRAWN[2]]))
def test_draws_from_the_global_generators_go_on(tmp_path, with_data, freq, kill):
    """Callbacks draw the same numbers from Python's and numpy's generators after a kill as without one."""

    def fit(name, kill=None):
        data, model, drawn = kresume.resumable(numbers, STEPS), build(), Drawn()
        given = {"data": data} if with_data else {}
        backup = kresume.BackupAndRestore(tmp_path / name, save_freq=freq, **given)
        try:
            fed = data if with_data else numbers(0).take(STEPS)
            model.fit(fed, epochs=EPOCHS, callbacks=[backup, drawn, *([Kill(kill)] if kill else [])], verbose=0)
        except Killed:
            die(tmp_path / name, [])
        found = {str(index): np.array(keras.ops.convert_to_numpy(each)) for index, each in enumerate(model.variables)}
        return found, drawn.rates, [random.random(), np.random.random()]

    expected, rates, after = fit("whole")
    fit("killed", kill)
    found, again, then = fit("killed")
    begins = 1 if freq == "epoch" or (freq, kill) == (2, 4) else 2  # an epoch that continues in its middle begins twice
    assert again[begins:] == rates[-len(again) + begins :]
    assert then == after
    assert_same_bytes(expected, found)


@pytest.mark.one_backend
def test_generators_without_a_saved_state_stay():
    """Backups of earlier versions hold none; another kind of numpy's generator is left alone."""
    random.seed(1)
    generators.restore(None)
    before = json.loads(json.dumps(generators.capture()))
    drawn = [random.gauss(0, 1), np.random.normal(), random.random(), np.random.random()]
    generators.restore(before)
    assert drawn == [random.gauss(0, 1), np.random.normal(), random.random(), np.random.random()]
    default = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        generators.restore(before)
        assert generators.capture().keys() == {"python"}
    finally:
        np.random.set_bit_generator(default)


@pytest.mark.one_backend
def test_every_callback_class_of_keras_has_an_entry():
    """Every callback class of Keras, and every attribute of one, has an entry."""
    kinds = {
        name: kind
        for name, kind in vars(keras.callbacks).items()
        if inspect.isclass(kind) and name not in {"Callback", "CallbackList", "LambdaCallback"}
    }
    assert sorted(kinds) == sorted(callback_state.KERAS_ATTRIBUTES)
    for name, kind in kinds.items():
        stored = {
            instruction
            for member in vars(kind).values()
            for instruction in getattr(getattr(member, "__code__", None), "co_names", ())
        }
        assert set(callback_state.KERAS_ATTRIBUTES[name]) <= {*stored, "best"}, name


# Files of the callbacks


def undisturbed(folder, keys=("loss", "val_loss")):
    """Returns the lines of an undisturbed training, by Keras's callback alone."""
    logger = keras.callbacks.CSVLogger(folder / "expected.csv")
    logger.on_train_begin()
    for epoch in range(EPOCHS):
        logger.on_epoch_end(epoch, losses(epoch, STEPS))
    logger.on_train_end()
    return (folder / "expected.csv").read_bytes()


BEFORE = b"epoch,loss,val_loss\r\n0,0.5,NA\r\n1,0.4,NA\r\n"


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("append", "there", "save_freq"),
    [(False, b"", 1), (True, b"", "epoch"), (True, BEFORE, 1), (False, BEFORE, "epoch")],
    ids=["overwrite, new file", "append, new file", "append, earlier training", "overwrite, earlier training"],
)
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([Kill(5)], id="in an epoch"),
        pytest.param([Kill(epoch=0)], id="before the first backup of an epoch"),
        pytest.param([Kill(epoch=1)], id="between their line and our backup"),
        pytest.param([Kill(epoch=1), Kill(1), Kill(epoch=2)], id="three times"),
    ],
)
def test_csv_lines_are_those_of_a_training_that_nobody_disturbed(model, tmp_path, append, there, kills, save_freq):
    """CSV lines equal those of an undisturbed training, and lines of an earlier training stay."""
    log = tmp_path / "log.csv"
    log.write_bytes(there)

    def logger():
        return keras.callbacks.CSVLogger(log, append=append)

    for kill in kills:
        drive(model, tmp_path / "b", [logger(), Kill(kill.batches, kill.epoch)], save_freq=save_freq)
    drive(model, tmp_path / "b", [logger()], save_freq=save_freq)
    kept, expected = there if append else b"", undisturbed(tmp_path)
    if kept:
        expected = expected.split(b"\r\n", 1)[1]
    assert log.read_bytes() == kept + expected
    drive(model, tmp_path / "b", [logger()], save_freq=save_freq)  # no epoch is left to train, and no line is lost
    assert log.read_bytes() == kept + expected


@pytest.mark.one_backend(trains=True)
def test_csv_lines_survive_the_file_and_others_lines_stay(model, tmp_path, capfd):
    """A deleted log is restored from the backup; a log that another writer changed stays, with a note."""
    log = tmp_path / "log.csv"

    def logger():
        return keras.callbacks.CSVLogger(log, append=True)

    drive(model, tmp_path / "b", [logger(), Kill(epoch=1)])
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    log.unlink()
    drive(model, tmp_path / "b", [logger()])
    assert log.read_bytes() == undisturbed(tmp_path)
    with log.open("ab") as file:
        file.write(b"7,mine,NA\r\n")
    drive(model, tmp_path / "c", [logger()])
    assert b"7,mine,NA\r\n" in log.read_bytes()
    assert "was changed by another program since the backup" in capfd.readouterr().err


@pytest.mark.one_backend(trains=True)
def test_a_log_continues_in_its_own_file_wherever_its_callback_stands(model, tmp_path):
    """Two logs in another order, and one that is written elsewhere now."""

    def loggers(*names):
        return [keras.callbacks.CSVLogger(tmp_path / name, separator=";" if "b" in name else ",") for name in names]

    drive(model, tmp_path / "b", [*loggers("a.csv", "b.csv"), Kill(epoch=1)])
    (tmp_path / "moved").mkdir()
    drive(model, tmp_path / "b", loggers("b.csv", "moved/a.csv"))
    assert (tmp_path / "moved" / "a.csv").read_bytes() == undisturbed(tmp_path)
    assert (tmp_path / "b.csv").read_bytes() == undisturbed(tmp_path).replace(b",", b";")


def scalars(folder):
    """Returns every scalar in the event files below a folder: `{(folder, tag): [step, ...]}`, sorted."""
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    found = {}
    for path in sorted(folder.rglob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault((path.parent.name, value.tag), []).append(event.step)
    return {key: sorted(steps) for key, steps in found.items()}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("update_freq", ["epoch", "batch", 2])
@pytest.mark.parametrize(
    ("kills", "save_freq"),
    [
        pytest.param([Kill(5)], 1, id="in an epoch"),
        pytest.param([Kill(1)], "epoch", id="before the first backup"),
        pytest.param([Kill(epoch=1)], "epoch", id="between their events and our backup"),
        pytest.param([Kill(epoch=0), Kill(1), Kill(epoch=2)], 2, id="three times"),
    ],
)
@pytest.mark.sample(
    "in an epoch-batch", "before the first backup-epoch", "between their events and our backup-2", "three times-epoch"
)
def test_tensorboard_steps_are_those_of_a_training_that_nobody_disturbed(
    model, tmp_path, update_freq, kills, save_freq
):
    """Every TensorBoard step of every tag exists once; events of another training stay."""
    pytest.importorskip("tensorboard")

    def board(name):
        return keras.callbacks.TensorBoard(tmp_path / name, update_freq=update_freq, write_graph=False)

    foreign = tmp_path / "killed" / "train" / "events.out.tfevents.1.elsewhere.1.0.v2"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"")
    drive(model, tmp_path / "b", [board("whole")])
    held = []  # in a notebook the interrupted callback lives on, and may write its buffer at any time
    for kill in kills:
        held.append([board("killed"), Kill(kill.batches, kill.epoch)])
        drive(model, tmp_path / "c", held[-1], save_freq=save_freq)
    drive(model, tmp_path / "c", [board("killed")], save_freq=save_freq)
    held.clear()
    gc.collect()
    expected, found = scalars(tmp_path / "whole"), scalars(tmp_path / "killed")
    assert update_freq == 2 or expected["train", "epoch_loss"] == list(range(EPOCHS))
    assert update_freq != "batch" or expected["train", "batch_loss"] == list(range(1, STEPS * EPOCHS + 1))
    assert found == expected
    assert foreign.exists()


@pytest.mark.parametrize(
    ("save_freq", "kill", "steps"), [("epoch", Kill(epoch=1), [0, 1, 2]), (2, Kill(5), [2, 4, 6, 8])]
)
def test_checkpoints_of_orbax_are_saved_again(model, tmp_path, capfd, save_freq, kill, steps):
    """Orbax checkpoints of the killed process are moved aside, and every step exists at the end.

    Orbax refuses to overwrite a step.
    """
    pytest.importorskip("orbax.checkpoint")

    def saver():
        options = {"save_freq": save_freq, "save_on_background": False, "max_to_keep": None}
        return keras.callbacks.OrbaxCheckpoint(str(tmp_path / "orbax"), **options)

    model.optimizer.iterations.assign(0)
    drive(model, tmp_path / "b", [saver(), Kill(kill.batches, kill.epoch)], save_freq="epoch")
    model.optimizer.iterations.assign(0)
    drive(model, tmp_path / "b", [saver()], save_freq="epoch")
    assert sorted(int(path.name) for path in (tmp_path / "orbax").iterdir()) == steps
    aside = [int(path.name) for path in (tmp_path / "orbax.interrupted").iterdir()]
    assert aside == ([1] if save_freq == "epoch" else [4])
    assert "checkpoints of steps that are trained again were moved" in capfd.readouterr().err


def test_logs_and_weights_together(tmp_path):
    """In a real `fit`, killed between log lines and backup, the logs are whole and training is exact."""
    pytest.importorskip("tensorboard")

    def fit(name, *kill):
        data, model = kresume.resumable(numbers, STEPS), build()
        logs = [
            keras.callbacks.CSVLogger(tmp_path / f"{name}.csv"),
            keras.callbacks.TensorBoard(tmp_path / name, update_freq="batch"),
        ]
        backup = kresume.BackupAndRestore(tmp_path / f"{name}-backup", data=data, delete_checkpoint=False)
        try:
            model.fit(data, epochs=EPOCHS, callbacks=[*logs, *kill, backup], verbose=0)
        except Killed:
            die(tmp_path / f"{name}-backup", logs)
        return {str(place): np.array(keras.ops.convert_to_numpy(each)) for place, each in enumerate(model.variables)}

    expected = fit("whole")
    fit("killed", Kill(epoch=1))
    assert_same_bytes(expected, fit("killed"))
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "killed.csv").read_bytes()
    found = scalars(tmp_path / "killed")
    found["train", "keras"] = [0]  # the graph, which each process writes
    assert found == scalars(tmp_path / "whole")


def test_every_kind_of_state_comes_back_as_it_was():
    """Keys that are numbers or tuples, sets, queues and texts; what no file can hold names the callback and the key."""

    class Keeps(keras.callbacks.Callback):
        def __init__(self, state):
            super().__init__()
            self.state = state

        def get_state(self):
            return self.state

        def set_state(self, state):
            self.state = state

    state = {
        "counts": {0: 6, 1: np.float32(0.5), (2, "a"): [1, 2]},
        "seen": {3, (1, 2)},
        "frozen": frozenset("ab"),
        "last": deque([1.5, float("inf")], 5),
        "names": np.array(["a", "bc"]),
        "weights": np.arange(4.0).reshape(2, 2),
        "empty": {},
    }
    facts, arrays = callback_state.capture([Keeps(state)])
    other = Keeps(None)
    callback_state.apply([other], json.loads(json.dumps(facts)), arrays)
    assert other.state.keys() == state.keys()
    for name in ("counts", "seen", "frozen", "last", "empty"):
        assert other.state[name] == state[name]
        assert type(other.state[name]) is type(state[name])
    assert other.state["last"].maxlen == 5
    assert type(other.state["counts"][1]) is np.float32
    for name in ("names", "weights"):
        np.testing.assert_array_equal(other.state[name], state[name])
        assert other.state[name].dtype == state[name].dtype
    for kept in (object(), {"of": [np.array([object()])]}, b"bytes"):
        with pytest.raises(UsageError, match=r"^Keeps.0\['it'\].* no backup can hold: let get_state return"):
            callback_state.capture([Keeps({"it": kept})])


@pytest.mark.one_backend(trains=True)
def test_other_classes_are_refused_and_a_new_one_goes_to_the_end(tmp_path):
    """A class folder that sorts between the others would shift their numbers within the training."""
    write_pictures(tmp_path / "grow", 4, 0, ("b", "d"))
    options = {"image_size": (4, 4), "batch_size": 4, "verbose": False}
    first = stream_of(kresume.image_dataset(tmp_path / "grow", **options))
    saved = first.identity()
    first.save(tmp_path)
    write_pictures(tmp_path / "grow", 2, 50, ("c",))
    then = stream_of(kresume.image_dataset(tmp_path / "grow", **options))
    with pytest.raises(
        UsageError, match=r"the classes were b, d when .* are b, c, d now.*class_names=\['b', 'd', 'c'\]"
    ):
        then.adopt(tmp_path, saved, 0, 1, "next-epoch")
    then = stream_of(kresume.image_dataset(tmp_path / "grow", class_names=["b", "d", "c"], **options))
    assert "8 images before, 10 now" in then.adopt(tmp_path, saved, 0, 1, "next-epoch")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"fit": 3}', '{"fit": {"lines": []}, "returned": null}'])
def test_a_damaged_record_of_the_fit_is_as_none_and_told(tmp_path, damage, capsys):
    """The backup beside it is intact, and verified by itself. Which fit of a script wrote it is no longer known."""
    x, y = np.ones((4, 2), "float32"), np.ones((4, 1))

    def train(epochs):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        backup = kresume.BackupAndRestore(tmp_path / "b", delete_checkpoint=False)
        return model.fit(x, y, epochs=epochs, verbose=0, callbacks=[backup]).epoch

    assert train(1) == [0]
    (tmp_path / "b" / "fit.json").write_text(damage)
    assert "is damaged" not in capsys.readouterr().err
    assert train(3) == [0, 1, 2]
    assert "fit.json: is damaged, so which fit of this script was interrupted is unknown" in capsys.readouterr().err
    assert train(4) == [0, 1, 2, 3]
    assert "is damaged" not in capsys.readouterr().err


@pytest.mark.one_backend(trains=True)
def test_a_folder_that_cannot_be_made_and_backups_that_cannot_be_read_say_what_to_do(tmp_path):
    """A file is in its place; every snapshot is damaged."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((4, 2), "float32"), np.ones((4, 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"backup_dir='.*file/b': the folder cannot be made \(.*\): give another one"):
        model.fit(x, y, verbose=0, callbacks=[kresume.BackupAndRestore(tmp_path / "file" / "b")])
    model.fit(x, y, verbose=0, callbacks=[kresume.BackupAndRestore(tmp_path / "b", delete_checkpoint=False)])
    for file in (tmp_path / "b").glob("step-*/state.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="or remove the folder to start again"):
        model.fit(x, y, verbose=0, callbacks=[kresume.BackupAndRestore(tmp_path / "b", delete_checkpoint=False)])


class Own(keras.callbacks.Callback):
    """A user's callback with state of its own, and attributes of its own meaning."""

    def __init__(self, monitor, state):
        super().__init__()
        self.monitor, self.mode, self.state = monitor, "fast", state

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


@pytest.mark.one_backend
@pytest.mark.parametrize("state", [{"n": 7}, [1, 2], 3])
def test_the_state_of_a_users_callback_goes_by_its_place(state):
    """It gets the state of the one of its class at its place, whatever both monitor. A list and a number are states, too."""
    facts, arrays = callback_state.capture([Own("a", state)])
    after = Own("b", None)
    assert callback_state.apply([after], json.loads(json.dumps(facts)), arrays) == []
    assert after.state == state


def early(monitor, mode="auto", **options):
    """Returns an EarlyStopping."""
    return keras.callbacks.EarlyStopping(monitor, mode=mode, **options)


def saving(monitor, path="a"):
    """Returns a ModelCheckpoint that keeps the best."""
    return keras.callbacks.ModelCheckpoint(f"{path}.keras", monitor, save_best_only=True)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("before", "after", "best", "notes"),
    [
        ([early("a"), early("b")], [early("b"), early("a")], [1, 0], []),
        ([early("a")], [early("a", patience=9), early("b")], [0, None], []),
        ([early("a")], [early("b"), early("a")], [None, 0], []),
        (
            [early("a")],
            [early("b")],
            [None],
            ["EarlyStopping judges b (auto) now, and the one before a: it begins anew"],
        ),
        ([early("a", "min")], [early("a", "max")], [None], ["EarlyStopping judges a (max) now"]),
        ([early("a", "min")], [early("a")], [0], []),
        ([saving("a"), saving("b")], [saving("b")], [1], []),
        ([saving("a", "1"), saving("a", "2")], [saving("a", "2"), saving("a", "1")], [1, 0], []),
        ([saving("a", "1"), saving("a", "2")], [saving("a", "drive/1"), saving("a", "drive/2")], [0, 1], []),
        ([saving("a"), early("a")], [early("a"), saving("b")], [1, None], ["ModelCheckpoint judges b ("]),
    ],
)
def test_the_state_of_a_callback_goes_to_the_one_that_judges_the_same(before, after, best, notes):
    """Whatever their order is in the script now. A best value of another metric would end or save at the wrong time."""
    for number, callback in enumerate(before):
        callback.best = float(number)
    facts, arrays = callback_state.capture(before)
    fresh = [getattr(callback, "best", None) for callback in after]
    said = callback_state.apply(after, json.loads(json.dumps(facts)), arrays)
    found = [getattr(callback, "best", None) for callback in after]
    assert found == [start if number is None else number for number, start in zip(best, fresh, strict=True)]
    assert len(said) == len(notes)
    assert all(one.startswith(other) for one, other in zip(said, notes, strict=True))
    for packed in facts.values():  # a backup of an earlier version: by class and index
        del packed["about"]
    assert callback_state.apply(before, facts, arrays) == []
    assert [callback.best for callback in before] == list(range(len(before)))
