"""Tests models that keep state where Keras does not look for it, or parts that are never used: killed and continued exactly."""

import functools
import threading

import keras
import numpy as np
import pytest

import kresume
from kresume.drop_in import other_optimizers
from kresume.errors import UsageError
from kresume.models import found_variables
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


def train(make, folder, *, kill=None, others=(), **options):
    """Trains a new model as a new process would; returns it and the number of its calls, or None if it was killed."""
    keras.utils.set_random_seed(3)
    model = make()
    counter = Kill(kill)
    backup = kresume.BackupAndRestore(folder, delete_checkpoint=False, **{"save_freq": 2, **options.pop("backup", {})})
    given = {"x": IMAGES, "y": LABELS, "batch_size": 4, "shuffle": False, "epochs": 3, "verbose": 0, **options}
    try:
        model.fit(**given, callbacks=[backup, *others, counter])
    except Killed:
        for thread in threading.enumerate():
            if thread.name == "kresume-writer":
                thread.join()
        return None
    return model, counter.calls


def arrays_of(model, *others):
    variables = [*model.variables, *(model.optimizer.variables if model.optimizer is not None else ()), *others]
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


class Noisy(keras.losses.Loss):
    """Draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, y_true, y_pred):
        return keras.ops.mean((y_true - y_pred + _noise(y_pred, self.seeds)) ** 2, axis=-1)


def _noise(like, seeds):
    return keras.random.normal(keras.ops.shape(like), seed=seeds) * 0.1


class Helper:
    """Holds a generator and layers that Keras does not track."""

    def __init__(self):
        self.seeds = keras.random.SeedGenerator(4)
        self.layers = keras.Sequential([keras.Input((4,)), keras.layers.GaussianNoise(0.1, seed=5)])


def augmented(x):
    return _GLOBAL["augment"](x, training=True)


class Augmenting(keras.Sequential):
    def train_step(self, data):
        x = self.helper.layers(augmented(data[0]) + _noise(data[0], self.helper.seeds), training=True)
        return super().train_step((x, data[1]))


_GLOBAL = {}


def _noisy(loss):
    _GLOBAL["augment"] = keras.Sequential([keras.layers.GaussianNoise(0.1, seed=6), keras.layers.Dropout(0.1, seed=7)])
    model = Augmenting([keras.Input((4,)), keras.layers.Dense(1)])
    model.helper = Helper()
    model.compile(keras.optimizers.Adam(0.01), loss())
    return model


def _of_a_closure():
    seeds, numbers = keras.random.SeedGenerator(8), [keras.Variable(1.0, trainable=False)]

    def loss(y_true, y_pred, seeds=None, *, scale=1.0):
        return keras.ops.mean((y_true - y_pred + drawn(y_pred) * numbers[0]) ** 2, axis=-1)

    def drawn(like):
        numbers[0].assign(numbers[0] * 0.9)
        return _noise(like, seeds)

    return functools.partial(loss, scale=2.0)


@pytest.mark.parametrize("loss", [Noisy, _of_a_closure])
def test_generators_that_keras_does_not_track_go_on(tmp_path, loss):
    """A loss, a plain object on the model, a closure and a global name of the code have some. They began anew."""

    def make():
        return _noisy(loss)

    model, _ = train(make, tmp_path / "whole")
    expected = arrays_of(model)
    assert train(make, tmp_path / "killed", kill=15) is None
    model, _ = train(make, tmp_path / "killed")
    assert_same_bytes(expected, arrays_of(model))


class _Slots:
    __slots__ = ("a",)

    def __getattr__(self, name):
        raise RuntimeError(name)


class _Proxy:
    @property
    def __class__(self):
        raise RuntimeError("outside of its context")


class _NoDictionary:
    @property
    def __dict__(self):
        raise RuntimeError("no dictionary")


class _Numbered:
    def __init__(self):
        self.__dict__[3] = 1
        self.me = [self]


ODD = [_Slots(), _Proxy(), _NoDictionary(), _Numbered(), threading.Lock(), keras.optimizers.Adam()]


def test_odd_objects_of_the_users_end_no_backup(tmp_path, monkeypatch):
    """They raise where they are looked at, are long, or are variables that no file holds; what comes after them goes on."""
    import tensorflow as tf

    monkeypatch.setattr(found_variables, "MOST_LOOKED_AT", 2_000)

    name, numbers = tf.Variable("abc"), list(range(3_000))

    def make():
        model = counting()
        model.a_first, model.helper = numbers, Helper()

        def loss(y_true, y_pred):
            return keras.ops.mean((y_true - y_pred) ** 2, axis=-1) + 0.0 * len(ODD) * tf.strings.length(name).dtype.size

        model.compile(keras.optimizers.Adam(0.01), loss)
        return model

    model, _ = train(make, tmp_path / "whole")
    expected = arrays_of(model, model.steps)
    assert train(make, tmp_path / "killed", kill=20) is None
    model, calls = train(make, tmp_path / "killed")
    assert calls < 39
    assert_same_bytes(expected, arrays_of(model, model.steps))


class Seen(keras.metrics.Metric):
    """Counts the batches of all epochs, and those of one."""

    def __init__(self):
        super().__init__(name="seen")
        self.all, self.of_epoch = (self.add_variable((), "zeros", name=name) for name in ("all", "epoch"))

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.all.assign_add(1.0)
        self.of_epoch.assign_add(1000.0)

    def result(self):
        return self.all + self.of_epoch

    def reset_state(self):
        self.of_epoch.assign(0.0)


@pytest.mark.parametrize(("freq", "kill"), [("epoch", 15), (2, 17)])
def test_a_metric_that_counts_over_all_epochs_goes_on(tmp_path, freq, kill):
    def make():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=["mae", Seen()])
        return model

    given = {"backup": {"save_freq": freq}, "validation_data": (IMAGES[:8], LABELS[:8])}
    model, _ = train(make, tmp_path / "whole", **given)
    expected = model.history.history
    assert expected["seen"] == [13013, 13028, 13043]
    assert train(make, tmp_path / "killed", kill=kill, **given) is None
    model, _ = train(make, tmp_path / "killed", **given)
    found = model.history.history
    assert found["val_seen"] == expected["val_seen"]
    assert found["val_loss"] == expected["val_loss"]
    # Without data= what is reset covers the rest of the interrupted epoch.
    assert [seen % 1000 for seen in found["seen"]] == [seen % 1000 for seen in expected["seen"]]


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
    for kill in range(2, 7):  # the next two epochs end as these two do
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


class Lazy(keras.Model):
    """Makes its weights when it is called, but for a layer that it never calls."""

    def __init__(self):
        super().__init__()
        layers = keras.layers
        self.inside, self.dropout, self.top = layers.Dense(3, activation="relu"), layers.Dropout(0.3), layers.Dense(1)
        self.unused = layers.Dense(2)

    def call(self, x, training=False):
        return self.top(self.dropout(self.inside(x), training=training))


def test_a_model_that_is_built_by_its_first_batch_continues_with_data(tmp_path):
    """The data say its inputs. Plain Keras trains it to the same bits; without `data=` TensorFlow needs it built."""
    import tensorflow as tf

    def batches_from(position):
        dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS[:, None])).batch(4)
        return dataset.repeat().skip(position)

    def make():
        model = Lazy()
        model.compile(keras.optimizers.Adam(1e-2), "mse", metrics=["mae"])
        return model

    def options():
        data = kresume.resumable(batches_from, steps_per_epoch=13)
        return {"x": data, "y": None, "batch_size": None, "backup": {"data": data}}

    keras.utils.set_random_seed(3)
    plain = make()
    plain.fit(batches_from(0), steps_per_epoch=13, epochs=3, verbose=0)
    expected = arrays_of(plain)
    assert train(make, tmp_path / "b", kill=20, **options()) is None
    assert_same_bytes(expected, arrays_of(train(make, tmp_path / "b", **options())[0]))
    if keras.config.backend() == "tensorflow":  # under JAX Keras builds the model before it tells callbacks
        with pytest.raises(UsageError, match=r"needs a built model.*data= builds it"):
            train(make, tmp_path / "other")


class Adversaries(keras.Model):
    """A GAN's step: its two networks train by their own optimizers, and one is frozen while the other trains."""

    def __init__(self, compiled):
        super().__init__()
        layers = keras.layers
        self.g = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
        self.d = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu"), layers.Dense(1)])
        made = [keras.optimizers.Adam(1e-2) for _ in range(2)]
        if compiled:
            self.g.compile(made[0])
            self.d.compile(made[1])
        else:
            self.made = made
        self.compiled_parts = compiled

    def call(self, x):
        return self.d(self.g(x))

    def train_step(self, data):
        import tensorflow as tf

        x, _ = data
        go, do = (self.g.optimizer, self.d.optimizer) if self.compiled_parts else self.made
        self.d.trainable = True
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(self.d(self.g(x)) - self.d(x)) + keras.ops.mean(self.d(x) ** 2)
        do.apply(tape.gradient(loss, [each.value for each in self.d.trainable_variables]), self.d.trainable_variables)
        self.d.trainable = False
        with tf.GradientTape() as tape:
            other = -keras.ops.mean(self.d(self.g(x)))
        go.apply(tape.gradient(other, [each.value for each in self.g.trainable_variables]), self.g.trainable_variables)
        return {"loss": loss}


