"""Tests every way to feed `fit`: update counts never change; a table says which ways are exact.

python -m tests.drop_in.test_backup_feeding      # writes the table in docs/backup-and-restore.md
"""

import gc
import itertools
import re
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest

import kresume
from kresume.checkpoints import snapshot
from kresume.drop_in import draws
from kresume.errors import UsageError
from tests.helpers.backends import few_under_jax
from tests.helpers.paths import ROOT
from tests.helpers.runs import assert_same_bytes

pytestmark = pytest.mark.filterwarnings(
    "ignore:.shuffle=True. was passed:UserWarning", "ignore:Your input ran out of data:UserWarning"
)

BATCH, STEPS, EPOCHS = 4, 4, 2
KILLS = (3, 7)
"""Updates after which training is killed: in the first and second epoch, one batch after a backup.

A backup is made every 2 batches.
"""
CLASSES = {0: 0.5, 1: 2.0}

EXACT, COUNTS, REFUSED = "exact", "counts", "refused"


class Killed(BaseException):
    """Represents SIGKILL: no state of the process is used afterwards."""


class Counter(keras.callbacks.Callback):
    """Counts updates and epochs, and dies after a number of updates."""

    def __init__(self, kill=None):
        super().__init__()
        self.kill, self.updates, self.epochs = kill, 0, []

    def on_train_batch_end(self, batch, logs=None):
        self.updates += 1
        if self.updates == self.kill:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)


# The data. Finite data repeat the same pictures in each epoch; endless data differ at each position.


def arrays(index=slice(2)):
    x = np.random.default_rng(1).normal(size=(BATCH * STEPS, 4)).astype("float32")
    return (x, (x.sum(axis=1) > 0).astype("int32"), np.linspace(0.5, 1.5, len(x), dtype="float32"))[index]


def batches(parts=slice(2)):
    return [tuple(part[start : start + BATCH] for part in arrays(parts)) for start in range(0, BATCH * STEPS, BATCH)]


def endless():
    for position in itertools.count():
        x = np.random.default_rng(position).normal(size=(BATCH, 4)).astype("float32")
        yield x, (x.sum(axis=1) > 0).astype("int32")


class ByIndex(keras.utils.PyDataset):
    """Returns batches by index."""

    def __init__(self, parts=slice(2), **options):
        super().__init__(**options)
        self.batches = batches(parts)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def tensors(parts=slice(2)):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(arrays(parts)).batch(BATCH)


def shuffled():
    """Returns data whose every iterator has another order, as `image_dataset_from_directory(seed=3)` has."""
    import tensorflow as tf

    tf.random.set_seed(5)  # as a script does at its beginning; the order depends on it, too
    return tf.data.Dataset.from_tensor_slices(arrays()).shuffle(BATCH * STEPS, seed=3).batch(BATCH)


def unseeded():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(arrays()).shuffle(BATCH * STEPS).batch(BATCH)


class Shuffled(ByIndex):
    """Shuffles the batches after each epoch."""

    def __init__(self):
        super().__init__()
        self.random = np.random.default_rng(3)

    def on_epoch_end(self):
        self.random.shuffle(self.batches)


def numbers(position=0):
    """Returns endless batches from a position on."""
    import tensorflow as tf

    def batch(index):
        x = tf.random.stateless_normal((BATCH, 4), tf.stack([index, tf.constant(7, tf.int64)]))
        return x, tf.cast(tf.reduce_sum(x, axis=1) > 0, tf.int32)

    return tf.data.Dataset.range(position, 10**6).map(batch)


def weighted(x, y):
    return x, y, x[:, 0] * 0.0 + 2.0


def doubled(x, y):
    return x * 2.0, y


def ours():
    return kresume.resumable(numbers, STEPS)


def loader(parts=slice(2)):
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(*map(torch.from_numpy, arrays(parts)))
    return torch.utils.data.DataLoader(dataset, batch_size=BATCH)


@dataclass(frozen=True)
class Feed:
    """Describes a way to feed `fit`.

    Attributes:
        called: its name in the table.
        data: makes fit's `x`, from the value of `data=` if that is one of our datasets.
        outcomes: the expected outcomes with `data=`; without it and a number as `save_freq`; without it and "epoch".
        options: further arguments of `fit`.
        plain: makes the data for Keras alone, with its further arguments, if it differs.
        epochs: the number of epochs.
        steps: the number of batches of an epoch.
        source: makes the value of `data=`, if that is one of our datasets.
    """

    called: str
    data: Callable[..., Any]
    outcomes: tuple[str, str, str]
    options: dict[str, Any] = field(default_factory=dict)
    plain: tuple[Callable[[], Any], dict[str, Any]] | None = None
    epochs: int = EPOCHS
    steps: int = STEPS
    source: Callable[[], Any] | None = None


REPEATS = (REFUSED, EXACT, EXACT)
RUNS_ON = (REFUSED, COUNTS, COUNTS)
OURS = (EXACT, COUNTS, COUNTS)
IN_ORDER = {"y": arrays(1), "batch_size": BATCH, "shuffle": False}
ONE_ITERATOR = {"steps_per_epoch": STEPS}


def of_ours(called, data, plain, outcomes=OURS, **options):
    return Feed(called, data, outcomes, options, (plain, {**options, **ONE_ITERATOR}), source=ours)


