"""Tests that a killed training restores random generators which the user's code made, and ends with equal bytes."""

import functools
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import stateful_random_ops

from tests.drop_in.test_backup_models import arrays_of, train
from tests.helpers.runs import assert_same_bytes

pytestmark = [
    pytest.mark.one_backend(trains=True),
    pytest.mark.filterwarnings(
        "ignore:Your input ran out of data:UserWarning", "ignore:.shuffle=True. was passed:UserWarning"
    ),
]


@pytest.fixture(autouse=True)
def no_global_generator(monkeypatch):
    """Leaves TensorFlow's global generator as it was: a snapshot of any later training in this process would hold it."""
    monkeypatch.setattr(stateful_random_ops, "global_generator", None)


HELD = {}
"""Holds objects that classes below use by this global name."""


class OfTensorflow:
    """Draws noise by a `tf.random.Generator`."""

    def __init__(self):
        self.generator = tf.random.Generator.from_seed(3)

    def __call__(self, like):
        return self.generator.normal(tf.shape(like)) * 0.1


class Derived(tf.random.Generator):
    """Is a class of the user's."""

    def __call__(self, like):
        return self.normal(tf.shape(like)) * 0.1


class OfAll:
    """Draws by TensorFlow's global generator."""

    def __init__(self):
        tf.random.set_global_generator(tf.random.Generator.from_seed(4))

    def __call__(self, like):
        return tf.random.get_global_generator().normal(tf.shape(like)) * 0.1


class ByLayer(keras.layers.Layer):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def call(self, x, training=False):
        return x + self.noise(x) if training else x


class ByModel(keras.Sequential):
    def train_step(self, data):
        return super().train_step((data[0] + self.noise(data[0]), data[1]))


class ByLoss(keras.losses.Loss):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def call(self, y_true, y_pred):
        return keras.ops.mean((y_true - y_pred + self.noise(y_pred)) ** 2, axis=-1)


class ByOptimizer(keras.optimizers.SGD):
    """Adds noise to gradients."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient + self.noise(gradient), variable, learning_rate)


class ByMetric(keras.metrics.Mean):
    """Is of the mean; its last value changes the model."""

    def __init__(self, noise, weight):
        super().__init__(name="own")
        self.noise, self.weight = noise, [weight]

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.weight[0].assign_add(self.noise(self.weight[0]))
        return super().update_state(y_pred)


class ByCallback(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        kernel = self.model.layers[-1].kernel
        kernel.assign_add(self.noise(kernel))


class AtEpoch(keras.callbacks.Callback):
    """Draws at an epoch's beginning, which a continued epoch passes twice."""

    def __init__(self):
        super().__init__()
        self.drawn = tf.Variable(tf.zeros((4, 1)))

    def on_epoch_begin(self, epoch, logs=None):
        self.drawn.assign_add(self.noise(self.drawn))

    def on_train_batch_begin(self, batch, logs=None):
        self.model.layers[-1].kernel.assign_add(self.drawn)


