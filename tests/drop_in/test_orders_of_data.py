"""Tests data that draw several orders in an epoch: continued, they go on as plain Keras does.

`repeat`, `concatenate`, a second `shuffle` and functions that return a dataset make the iterators of a `shuffle` late, and more
than one of them.
"""

import gc
import threading

import keras
import numpy as np
import pytest

import kresume
from kresume.drop_in import generator_state, seed_states
from tests.helpers.backends import few_under_jax
from tests.helpers.runs import assert_same_bytes

pytestmark = pytest.mark.filterwarnings(
    "ignore:.shuffle=True. was passed:UserWarning", "ignore:Your input ran out of data:UserWarning"
)

BATCH, SIZE, EPOCHS = 4, 12, 3


class Killed(BaseException):
    """Represents SIGKILL: no state of the process is used afterwards."""


class Kill(keras.callbacks.Callback):
    """Dies after a number of updates, or of batches that are validated on; keeps the scores."""

    def __init__(self, updates=None, validated=None):
        super().__init__()
        self.updates, self.validated, self.scores = updates, validated, {}

    def on_train_batch_end(self, batch, logs=None):
        self.updates = self._counted(self.updates)

    def on_test_batch_end(self, batch, logs=None):
        self.validated = self._counted(self.validated)

    def _counted(self, left):
        if left == 1:
            raise Killed
        return left and left - 1

    def on_epoch_end(self, epoch, logs=None):
        self.scores[epoch] = logs.get("val_loss")


def examples(seed=1, size=SIZE):
    import tensorflow as tf

    tf.random.set_seed(6)  # as a script does at its beginning; each order depends on it, too
    x = np.random.default_rng(seed).normal(size=(size, 4)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, (x.sum(axis=1) > 0).astype("int32")))


def once(**options):
    return examples().shuffle(SIZE, **({"seed": 3} | options))


def flipped(x, y):
    return -x, 1 - y


def tf_data():
    import tensorflow as tf

    return tf.data.Dataset


def concatenated(**options):
    part = once(**options)
    return part.concatenate(part.map(flipped))


def named_by_a_function():
    part = once()
    return tf_data().range(2).flat_map(lambda _: part)


def named_by_another():
    part = once()

    def found():
        return part

    return tf_data().range(2).flat_map(lambda _: found())


class Held:
    """Holds data as an attribute, to which a method refers."""

    def __init__(self):
        self.part = once()

    def of(self, _):
        return self.part


def interleaved():
    part = once()
    return tf_data().range(3).interleave(lambda _: part, cycle_length=2)


def zipped():
    part = once()
    return tf_data().zip(part, part.repeat(2)).map(lambda one, other: one)