FEEDS = [
    Feed("arrays, `shuffle=False`", lambda: arrays(0), REPEATS, IN_ORDER),
    Feed("arrays, shuffled by Keras", lambda: arrays(0), RUNS_ON, {**IN_ORDER, "shuffle": True}),
    Feed("arrays, `class_weight`", lambda: arrays(0), REPEATS, {**IN_ORDER, "class_weight": CLASSES}),
    Feed("arrays, `sample_weight`", lambda: arrays(0), REPEATS, {**IN_ORDER, "sample_weight": arrays(2)}),
    Feed("arrays, `steps_per_epoch`", lambda: arrays(0), REPEATS, {**IN_ORDER, "steps_per_epoch": 2}, steps=2),
    Feed("generator, `steps_per_epoch`", endless, RUNS_ON, ONE_ITERATOR),
    Feed("generator, one epoch", lambda: (batch for batch in batches(slice(3))), REPEATS, epochs=1),
    Feed("generator, several epochs", lambda: (batch for batch in batches()), (REFUSED, REFUSED, REFUSED)),
    Feed("`PyDataset`, `shuffle=False`", ByIndex, REPEATS, {"shuffle": False}),
    Feed("`PyDataset`, shuffled by Keras", ByIndex, REPEATS, epochs=3),
    Feed("`PyDataset` with workers, shuffled by Keras", lambda: ByIndex(workers=2), REPEATS, epochs=3),
    Feed("`PyDataset`, `class_weight`", ByIndex, REPEATS, {"shuffle": False, "class_weight": CLASSES}),
    Feed("`PyDataset` with sample weights", lambda: ByIndex(slice(3)), REPEATS, {"shuffle": False}),
    Feed("`PyDataset` with workers", lambda: ByIndex(workers=2), REPEATS, {"shuffle": False}),
    Feed("tf.data of known length", tensors, REPEATS),
    Feed("tf.data of known length, `class_weight`", tensors, REPEATS, {"class_weight": CLASSES}),
    Feed("tf.data of known length, sample weights by `map`", lambda: tensors().map(weighted), REPEATS),
    Feed("tf.data of unknown length", lambda: tensors().filter(lambda x, y: True), REPEATS),
    Feed(
        "tf.data of unknown length, `class_weight`",
        lambda: tensors().filter(lambda x, y: True),
        REPEATS,
        {"class_weight": CLASSES},
    ),
    Feed("tf.data of known length, `shuffle` with a seed", shuffled, REPEATS, epochs=4),
    Feed(
        "tf.data of unknown length, `shuffle` with a seed",
        lambda: shuffled().filter(lambda x, y: True),
        REPEATS,
        epochs=4,
    ),
    Feed("tf.data, `shuffle` without a seed", unseeded, RUNS_ON),
    Feed("`PyDataset` that shuffles in `on_epoch_end`", Shuffled, REPEATS, {"shuffle": False}, epochs=4),
    Feed("tf.data without end, `steps_per_epoch`", lambda: numbers().repeat(), RUNS_ON, ONE_ITERATOR),
    Feed(
        "tf.data of known length, `shuffle` with a seed, `steps_per_epoch`",
        shuffled,
        REPEATS,
        {"steps_per_epoch": 2},
        epochs=6,
        steps=2,
    ),
    Feed("torch `DataLoader`, `shuffle=False`", loader, REPEATS),
    Feed("torch `DataLoader` with sample weights", lambda: loader(slice(3)), REPEATS),
    of_ours("`resumable`", lambda data: data, numbers),
    of_ours("`resumable`, `class_weight`", lambda data: data, numbers, class_weight=CLASSES),
    of_ours("`resumable`, sample weights by `map`", lambda data: data.map(weighted), lambda: numbers().map(weighted)),
    of_ours(
        "`resumable`, `map` and `prefetch`", lambda data: data.map(doubled).prefetch(2), lambda: numbers().map(doubled)
    ),
    of_ours("`resumable`, `shuffle`", lambda data: data.shuffle(2), numbers, (REFUSED, COUNTS, COUNTS)),
    Feed(
        "`resumable`, `steps_per_epoch`",
        lambda data: data,
        (REFUSED, COUNTS, COUNTS),
        ONE_ITERATOR,
        (numbers, ONE_ITERATOR),
        source=ours,
    ),
]


@pytest.fixture(scope="module")
def model():
    """Provides one model for all tests, so that it is traced once; `start` resets its weights."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dropout(0.3), layers.Dense(2, "softmax")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    first = arrays_of(model)
    # The first fit of a process draws a batch more, to build the metrics; here one process stands for several.
    model.fit(*arrays(), batch_size=BATCH, verbose=0)
    return model, first


def arrays_of(model):
    variables = [*model.variables, *model.optimizer.variables]
    return {str(index): np.array(keras.ops.convert_to_numpy(variable)) for index, variable in enumerate(variables)}


def fit(model, data, callbacks, feed, options=None):
    """Fits from the first weights.

    Returns:
        The counts of the counter, and the arrays; None if it was killed.
    """
    net, first = model
    keras.utils.set_random_seed(5)
    for variable, array in zip([*net.variables, *net.optimizer.variables], first.values(), strict=True):
        variable.assign(array.copy())  # JAX may keep an aligned buffer as the variable, and a step overwrites it
    net._initial_epoch = None
    counter = callbacks[-1]
    try:
        net.fit(
            data, epochs=feed.epochs, callbacks=callbacks, verbose=0, **(feed.options if options is None else options)
        )
    except Killed:
        for thread in threading.enumerate():
            if thread.name == "kresume-writer":
                thread.join()
        # The death of a process ends its iterators. Here they must not be collected during a later step.
        gc.collect()
        gc.freeze()  # the next collection has less to visit
        return None
    return counter, arrays_of(net)


def iterations(found):
    """Returns the optimizer's own count."""
    return next(int(array) for array in found.values() if array.dtype.kind == "i" and not array.shape)