class ByGlobalName(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        kernel = self.model.layers[-1].kernel
        kernel.assign_add(HELD["noise"](kernel))


def lambda_callback(noise):
    """Returns a callback of Keras that draws in a function of the user's."""
    parts = []

    def begin(batch, logs=None):
        parts[0].assign_add(noise(parts[0]))

    callback = keras.callbacks.LambdaCallback(on_train_batch_begin=begin)
    return callback, parts


def closure(noise):
    def loss(y_true, y_pred, scale):
        return keras.ops.mean((y_true - y_pred + noise(y_pred)) ** 2, axis=-1) * scale

    return functools.partial(loss, scale=2.0)


class OfNumpy:
    """Draws noise by a generator of numpy, or by one of Python."""

    make = functools.partial(np.random.default_rng, 3)

    def __init__(self):
        self.generator = type(self).make()

    def __call__(self, like):
        return tf.constant(self.drawn(tuple(int(length or 4) for length in like.shape)), "float32") * 0.1

    def drawn(self, shape):
        return self.generator.normal(size=shape)


class OfMersenne(OfNumpy):
    make = functools.partial(np.random.RandomState, 3)


class OfPhilox(OfNumpy):
    """Shares one state between two generators."""

    def make():
        source = np.random.Philox(3)
        return [np.random.Generator(source), np.random.Generator(source)]

    def drawn(self, shape):
        return self.generator[0].normal(size=shape) + self.generator[1].normal(size=shape)


class OfPython(OfNumpy):
    make = functools.partial(random.Random, 3)

    def drawn(self, shape):
        return np.reshape([self.generator.gauss(0, 1) for _ in range(int(np.prod(shape)))], shape)


class ByFunction(OfNumpy):
    """Draws in Python code that a graph calls."""

    def __call__(self, like):
        noise = tf.numpy_function(lambda: self.drawn((4, like.shape[-1])).astype("float32"), [], tf.float32)
        return tf.ensure_shape(noise, (4, like.shape[-1])) * 0.1


HOLDERS = (
    "layer", "model", "loss", "optimizer", "metric", "callback", "epoch", "global", "lambda", "closure", "schedule",
)  # fmt: skip


def made(holder, draws, **options):
    """Returns the model and the callbacks of a script in which one object draws noise."""
    noise = draws.from_seed(3) if issubclass(draws, Derived) else draws()
    model = (ByModel if holder == "model" else keras.Sequential)(
        [keras.Input((4,)), *([ByLayer(noise)] if holder == "layer" else []), keras.layers.Dense(1)]
    )
    kernel, callbacks = model.layers[-1].kernel, []
    given = {"optimizer": keras.optimizers.SGD(0.01), "loss": "mse", **options}
    if holder == "model":
        model.noise = noise
    elif holder in {"loss", "closure"}:
        given["loss"] = {"loss": ByLoss, "closure": closure}[holder](noise)
    elif holder == "optimizer":
        given["optimizer"] = ByOptimizer(0.01)
        given["optimizer"].noise = noise
    elif holder == "metric":
        given["metrics"] = [ByMetric(noise, kernel)]
    elif holder == "global":
        HELD["noise"] = noise
        callbacks = [ByGlobalName()]
    elif holder == "lambda":
        callback, parts = lambda_callback(noise)
        parts.append(kernel)
        callbacks = [callback]
    elif holder == "schedule":
        callbacks = [keras.callbacks.LearningRateScheduler(lambda epoch, rate: float(rate + abs(noise(kernel)[0, 0])))]
    elif holder in {"callback", "epoch"}:
        callbacks = [{"callback": ByCallback, "epoch": AtEpoch}[holder]()]
        callbacks[0].noise = noise
    model.compile(**given)
    return model, callbacks


def final(folder, holder, draws, kills, **options):
    """Returns the arrays of a training that is killed after numbers of batches and started again."""
    for kill in (*kills, None):
        keras.utils.set_random_seed(3)
        model, callbacks = made(holder, draws, **options)
        trained = train(lambda model=model: model, folder, kill=kill, others=callbacks)
    return arrays_of(trained[0])


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_generator_of_tensorflow_goes_on(tmp_path, holder):
    """It began anew after a restart, and nothing was told."""
    expected = final(tmp_path / "whole", holder, OfTensorflow, [])
    assert_same_bytes(expected, final(tmp_path / "killed", holder, OfTensorflow, [5, 12]))


@pytest.mark.parametrize("draws", [OfAll, Derived])
@pytest.mark.parametrize("holder", ["loss", "callback", "closure"])
def test_the_global_generator_and_one_of_a_class_of_the_users_go_on(tmp_path, holder, draws):
    expected = final(tmp_path / "whole", holder, draws, [])
    assert_same_bytes(expected, final(tmp_path / "killed", holder, draws, [5, 12]))


EAGER = {"run_eagerly": True}


@pytest.mark.parametrize(
    ("holder", "draws", "options"),
    [
        *((holder, OfNumpy, EAGER) for holder in HOLDERS),
        *((holder, draws, EAGER) for holder in ("model", "callback") for draws in (OfMersenne, OfPhilox, OfPython)),
        *((holder, OfNumpy, {}) for holder in ("callback", "epoch", "global", "lambda")),
        ("model", ByFunction, {}),
        ("layer", OfNumpy, {}),
    ],
)
def test_a_generator_of_numpy_or_python_goes_on(tmp_path, holder, draws, options):
    """It began anew. One from which a graph draws once, when it is traced, begins anew rightly: that was drawn before."""
    expected = final(tmp_path / "whole", holder, draws, [], **options)
    assert_same_bytes(expected, final(tmp_path / "killed", holder, draws, [5, 12], **options))


@pytest.mark.parametrize("now", [OfPython, OfMersenne])
def test_another_algorithm_is_told(tmp_path, capfd, now):
    """The state of one cannot be that of another."""
    final(tmp_path, "callback", OfNumpy, [])
    for draws, kill in ((OfNumpy, 5), (now, None)):
        keras.utils.set_random_seed(3)
        model, callbacks = made("callback", draws)
        train(lambda model=model: model, tmp_path / "other", kill=kill, others=callbacks)
    assert "generators of another kind begin anew: callbacks.ByCallback.0.noise.generator" in capfd.readouterr().err