def chosen():
    part = once()
    return tf_data().choose_from_datasets([part, part.map(flipped)], tf_data().range(2).repeat(SIZE // 2))


def sampled():
    parts = [once(), examples(2).shuffle(SIZE, seed=5).repeat(2)]
    return tf_data().sample_from_datasets(parts, [0.4, 0.6], seed=4, rerandomize_each_iteration=True)


def grouped():
    part = once()
    return (
        part.group_by_window(lambda x, y: tf_cast(y), lambda key, window: window.batch(2), 4)
        .unbatch()
        .shuffle(8, seed=2)
    )


def tf_cast(y):
    import tensorflow as tf

    return tf.cast(y, tf.int64)


def with_random_numbers():
    import tensorflow as tf

    data = tf.data.Dataset.zip(examples(), tf.data.Dataset.random(seed=4, rerandomize_each_iteration=True))
    return data.map(lambda e, n: (e[0] + tf.random.stateless_normal((4,), [n, 3]), e[1])).repeat(2)


def seeded_by_all():
    return examples().shuffle(SIZE).repeat(2)


DATA = {
    "repeat": lambda: once().repeat(2),
    "repeat, all seeds by tf.random.set_seed": seeded_by_all,
    "repeat, one order": lambda: once(reshuffle_each_iteration=False).repeat(2),
    "concatenate": concatenated,
    "concatenate, one order": lambda: concatenated(reshuffle_each_iteration=False),
    "two shuffles": lambda: once().map(flipped).shuffle(6, seed=4),
    "three shuffles": lambda: once().shuffle(3, seed=4).repeat(2).shuffle(6, seed=5),
    "flat_map": named_by_a_function,
    "flat_map, in another function": named_by_another,
    "flat_map, in an object": lambda: tf_data().range(2).flat_map(Held().of),
    "interleave": interleaved,
    "zip": zipped,
    "choose": chosen,
    "sample": sampled,
    "windows": grouped,
    "random": with_random_numbers,
    "cache, then repeat": lambda: once().cache().shuffle(8, seed=4).repeat(2),
    "ends before the second begins": lambda: once().repeat(3).take(SIZE // 2),
    "ends within the second": lambda: once().repeat(3).take(SIZE * 3 // 2),
    "begins within the second": lambda: once().repeat(3).skip(SIZE * 3 // 2),
    "repeat of batches, read ahead": lambda: once().repeat(2).prefetch(2),
}


def data_of(kind):
    return DATA[kind]().batch(BATCH)


@pytest.fixture(scope="module")
def model():
    """Provides one model for all tests, so that it is traced once; `fit` resets its weights."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2, "softmax")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    first = arrays_of(model)
    model.fit(examples().batch(BATCH), verbose=0)  # the first fit of a process draws a batch more, to build the metrics
    return model, first


def arrays_of(model):
    variables = [*model.variables, *model.optimizer.variables]
    return {str(index): np.array(keras.ops.convert_to_numpy(variable)) for index, variable in enumerate(variables)}


def fit(model, data, callbacks, **options):
    """Fits from the first weights; returns scores and weights, None if it was killed."""
    net, first = model
    keras.utils.set_random_seed(5)
    for variable, array in zip([*net.variables, *net.optimizer.variables], first.values(), strict=True):
        variable.assign(array.copy())
    net._initial_epoch = None
    try:
        net.fit(data, callbacks=callbacks, verbose=0, **({"epochs": EPOCHS} | options))
    except Killed:
        for thread in threading.enumerate():
            if thread.name == "kresume-writer":
                thread.join()
        gc.collect()
        return None
    return callbacks[-1].scores, arrays_of(net)


def assert_continues(model, folder, make, kills, freq, **options):
    """Compares a training that is killed with plain Keras's.

    Args:
        model: the fixture.
        folder: of the backups.
        make: returns the data, and the further arguments of `fit`.
        kills: one callback for each process that dies.
        freq: the argument `save_freq`.
        options: further arguments of `fit`.
    """
    data, more = make()
    scores, expected = fit(model, data, [Kill()], **more, **options)
    for kill in kills:
        data, more = make()
        backup = kresume.BackupAndRestore(folder / "killed", save_freq=freq)
        assert fit(model, data, [backup, kill], **more, **options) is None
    data, more = make()
    backup = kresume.BackupAndRestore(folder / "killed", save_freq=freq)
    counted, found = fit(model, data, [backup, Kill()], **more, **options)
    assert_same_bytes(expected, found)
    assert counted == {epoch: scores[epoch] for epoch in counted}


FEW = ["repeat", "concatenate", "two shuffles", "flat_map"]


@pytest.mark.parametrize("freq", ["epoch", 1])
@pytest.mark.parametrize("kind", few_under_jax(list(DATA), FEW))
@pytest.mark.sample("two shuffles-1", "two shuffles-epoch", "repeat-epoch", "concatenate-1", "flat_map-epoch")
def test_data_that_draw_several_orders_go_on(model, tmp_path, kind, freq):
    """Killed in the middle of an epoch, and at the beginning of one."""
    steps = sum(1 for _ in data_of(kind))
    kill = Kill(2 * steps + 1 if freq == "epoch" else steps + 2)
    assert_continues(model, tmp_path, lambda: (data_of(kind), {}), [kill], freq)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("kind", FEW)
def test_reading_the_state_changes_no_order(model, tmp_path, kind):
    """Not killed, the training is plain Keras's."""
    _, expected = fit(model, data_of(kind), [Kill()])
    _, found = fit(model, data_of(kind), [kresume.BackupAndRestore(tmp_path, save_freq=2), Kill()])
    assert_same_bytes(expected, found)


@pytest.mark.parametrize("freq", ["epoch", 1])
@pytest.mark.parametrize(
    "kind", few_under_jax(["repeat", "concatenate", "two shuffles", "flat_map", "sample"], FEW[:1])
)
@pytest.mark.sample("two shuffles-epoch", "repeat-1")
def test_validation_data_that_draw_several_orders_go_on(model, tmp_path, kind, freq):
    """Killed in a validation, too."""

    def make():
        return once(seed=7).batch(BATCH), {"validation_data": data_of(kind), "validation_steps": 3}

    assert_continues(model, tmp_path, make, [Kill(validated=5)], freq)


@pytest.mark.parametrize("freq", ["epoch", 1])
@pytest.mark.parametrize("kind", few_under_jax(["repeat", "concatenate", "two shuffles"], FEW[:1]))
@pytest.mark.sample("concatenate-1", "repeat-epoch")
def test_training_and_validation_that_share_a_shuffle_go_on(model, tmp_path, kind, freq):
    def make():
        data = DATA[kind]()
        return data.batch(BATCH), {"validation_data": data.map(flipped).batch(BATCH)}

    assert_continues(model, tmp_path, make, [Kill(validated=SIZE // BATCH * 2 + 1)], freq)


@pytest.mark.parametrize("freq", ["epoch", 1])
@pytest.mark.parametrize("kind", few_under_jax(["once", "repeat", "concatenate", "two shuffles"], FEW[:1]))
@pytest.mark.sample("once-epoch", "repeat-1")
def test_an_iterator_that_lasts_over_epochs_goes_on(model, tmp_path, kind, freq):
    """With `steps_per_epoch` an epoch ends within the data, and also where they end."""
    make = data_of if kind in DATA else lambda _: once().batch(BATCH)
    kills = [Kill(7), Kill(3)]  # behind the end of 3 or of 6 batches, and later
    assert_continues(model, tmp_path, lambda: (make(kind), {}), kills, freq, steps_per_epoch=2, epochs=7)


class Reads(Kill):
    """Reads the data as training begins, and at each epoch's beginning and end."""

    def __init__(self, data, updates=None):
        super().__init__(updates)
        self.data = data

    def _read(self):
        for _ in self.data:
            pass

    def on_train_begin(self, logs=None):
        self._read()

    def on_epoch_begin(self, epoch, logs=None):
        self._read()

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._read()


@pytest.mark.parametrize("freq", ["epoch", 1])
@pytest.mark.parametrize("kind", few_under_jax(["repeat", "two shuffles", "concatenate"], FEW[:1]))
@pytest.mark.sample("repeat-1")
def test_data_that_callbacks_read_go_on(model, tmp_path, kind, freq):
    def run(folder, kill=None):
        data = data_of(kind)
        return fit(model, data, [kresume.BackupAndRestore(tmp_path / folder, save_freq=freq), Reads(data, kill)])

    data = data_of(kind)
    _, expected = fit(model, data, [Reads(data)])
    for kill in (7,):
        assert run("killed", kill) is None
    assert_same_bytes(expected, run("killed")[1])


@pytest.mark.one_backend(trains=True)
def test_data_that_nobody_can_count_are_told(model, tmp_path, capfd):
    """A function may find a dataset where nobody looks."""

    def make():
        hidden = {1: once()}
        holder = iter([hidden])

        class Finds:
            def __call__(self, _):
                return next(holder)[1]

        return tf_data().range(1).flat_map(Finds()).batch(BATCH)

    told = "the data open a dataset that no function of theirs names"
    assert fit(model, make(), [kresume.BackupAndRestore(tmp_path), Kill(6)]) is None
    assert fit(model, make(), [kresume.BackupAndRestore(tmp_path), Kill()]) is not None
    assert told in capfd.readouterr().err


def of_generator(generator):
    import tensorflow as tf

    spec = tf.TensorSpec((4,), tf.float32), tf.TensorSpec((), tf.int32)
    return tf_data().from_generator(generator, output_signature=spec)


STATE, OWN, LISTED = {"epoch": 0}, np.random.default_rng(3), list(range(SIZE))


def pictures(order):
    for number in order:
        yield np.full(4, number / SIZE, "float32"), number % 2


def counts_in_a_dictionary():
    STATE["epoch"] += 1
    yield from pictures(np.random.RandomState(STATE["epoch"]).permutation(SIZE))


def draws_of_its_own():
    yield from pictures(OWN.permutation(SIZE))


def shuffles_a_list():
    np.random.shuffle(LISTED)
    LISTED.append(LISTED.pop())
    yield from pictures(LISTED)


def by_another_function():
    yield from draws_of_its_own()


def counts_in_a_closure():
    epoch = 0

    def generator():
        nonlocal epoch
        epoch += 1
        yield from pictures(np.random.RandomState(epoch).permutation(SIZE))

    return generator


class Counts:
    """Counts its epochs in an attribute, and draws from a generator in another one."""

    def __init__(self):
        self.epoch, self.order, self.size = 0, np.random.default_rng(3), SIZE

    def __call__(self):
        self.epoch += 1
        yield from pictures(self.order.permutation(self.size))

    generate = __call__


def pure():
    order, seen = np.random.default_rng(1), []
    for number in order.permutation(LISTED[:3] and SIZE):
        seen.append(number)
        yield np.full(4, number / SIZE, "float32"), number % 2


def draws_of_numpy():
    yield from pictures(np.random.permutation(SIZE))


GENERATORS = {
    "dictionary": (lambda: of_generator(counts_in_a_dictionary), "STATE"),
    "generator of random numbers": (lambda: of_generator(draws_of_its_own), "OWN"),
    "list": (lambda: of_generator(shuffles_a_list), "LISTED"),
    "another function": (lambda: of_generator(by_another_function), "OWN"),
    "closure": (lambda: of_generator(counts_in_a_closure()), "epoch"),
    "object": (lambda: of_generator(Counts()), "self.epoch, self.order"),
    "method": (lambda: of_generator(Counts().generate), "self.epoch, self.order"),
    "map behind it": (lambda: of_generator(draws_of_its_own).map(lambda x, y: (x, y)).prefetch(1), "OWN"),
    "interleave": (lambda: tf_data().range(1).interleave(lambda _: of_generator(draws_of_its_own)), "OWN"),
    "pure": (lambda: of_generator(pure), ""),
    "numpy": (lambda: of_generator(draws_of_numpy), ""),
    "no generator": (once, ""),
}


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", GENERATORS)
def test_what_a_generator_keeps_over_epochs_is_found(kind):
    make, names = GENERATORS[kind]
    assert ", ".join(generator_state.changed_by_generators(make().batch(BATCH))) == names


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("kind", ["dictionary", "object", "pure", "numpy"])
@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.sample("False-dictionary", "True-object", "False-pure")
def test_what_a_generator_keeps_over_epochs_is_told(model, tmp_path, capfd, kind, validates):
    """A generator that draws from numpy's generator, or from none that lasts, goes on as plain Keras's."""
    make, names = GENERATORS[kind]

    def run(folder=None, kill=None):
        data = make().batch(BATCH)
        backup = [kresume.BackupAndRestore(tmp_path, save_freq="epoch")] if folder else []
        given = {"validation_data": data} if validates else {}
        return fit(model, once().batch(BATCH) if validates else data, [*backup, Kill(kill)], **given)

    scores = run()
    assert run(True, kill=2 * SIZE // BATCH + 1) is None
    assert (f"the generator of the validation data changes {names}" in capfd.readouterr().err) == bool(
        validates and names
    )
    found = run(True)
    told = capfd.readouterr().err
    called = "the validation data" if validates else "the data"
    assert (f"the generator of {called} changes {names}, which no backup holds" in told) == bool(names)
    assert "the generator of" not in told or names
    if not names:
        assert_same_bytes(scores[1], found[1])


@pytest.mark.one_backend(trains=True)
def test_a_generator_that_begins_again_in_the_first_epoch_is_not_told(model, tmp_path, capfd):
    """Its earlier batches are drawn again, by the same state."""
    for kill in (2, None):
        data = of_generator(Counts()).batch(BATCH)
        done = fit(model, data, [kresume.BackupAndRestore(tmp_path, save_freq=1), Kill(kill)])
    _, expected = fit(model, of_generator(Counts()).batch(BATCH), [Kill()])
    assert "the generator of the data" not in capfd.readouterr().err
    assert_same_bytes(expected, done[1])


@pytest.mark.one_backend
def test_the_state_of_a_shuffle_is_read_and_set():
    """It is the form in which TensorFlow keeps it; reading it changes nothing."""
    for kind in ("repeat", "two shuffles", "sample"):
        orders = [[y.tolist() for _, y in plain] for plain in [data_of(kind).as_numpy_iterator()]]
        data = data_of(kind)
        states = seed_states.of([data])
        found, counts = [], []
        for _ in range(3):
            counts.append([state.read() for state in states])
            found.append([x.tolist() for x, _ in data.as_numpy_iterator()])
        assert orders[0] == [y.tolist() for _, y in data_of(kind).as_numpy_iterator()]
        plain = data_of(kind)
        assert found == [[x.tolist() for x, _ in plain.as_numpy_iterator()] for _ in range(3)]
        again = data_of(kind)
        states = seed_states.of([again])
        for index in (2, 0, 1):
            for state, count in zip(states, counts[index], strict=True):
                state.set(count)
            assert [x.tolist() for x, _ in again.as_numpy_iterator()] == found[index]
    assert seed_states.of([once().batch(BATCH).prefetch(1)]) == []  # counting is enough