# JAX has a trainer of its own; what makes batches of the data is shared, as are weights of classes and samples.
PLAIN = {
    "arrays, `shuffle=False`", "generator, `steps_per_epoch`", "`PyDataset`, `shuffle=False`",
    "`PyDataset`, shuffled by Keras", "`PyDataset` with workers, shuffled by Keras", "tf.data of known length",
    "tf.data of known length, `shuffle` with a seed", "tf.data of known length, `shuffle` with a seed, `steps_per_epoch`",
    "tf.data of unknown length", "torch `DataLoader`, `shuffle=False`", "`resumable`", "`resumable`, `steps_per_epoch`",
}  # fmt: skip


FED = few_under_jax(
    FEEDS, [feed for feed in FEEDS if feed.called in PLAIN - {"tf.data of unknown length", "`resumable`"}]
)


@pytest.mark.parametrize("feed", FED, ids=lambda feed: feed.called.replace("`", ""))
@pytest.mark.sample(
    "arrays, shuffle=False",
    "generator, steps_per_epoch",
    "PyDataset, shuffled by Keras",
    "PyDataset with workers, shuffled by Keras",
    "tf.data of known length, shuffle with a seed",
    "tf.data of known length, shuffle with a seed, steps_per_epoch",
    "tf.data of unknown length",
    "torch DataLoader, shuffle=False",
    "resumable",
    "resumable, steps_per_epoch",
    "resumable, class_weight",
    "arrays, shuffled by Keras",
    "arrays, sample_weight",
    "generator, several epochs",
    "tf.data, shuffle without a seed",
    "tf.data without end, steps_per_epoch",
    "PyDataset that shuffles in on_epoch_end",
)
def test_no_way_of_feeding_counts_otherwise(model, tmp_path, feed):
    """Killed or not, a way of feeding has plain Keras's updates and epochs, and its bits where promised.

    This holds for `save_freq` as a number and as "epoch"; the table in the docs says which ways promise equal bits.
    """
    make, options = feed.plain or (feed.data, feed.options)
    if feed.called != "generator, several epochs":  # its later epochs have two batches, whatever the first had
        plain, expected = fit(model, make(), [Counter()], feed, options)

    def run(folder, *, with_data, freq, kill=None, strict=None):
        """Starts a new process: new data, a new callback."""
        source = feed.source() if feed.source is not None else None
        data = feed.data() if source is None else feed.data(source)
        given = {"data": data if source is None else source} if with_data else {"strict": strict}
        callback = kresume.BackupAndRestore(folder, save_freq=freq, delete_checkpoint=False, **given)
        return fit(model, data, [callback, Counter(kill)], feed)

    cases = [
        (True, 2, None, feed.outcomes[0], (None, *KILLS)),
        (False, 2, None, feed.outcomes[1], (None, KILLS[0])),
        (False, 2, False, feed.outcomes[1], KILLS[1:]),
        (False, "epoch", None, feed.outcomes[2], KILLS[1:]),
    ]
    if feed.called not in PLAIN:  # another content of the batches, drawn in the same way
        cases = [(with_data, freq, strict, outcome, KILLS[:1]) for with_data, freq, strict, outcome, _ in cases[:2]]
    for number, (with_data, freq, strict, outcome, kills) in enumerate(cases):
        mode = {"with_data": with_data, "freq": freq, "strict": strict}
        if outcome == REFUSED:
            with pytest.raises(UsageError):
                run(tmp_path / f"{number}", **mode)
            continue
        for kill in kills:
            if kill is not None and kill > feed.steps * feed.epochs:
                continue
            folder = tmp_path / f"{number}-{kill}"
            if kill is not None:
                assert run(folder, kill=kill, **mode) is None
            kept = max((step for step, _ in snapshot.list_snapshots(folder)), default=0)
            counted, found = run(folder, **mode)
            assert counted.updates + kept == plain.updates, (mode, kill)
            assert counted.epochs == plain.epochs[kept // feed.steps :], (mode, kill)
            assert iterations(found) == iterations(expected), (mode, kill)
            # Not killed: the callback changes nothing, whether it orders the data or not.
            if outcome == EXACT or (kill is None and feed.called != "`resumable`, `shuffle`"):
                assert_same_bytes(expected, found)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("freq", [2, "epoch"])
@pytest.mark.parametrize(
    "called", ["generator, `steps_per_epoch`", "tf.data without end, `steps_per_epoch`", "arrays, `steps_per_epoch`"]
)
def test_it_says_that_data_of_unknown_length_begin_again(model, tmp_path, capfd, called, freq):
    feed = next(feed for feed in FEEDS if feed.called == called)
    kill = feed.steps + 3 if feed.steps > 2 else feed.steps + 1
    assert fit(model, feed.data(), [kresume.BackupAndRestore(tmp_path, save_freq=freq), Counter(kill)], feed) is None
    capfd.readouterr()
    fit(model, feed.data(), [kresume.BackupAndRestore(tmp_path, save_freq=freq), Counter()], feed)
    told = capfd.readouterr().err
    assert "continuing at step" in told
    assert ("fit begins at the data's first batch again" in told) == (called != "arrays, `steps_per_epoch`")
    assert "are skipped" not in told or called == "arrays, `steps_per_epoch`"


def torch_shuffled(within=False):
    """Returns a loader whose sampler draws from torch's generator; within a batch sampler, if asked for."""
    data = pytest.importorskip("torch").utils.data
    dataset = loader().dataset
    batches = data.BatchSampler(data.RandomSampler(dataset), BATCH, False)
    return data.DataLoader(
        dataset, **({"batch_sampler": batches} if within else {"batch_size": BATCH, "shuffle": True})
    )


def by_python(step):
    """Returns data that call Python code in `map`, or in another step."""
    import tensorflow as tf

    def doubled(x, y):
        return tf.ensure_shape(tf.numpy_function(lambda x: x * 2, [x], tf.float32), x.shape), y

    def of_generator(_=None):
        return tf.data.Dataset.from_generator(batches, output_signature=tensors().element_spec)

    one = tf.data.Dataset.range(1)
    data = {
        "map": lambda: tensors().map(doubled),
        "flat_map": lambda: tensors().flat_map(lambda x, y: tf.data.Dataset.from_tensors(doubled(x, y))),
        "interleave": lambda: one.interleave(lambda _: tensors().map(doubled)),
        "from_generator": of_generator,
        "interleave of generators": lambda: one.interleave(of_generator),
    }[step]()
    return data.apply(tf.data.experimental.assert_cardinality(STEPS))


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("make", "options", "told"),
    [
        (torch_shuffled, {}, "the DataLoader shuffles by a generator of torch"),
        (lambda: torch_shuffled(within=True), {}, "the DataLoader shuffles by a generator of torch"),
        (loader, {}, None),
        (lambda: by_python("map"), {}, "a function of the data calls Python code"),
        (lambda: by_python("map").prefetch(1), {}, "a function of the data calls Python code"),
        (lambda: by_python("flat_map"), {}, "a function of the data calls Python code"),
        (lambda: by_python("interleave"), {}, "a function of the data calls Python code"),
        (lambda: by_python("from_generator"), {}, None),
        (lambda: by_python("interleave of generators"), {}, None),
        (ours, {}, None),
        (ByIndex, {"steps_per_epoch": 2}, "fit shuffles the PyDataset (its default)"),
        (ByIndex, {}, None),
        (ByIndex, {"steps_per_epoch": 2, "shuffle": False}, None),
    ],
)
def test_it_says_where_the_order_of_the_data_begins_anew(model, tmp_path, capfd, make, options, told):
    feed = Feed("", make, REPEATS, options, epochs=3, steps=options.get("steps_per_epoch", STEPS))
    assert fit(model, make(), [kresume.BackupAndRestore(tmp_path), Counter(feed.steps + 1)], feed) is None
    capfd.readouterr()
    fit(model, make(), [kresume.BackupAndRestore(tmp_path), Counter()], feed)
    said = capfd.readouterr().err
    assert "continuing at step" in said
    for words in ("shuffles", "calls Python code"):
        assert (words in said) == (told is not None and words in told)
    assert told is None or told in said