@pytest.mark.parametrize(("compiled", "options"), [(True, {}), (False, {}), (False, {"optimizer": None})])
@pytest.mark.sample("True-options0", "False-options2")
def test_networks_with_optimizers_of_their_own_that_freeze_each_other(tmp_path, capfd, compiled, options):
    """The optimizers of compiled parts are in the backup, and what a step freezes does not change what is restored.

    The model itself may be compiled without an optimizer.
    """

    def make():
        model = Adversaries(compiled)
        model.build((None, 4))
        # In a graph TensorFlow itself gives other bits in one of twenty trainings of such a step.
        model.compile(run_eagerly=True, **options)
        return model

    def parts(model):
        optimizers = [model.g.optimizer, model.d.optimizer] if compiled else model.made
        return [variable for optimizer in optimizers for variable in optimizer.variables]

    few = {"x": IMAGES[:16], "y": LABELS[:16]}
    model, _ = train(make, tmp_path / "whole", **few)
    expected = arrays_of(model, *parts(model))
    for kill in (3, 7):
        assert train(make, tmp_path / "killed", kill=kill, **few) is None
    model, _ = train(make, tmp_path / "killed", **few)
    assert_same_bytes(expected, arrays_of(model, *parts(model)))
    told = "4 weights were frozen when it was saved, and can train now" in capfd.readouterr().err
    assert told == (not options)  # without a compiled optimizer no slot depends on it


