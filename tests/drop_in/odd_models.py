"""Describes models with what cannot be compared between processes; `test_code_changes` runs it, and edits of it.

python odd_models.py         # prints the record of each as JSON
"""

import functools
import json
import os
import sys
import time
import uuid
import warnings

import keras
import numpy as np

from tests.drop_in import kinds_of_values
from tests.helpers.script_records import record

for _ in range(int(os.environ.get("MADE_BEFORE", "0"))):  # the names that Keras generates differ then
    keras.layers.Dense(1), keras.layers.LSTM(1), keras.Sequential()

layers, losses, ops = keras.layers, keras.losses, keras.ops
X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
SCALE, WORDS, STARTED = 2.0, {"alpha", "beta", "gamma", "delta"}, time.time()
CLOCK = time.perf_counter()


class Helper:
    """Has a memory address in its text."""


class NoConfig(layers.Layer):
    def __init__(self, rate, helper, table):
        super().__init__()
        self.rate, self.helper, self.table, self.made = rate, helper, table, time.time()
        self.drop = layers.Dropout(rate, seed=1)

    def call(self, x, training=False):
        """A docstring."""
        if "alpha" in {"alpha", "beta", "delta", "epsilon"} and self.made >= STARTED:
            return self.drop(x, training=training) * SCALE
        return x


class Raising(layers.Layer):
    def get_config(self):
        raise RuntimeError("no config")

    def call(self, x):
        return x


class Holding(layers.Layer):
    def __init__(self, inner, run):
        super().__init__()
        self.inner, self.run = inner, run

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return {
            **super().get_config(), "inner": inner, "run": self.run, "object": Helper(), "text": str(Helper()), "words": WORDS,
        }  # fmt: skip


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(4, activation=lambda x: x * 2) for _ in range(2)]
        self.named = {"a": layers.Dense(3), "b": layers.Dense(3)}
        self.run, self.started, self.hook, self.helpers = uuid.uuid4().hex, time.time(), lambda x: x, [Helper()]
        self.clock = time.perf_counter()
        self.table = np.random.default_rng(0).normal(size=100)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.named["a"](x) + self.named["b"](x)

    def train_step(self, *data):
        str((self.run, self.started, self.hook, self.helpers, self.table, self.clock, CLOCK))
        return super().train_step(*data)


class OwnLoss(losses.Loss):
    def __init__(self, gamma, function):
        super().__init__()
        self.gamma, self.function, self.made = gamma, function, time.time()

    def call(self, y_true, y_pred):
        return self.function(y_true, y_pred) * self.gamma


class OwnMetric(keras.metrics.Metric):
    def __init__(self):
        super().__init__()
        self.total = self.add_variable((), "zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(1.0)

    def result(self):
        return self.total + 0.0


def make_without_config():
    table = {"x": np.arange(40.0)}
    parts = [
        NoConfig(0.2, Helper(), table),
        Raising(),
        layers.Lambda(lambda x: x + 1.0),
        layers.Activation(lambda x: ops.tanh(x) + 0.0),
    ]
    return keras.Sequential([keras.Input((4,)), *parts, layers.Dense(3)])


def make_holding():
    inner = layers.Dense(4, name=f"inner_{uuid.uuid4().hex[:4]}")
    return keras.Sequential(
        [keras.Input((4,)), Holding(inner, f"run-{time.strftime('%Y%m%d-%H%M%S')}"), layers.Dense(3)]
    )


def make_subclassed():
    model = Own()
    model(X)
    return model


def make_recurrent():
    inputs = keras.Input((4,))
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True, seed=1))(layers.Reshape((2, 2))(inputs))
    x = layers.MultiHeadAttention(2, 2, dropout=0.1, seed=2)(x, layers.TimeDistributed(layers.Dense(6))(x))
    return keras.Model(inputs, layers.Dense(3)(ops.relu(x)[:, 0] + 1.0))


def make_prepared():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(size=(20, 4)).astype("float32"))
    parts = [normalization, layers.Rescaling(np.arange(4) / 3.0), layers.GaussianNoise(0.1)]
    return keras.Sequential([keras.Input((4,)), *parts, layers.Dense(3)])


def make_augmented():
    parts = [layers.Reshape((2, 2, 1)), layers.RandomFlip(), layers.RandomRotation(0.1), layers.Flatten()]
    return keras.Sequential([keras.Input((4,)), *parts, layers.Dense(3)])


def make_shared():
    inputs = keras.Input((4,))
    dense, base = layers.Dense(4), keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dropout(0.1, seed=1)])
    parts = [dense(inputs), dense(dense(inputs)), base(inputs, training=False), base(inputs)]
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(parts)))


def plain(y_true, y_pred):
    return losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def smooth(eps):
    words = {"a": STARTED}

    def loss(y_true, y_pred):
        return plain(y_true, y_pred) * (1 - eps) + 0 * len(words)

    return loss


MODELS = {
    make_without_config: losses.SparseCategoricalCrossentropy(from_logits=True),
    make_holding: smooth(0.1),
    make_subclassed: OwnLoss(2.0, smooth(0.0)),
    make_recurrent: functools.partial(plain),
    make_prepared: lambda y_true, y_pred: plain(y_true, y_pred * 1.0),
    make_augmented: [plain],
    make_shared: "sparse_categorical_crossentropy",
}
METRICS = ["accuracy", OwnMetric, lambda y_true, y_pred: ops.mean(y_pred)]


def records():
    """Returns the record of each model by its name."""
    warnings.simplefilter("ignore")
    found = {"kinds": record(kinds_of_values.make())}
    for index, (make, loss) in enumerate(MODELS.items()):
        model = make()
        metric = METRICS[index % 3]
        model.compile("sgd", loss, metrics=[metric() if metric is OwnMetric else metric], run_eagerly=True)
        found[make.__name__] = record(model)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(records()))