def in_another_order(unknown):
    """Returns data that shuffle, of known or unknown length."""
    return shuffled().filter(lambda x, y: True) if unknown else shuffled()


@pytest.fixture(scope="module")
def undisturbed(model):
    """Returns what five epochs of data that shuffle end with, of known and of unknown length."""
    feed = Feed("", shuffled, REPEATS, epochs=5)
    return {unknown: fit(model, in_another_order(unknown), [Counter()], feed)[1] for unknown in (False, True)}


ORDERS = [(3, 2, False), (7, "epoch", False), (11, 2, False), (3, "epoch", True), (7, 2, True), (11, "epoch", True)]


@pytest.mark.parametrize(("kill", "freq", "unknown"), few_under_jax(ORDERS, [each for each in ORDERS if each[0] == 7]))
def test_shuffled_epochs_go_on_in_their_order(model, undisturbed, tmp_path, kill, freq, unknown):
    """Each epoch has another order, whichever of them was interrupted, and twice.

    Holds how many iterators Keras makes; a change there ends the equality.
    """
    feed = Feed("", shuffled, REPEATS, epochs=5)
    for killed in (kill, 5):
        backup = kresume.BackupAndRestore(tmp_path, save_freq=freq, delete_checkpoint=False)
        assert fit(model, in_another_order(unknown), [backup, Counter(killed)], feed) is None
    backup = kresume.BackupAndRestore(tmp_path, save_freq=freq)
    _, found = fit(model, in_another_order(unknown), [backup, Counter()], feed)
    assert_same_bytes(undisturbed[unknown], found)


class Validated(Counter):
    """Keeps the scores of each epoch that ended."""

    def __init__(self, kill=None):
        super().__init__(kill)
        self.scores = {}

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch)
        self.scores[epoch] = logs.get("val_loss")