def test_the_optimizer_of_a_pretrained_part_is_not_in_the_backup():
    """Keras's own step does not train by it."""
    part = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    part.compile("adam", "mse")
    part.optimizer.build(part.trainable_variables)
    model = keras.Sequential([keras.Input((4,)), part, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    assert other_optimizers.capture(model) == ([], [])


class Warming(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule without `get_config`, with which Keras trains."""

    def __call__(self, step):
        return 0.01 * (1.0 + keras.ops.cast(step, "float32"))


def test_a_schedule_without_a_config_trains_and_continues(tmp_path):
    """Keras asks for a config only to save a file; a backup holds the count that the schedule reads."""

    def make():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(Warming()), "mse")
        return model

    expected = arrays_of(train(make, tmp_path / "whole")[0])
    assert train(make, tmp_path / "killed", kill=7) is None
    assert_same_bytes(expected, arrays_of(train(make, tmp_path / "killed")[0]))


def test_a_model_of_another_keras_is_refused_by_name(tmp_path):
    """`tf_keras` takes the callback, and failed on a method that its own callbacks have."""
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(
        UsageError, match=r"this fit is that of tf_keras \(a model of class Sequential\): give tf_keras's own"
    ):
        model.fit(IMAGES[:, :4], IMAGES[:, :1], verbose=0, callbacks=[kresume.BackupAndRestore(tmp_path / "b")])
    with pytest.raises(UsageError, match=r"is a model of tf_keras, expected one of Keras 3: save it"):
        kresume.resume(model=model, data=tmp_path, out=tmp_path / "run")


@pytest.mark.parametrize("ours", ["image_dataset", "resumable"])
@pytest.mark.sample("image_dataset")
def test_shuffled_validation_data_of_kresume_go_on_in_their_order(tmp_path, pictures, ours):
    """They begin each validation where the last one ended, so a continued training validates on the same batches."""

    def validation():
        if ours == "image_dataset":
            return kresume.image_dataset(
                pictures / "old", image_size=(2, 2), batch_size=7, labels=None, verbose=False
            ).map(lambda images: (images[:, 0, :, 0], images[:, 0, 0, 0]))
        import tensorflow as tf

        def batches_from(position):
            numbers = tf.data.Dataset.range(position, 10_000)
            return numbers.map(lambda at: (tf.fill([3, 4], tf.cast(at, tf.float32)), tf.fill([3], 1.0)))

        return kresume.resumable(batches_from, steps_per_epoch=2)

    def make():
        model = keras.Sequential([keras.Input((4 if ours == "resumable" else 2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01), "mse")
        return model

    options = {"epochs": 4, "x": IMAGES[:, : 4 if ours == "resumable" else 2]}
    model, _ = train(make, tmp_path / "whole", validation_data=validation(), **options)
    losses = model.history.history["val_loss"]
    assert len(set(losses)) == 4
    for kill in (20, 15):
        assert train(make, tmp_path / "killed", kill=kill, validation_data=validation(), **options) is None
    model, _ = train(make, tmp_path / "killed", validation_data=validation(), **options)
    assert model.history.history["val_loss"] == losses