VALIDATIONS = {
    "tf.data, `shuffle` with a seed": lambda data: {"validation_data": shuffled()},
    "tf.data, `shuffle` with a seed, `validation_steps`": lambda data: {
        "validation_data": shuffled(),
        "validation_steps": 1,
    },
    "tf.data of unknown length, `shuffle` with a seed, `validation_steps`": lambda data: {
        "validation_data": shuffled().filter(lambda x, y: True),
        "validation_steps": 1,
    },
    "tf.data, `shuffle` with a seed, `validation_steps`, `validation_freq=2`": lambda data: {
        "validation_data": shuffled(),
        "validation_steps": 1,
        "validation_freq": 2,
    },
    "`PyDataset` that shuffles in `on_epoch_end`, `validation_steps`": lambda data: {
        "validation_data": Shuffled(),
        "validation_steps": 1,
    },
    "a part of the training data (`take`)": lambda data: {"validation_data": data.take(1)},
}
OF_TRAINING = "a part of the training data (`take`)"
OF_DATA = "the dataset of `data=` itself"
GENERATOR = "generator, `validation_steps`"
ANEW = "begins anew, and a line says so"


@pytest.mark.parametrize(
    "kind",
    few_under_jax(list(VALIDATIONS), ["tf.data, `shuffle` with a seed, `validation_steps`", OF_TRAINING]),
    ids=lambda kind: kind.replace("`", ""),
)
@pytest.mark.parametrize("ours_too", [False, True], ids=["", "with data="])
@pytest.mark.sample(
    "-PyDataset that shuffles in on_epoch_end, validation_steps",
    "-a part of the training data (take)",
    "-tf.data of unknown length, shuffle with a seed, validation_steps",
    "-tf.data, shuffle with a seed, validation_steps",
    "with data=-tf.data, shuffle with a seed, validation_steps, validation_freq=2",
)
def test_validation_data_go_on_in_their_order(model, tmp_path, kind, ours_too):
    """Each validation has another order. Killed within two epochs, the later ones have the order that they would have had."""
    if ours_too and "validation_steps" not in kind:
        pytest.skip("those of resumable have one order, and others are counted as without it")
    feed = Feed("", shuffled, REPEATS, epochs=6)

    def run(kill=None):
        source = ours() if ours_too else None
        data = shuffled() if source is None else source
        backup = kresume.BackupAndRestore(tmp_path, save_freq=2, data=source, delete_checkpoint=False)
        return fit(model, data, [backup, Validated(kill)], feed, VALIDATIONS[kind](data))

    source = ours() if ours_too else shuffled()
    whole, expected = fit(model, source, [Validated()], feed, VALIDATIONS[kind](source))
    assert run(11) is None
    assert run(8) is None  # of the steps of its own process
    counted, found = run()
    assert_same_bytes(expected, found)
    assert counted.scores == {epoch: whole.scores[epoch] for epoch in counted.scores}
    assert min(counted.scores) < 5


class Reads(Validated):
    """Reads the training data wherever a callback is called, and keeps what it read."""

    def __init__(self, data, kill=None):
        super().__init__(kill)
        self.data, self.read, self.epoch = data, {}, 0

    def _read(self, where, batch=0):
        self.read[where, self.epoch, batch] = [float(np.sum(x)) for x, _ in self.data]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._read("epoch begins")

    def on_train_batch_begin(self, batch, logs=None):
        self._read("batch begins", batch)

    def on_train_batch_end(self, batch, logs=None):
        self._read("batch ends", batch)
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._read("epoch ends")
        super().on_epoch_end(epoch, logs)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("kill", [6, 2 * STEPS])
@pytest.mark.sample("6")
def test_other_readers_of_the_data_read_whole_epochs(model, tmp_path, kill):
    """Continued within an epoch, the data began for validation and for callbacks, too, where the training continued."""
    feed = Feed("", ours, OURS, epochs=3)

    def run(folder, freq, kill=None):
        source = ours()
        counter = Reads(source, kill)
        backup = kresume.BackupAndRestore(folder, save_freq=freq, data=source)
        done = fit(model, source, [backup, counter], feed, {"validation_data": source})
        return (counter, done[1]) if done is not None else None

    whole, expected = run(tmp_path / "whole", 1)
    assert {len(read) for read in whole.read.values()} == {STEPS}
    freq = 1 if kill < 2 * STEPS else "epoch"
    assert run(tmp_path / "killed", freq, kill) is None
    counted, found = run(tmp_path / "killed", freq)
    assert_same_bytes(expected, found)
    assert counted.read == {where: whole.read[where] for where in counted.read}
    assert counted.scores == {epoch: whole.scores[epoch] for epoch in counted.scores}
    assert len(counted.scores) == 3 - (kill - 1) // STEPS


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("ours_too", [False, True], ids=["", "with data="])
def test_validation_by_a_generator_begins_anew_and_is_told(model, tmp_path, capfd, ours_too):
    """Keras goes on in a generator from one validation to the next, and no backup knows where it was."""
    feed = Feed("", tensors, REPEATS, epochs=3)
    told = "the validation data are a generator, which begins at its first batch again when training is continued"

    def run(kill=None):
        source = ours() if ours_too else None
        data = tensors() if source is None else source
        backup = kresume.BackupAndRestore(tmp_path, data=source)
        options = {"validation_data": endless(), "validation_steps": 3}
        done = fit(model, data, [backup, Validated(kill)], feed, options)
        return done, capfd.readouterr().err

    source = ours() if ours_too else tensors()
    whole, _ = fit(model, source, [Validated()], feed, {"validation_data": endless(), "validation_steps": 3})
    killed, said = run(STEPS + 1)
    assert killed is None
    assert said.count(told) == 1
    (counted, _), said = run()
    assert said.count(told) == 1
    assert "continuing at step" in said
    assert counted.scores[1] != whole.scores[1]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("same_callback", [True, False])
def test_data_that_lived_through_the_epochs_are_not_told_of_them_again(model, tmp_path, same_callback):
    """`fit` raised, and is called again in the same process with the same `PyDataset`."""

    class Counts(ByIndex):
        ended = 0

        def on_epoch_end(self):
            self.ended += 1

    data, feed = Counts(), Feed("", ByIndex, REPEATS, {"shuffle": False}, epochs=5)
    backup = kresume.BackupAndRestore(tmp_path)
    assert fit(model, data, [backup, Counter(3 * STEPS + 2)], feed) is None
    before = data.ended
    fit(model, data, [backup if same_callback else kresume.BackupAndRestore(tmp_path), Counter()], feed)
    assert data.ended == before + 2 + 1  # two epochs, and once where Keras begins


class Draws(Validated):
    """Reads the training data, or a part of them, wherever a callback is called."""

    def __init__(self, data, kill=None):
        super().__init__(kill)
        self.data = data

    def on_epoch_begin(self, epoch, logs=None):
        next(iter(self.data.take(1)))

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            next(iter(self.data))
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self.model.predict(self.data, verbose=0)
        super().on_epoch_end(epoch, logs)


@pytest.mark.parametrize("freq", [1, "epoch"])
@pytest.mark.parametrize("shared", few_under_jax([False, True], [False]))
@pytest.mark.sample("False-1", "True-epoch")
def test_iterators_that_callbacks_make_of_the_data_are_counted(model, tmp_path, freq, shared):
    """A `shuffle` with a seed gives each iterator the next order, whoever makes it."""
    feed = Feed("", shuffled, REPEATS, epochs=4)

    def run(folder, kill=None):
        data = shuffled()
        given = {"validation_data": data.take(1)} if shared else {}
        backup = kresume.BackupAndRestore(tmp_path / folder, save_freq=freq)
        return fit(model, data, [backup, Draws(data, kill)], feed, given)

    _, expected = run("whole")
    for kill in (7, 6):
        assert run("killed", kill) is None
    _, found = run("killed")
    assert_same_bytes(expected, found)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("kind", [shuffled, Shuffled, tensors, ByIndex])
def test_a_retry_in_one_process_says_whose_backup_it_is_and_that_the_order_is_another(model, tmp_path, capfd, kind):
    """The data have drawn, and cannot go back; another training with this folder continues, too, and cannot be told."""
    data, feed = kind(), Feed("", kind, REPEATS, {"shuffle": False}, epochs=3)
    assert fit(model, data, [kresume.BackupAndRestore(tmp_path, save_freq=2), Counter(7)], feed) is None
    capfd.readouterr()
    fit(model, data, [kresume.BackupAndRestore(tmp_path, save_freq=2), Counter()], feed)
    said = capfd.readouterr().err
    assert "this is the backup of an earlier fit of this process, which did not finish" in said
    assert "give each a folder of its own, or remove this one, to begin anew" in said
    assert ("go on in another order than in a training that was not interrupted" in said) == (
        kind in (shuffled, Shuffled)
    )
    assert ("skipped in the order that the data have now" in said) == (kind in (tensors, ByIndex))


@pytest.mark.one_backend(trains=True)
def test_the_file_of_a_cache_that_was_left_locked_is_named(model, tmp_path):
    """TensorFlow names a lock file and a concurrent iterator; the process that filled it died."""
    (tmp_path / "cache_0.lockfile").touch()
    feed = Feed("", tensors, REPEATS)
    data = tensors().cache(str(tmp_path / "cache")).prefetch(1)
    with pytest.raises(UsageError, match=r"locked: if no other process fills it now, remove the files .*/cache\* "):
        fit(model, data, [kresume.BackupAndRestore(tmp_path / "b"), Counter()], feed)
    (tmp_path / "cache_0.lockfile").unlink()
    fit(model, data, [kresume.BackupAndRestore(tmp_path / "b"), Counter()], feed)
    (tmp_path / "cache_0.lockfile").touch()  # of one that is filled TensorFlow takes no notice
    fit(model, data, [kresume.BackupAndRestore(tmp_path / "b"), Counter()], feed)


@pytest.mark.one_backend(trains=True)
def test_a_training_that_begins_later_counts_from_there(model, tmp_path):
    feed = Feed("", shuffled, REPEATS, {"initial_epoch": 2}, epochs=6)
    _, expected = fit(model, shuffled(), [Counter()], feed)
    assert fit(model, shuffled(), [kresume.BackupAndRestore(tmp_path, save_freq=2), Counter(7)], feed) is None
    _, found = fit(model, shuffled(), [kresume.BackupAndRestore(tmp_path, save_freq=2), Counter()], feed)
    assert_same_bytes(expected, found)


def cached(behind=False):
    import tensorflow as tf

    data = shuffled().unbatch().cache()
    data = data.shuffle(BATCH * STEPS, seed=4) if behind else data
    return data.batch(BATCH).apply(tf.data.experimental.assert_cardinality(STEPS))


def without(option):
    import tensorflow as tf

    options = tf.data.Options()
    part = options.autotune if option == "enabled" else options.experimental_optimization
    setattr(part, option, False)
    return cached().with_options(options)


def zipped():
    import tensorflow as tf

    return tf.data.Dataset.zip((shuffled().cache(), tf.data.Dataset.range(STEPS - 2))).map(lambda data, index: data)


CACHED = {
    "zipped with fewer": (zipped, {}),
    "shuffle before the cache": (cached, {}),
    "no autotuner": (lambda: without("enabled"), {}),
    "no prefetch is added": (lambda: without("inject_prefetch"), {}),
    "no optimisation": (lambda: without("apply_default_optimizations"), {}),
    "a part": (lambda: shuffled().cache().take(STEPS - 1), {}),
    "a part of a shuffle": (lambda: shuffled().cache().shuffle(STEPS, seed=4).take(STEPS - 1), {}),
    "and behind it": (lambda: cached(behind=True).prefetch(2), {}),
    "of batches": (lambda: shuffled().cache().prefetch(2), {}),
    "steps_per_epoch": (lambda: shuffled().cache().prefetch(2), {"steps_per_epoch": 2}),
    "steps_per_epoch, no autotuner": (lambda: without("enabled"), {"steps_per_epoch": 2}),
    "validation": (tensors, {}),
    "validation in part": (tensors, {"validation_steps": 2}),
}


@pytest.mark.optimized_graphs  # what tf.data adds fills a cache
@pytest.mark.parametrize("kind", few_under_jax(list(CACHED), ["and behind it"]))
@pytest.mark.sample(
    "shuffle before the cache", "and behind it", "no autotuner", "a part", "steps_per_epoch", "validation"
)
def test_a_cache_keeps_the_order_of_the_first_epoch(model, tmp_path, capfd, kind):
    """A cache keeps the order of its first iterator for all epochs; a process that continues in a later one fills it so."""
    make, options = CACHED[kind]
    feed = Feed("", make, REPEATS, options, epochs=8 if "steps_per_epoch" in options or make is zipped else 4)

    def run(folder, kill=None):
        validating = {"validation": "and behind it", "validation in part": "of batches"}.get(kind)
        given = {"validation_data": CACHED[validating][0]()} if validating else {}
        backup = kresume.BackupAndRestore(tmp_path / folder, save_freq=2)
        return fit(model, make(), [backup, Validated(kill)], feed, {**options, **given})

    whole, expected = run("whole")
    for kill in (7, 6):  # in the second epoch, and in the third; of two steps each, in the third and later
        assert run("killed", kill) is None
    counted, found = run("killed")
    assert_same_bytes(expected, found)
    assert counted.scores == {epoch: whole.scores[epoch] for epoch in counted.scores}
    told = "validation_steps draws a part of data that cache() keeps behind a shuffle" in capfd.readouterr().err
    assert told == (kind == "validation in part")  # here all are read ahead


@pytest.mark.optimized_graphs  # what tf.data adds fills a cache
@pytest.mark.parametrize("freq", [1, 2])
@pytest.mark.parametrize("trained", ["the first part", "the rest"])
@pytest.mark.sample("the first part-1", "the rest-2")
def test_a_cache_of_which_training_and_validation_are_parts(model, tmp_path, capfd, trained, freq):
    """The one that reaches its end fills it: validation in its first one, or training in the first epoch."""

    def parts():
        data = shuffled().unbatch().cache()
        first, rest = (part.batch(BATCH) for part in (data.take(BATCH * 2), data.skip(BATCH * 2)))
        return (first, rest) if trained == "the first part" else (rest, first)

    feed = Feed("", parts, REPEATS, epochs=5)

    def run(folder, kill=None, **more):
        data, validating = parts()
        backup = kresume.BackupAndRestore(tmp_path / folder, save_freq=2)
        given = {"validation_data": validating, "validation_freq": freq, **more}
        return fit(model, data, [backup, Validated(kill)], Feed("", parts, REPEATS, epochs=1) if more else feed, given)

    whole, expected = run("whole")
    for kill in (5, 3):  # in the third epoch, and in the fourth; of one or two validations before
        assert run("killed", kill) is None
    counted, found = run("killed")
    assert_same_bytes(expected, found)
    assert counted.scores == {epoch: whole.scores[epoch] for epoch in counted.scores}
    assert "are parts of what cache() keeps" not in capfd.readouterr().err
    run("passes", steps_per_epoch=1)
    assert "training and validation are parts of what cache() keeps behind a shuffle" in capfd.readouterr().err


@pytest.mark.one_backend(trains=True)
def test_the_class_of_datasets_is_as_it_was_after_fit(model, tmp_path, monkeypatch):
    """It counts iterators while a training lasts."""
    import tensorflow as tf

    plain = getattr(tf.data.Dataset.__iter__, draws.PLAIN, tf.data.Dataset.__iter__)
    monkeypatch.setattr(draws, "_lasting", weakref.WeakSet())  # without those of tests that killed a fit
    monkeypatch.setattr(tf.data.Dataset, "__iter__", plain)
    kinds = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kinds.append(tf.data.Dataset.__iter__ is plain)

    fit(model, shuffled(), [kresume.BackupAndRestore(tmp_path), Look()], Feed("", shuffled, REPEATS, epochs=1))
    assert kinds == [False]
    assert tf.data.Dataset.__iter__ is plain


LEFT_BY_A_FIT = {
    "known length": (shuffled, {}, STEPS),
    "unknown length": (lambda: shuffled().filter(lambda x, y: True), {}, STEPS),
    "steps_per_epoch": (shuffled, {"steps_per_epoch": 2}, 2),
    "PyDataset": (Shuffled, {"shuffle": False}, STEPS),
}


@pytest.mark.parametrize("kind", few_under_jax(list(LEFT_BY_A_FIT), ["known length"]))
@pytest.mark.sample("known length", "PyDataset")
def test_a_finished_fit_leaves_the_data_to_the_next_as_if_it_had_trained(model, tmp_path, kind):
    """Two fits on the same data, with a folder each: the first one, which is only restored, made none of its iterators."""
    make, options, steps = LEFT_BY_A_FIT[kind]
    feed = Feed("", make, REPEATS, options, epochs=3, steps=steps)

    def run(folder, kill=None):
        data, done = make(), []
        for name, dies in (("head", None), ("again", None), ("all", kill)):
            # A cell of a notebook may be run again: it is finished, and the data have lived through it.
            path = tmp_path / folder / ("head" if name == "again" else name)
            backup = kresume.BackupAndRestore(path, save_freq=2, delete_checkpoint=False)
            done.append(fit(model, data, [backup, Counter(dies)], feed))
        return done[-1]

    _, expected = run("whole")
    assert run("killed", kill=steps + 1) is None
    counted, found = run("killed")
    assert_same_bytes(expected, found)
    assert counted.updates == 2 * steps


@pytest.mark.one_backend(trains=True)
def test_a_loop_of_fits_goes_on_in_the_order_of_its_data(model, tmp_path):
    """One fit for each epoch, with one folder that stays: those that are done pass by the iterators that they made."""

    def run(folder, kill=None):
        data, updates = shuffled(), 0
        for epoch in range(4):
            backup = kresume.BackupAndRestore(tmp_path / folder, save_freq=2, delete_checkpoint=False)
            feed = Feed("", shuffled, REPEATS, {"initial_epoch": epoch}, epochs=epoch + 1)
            done = fit(model, data, [backup, Counter(kill if epoch == 2 else None)], feed)
            if done is None:
                return None
            updates += done[0].updates
        return updates, done[1]

    _, expected = run("whole")
    assert run("killed", kill=3) is None
    updates, found = run("killed")
    assert_same_bytes(expected, found)
    assert updates == 2 * STEPS - 2


class KilledAtTheEnd(Counter):
    """Dies after the last update of the first epoch, before its end is backed up."""

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch)
        raise Killed


def test_data_of_unknown_length_killed_behind_the_last_batch(model, tmp_path):
    """Killed after the last batch of data of unknown length, an epoch ends with the same updates.

    Only drawing reveals that no batch is left.
    """
    feed = next(feed for feed in FEEDS if feed.called == "tf.data of unknown length")
    plain, expected = fit(model, feed.data(), [Counter()], feed)
    backup = kresume.BackupAndRestore(tmp_path, save_freq=1)
    assert fit(model, feed.data(), [backup, KilledAtTheEnd()], feed) is None
    assert [step for step, _ in snapshot.list_snapshots(tmp_path)] == [STEPS]
    counted, found = fit(model, feed.data(), [kresume.BackupAndRestore(tmp_path, save_freq=1), Counter()], feed)
    assert counted.updates + STEPS == plain.updates
    assert iterations(found) == iterations(expected)
    assert_same_bytes(expected, found)


TABLE = re.compile(r"(<!-- table: feeding -->\n).*?(<!-- end -->)", re.DOTALL)
PAGE = ROOT / "docs" / "backup-and-restore.md"


def render(page: str) -> str:
    """Returns the page with the table of the tested ways."""
    rows = [
        '| `fit` is fed by | with `data=` | without, a number as `save_freq` | without, `"epoch"` |',
        "|---|---|---|---|",
    ]
    rows += [f"| {feed.called} | {' | '.join(feed.outcomes)} |" for feed in FEEDS]
    rows += ["", "| validation data | with `data=` | without |", "|---|---|---|"]
    rows += [f"| {kind} | {'not tried' if kind == OF_TRAINING else EXACT} | {EXACT} |" for kind in VALIDATIONS]
    rows += [f"| {OF_DATA} | {EXACT} | not tried |"]
    rows += [f"| {GENERATOR} | {ANEW} | {ANEW} |"]
    return TABLE.sub(lambda match: match[1] + "\n".join(rows) + "\n" + match[2], page)


@pytest.mark.one_backend
def test_the_table_in_the_docs_is_what_is_tested():
    """The docs' table lists the tested ways of feeding and their outcomes."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(page), "run python -m tests.drop_in.test_backup_feeding"
    assert page.count("refused") > 10


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
