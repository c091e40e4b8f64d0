"""Tests that a callback is named which changes something that no backup holds, and no other."""

import collections
import functools
import heapq
import logging
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from kresume.training.loop.callback_state import forgetful
from kresume.training.loop.changes_by_callbacks import changed_by

pytestmark = pytest.mark.one_backend(trains=True)
Callback, Lambda = keras.callbacks.Callback, keras.callbacks.LambdaCallback


class Data(keras.utils.PyDataset):
    """Has an order that somebody may change."""

    def __init__(self):
        super().__init__()
        self.order = np.arange(8)

    def harder(self, order):
        self.order = order


class Store:
    def __init__(self):
        self.values, self.last = [], 0

    def remember(self, value):
        self.values.append(value)

    def read(self):
        return self.last


DATA, STORE, LOSSES, TABLE, COUNT, ARRAY = Data(), Store(), [], {"p": 0.0}, 0, np.zeros(3)
SHADOW, HEAP, RECENT, NUMBERS = [np.zeros(2)], [], collections.deque(), iter(range(9))
LOG, RATE, GENERATOR = logging.getLogger("own"), 0.5, np.random.default_rng(3)
VARIABLE = tf.Variable(0.0)


def counted():
    global COUNT  # noqa: PLW0603
    COUNT += 1


def made(code):
    """Returns a callback whose method is a function."""
    return type("Mine", (Callback,), {"on_epoch_end": code, "__module__": __name__})()


def set_order(self, epoch, logs=None):
    DATA.order = np.argsort(self.model.predict(ARRAY))


def set_part(self, epoch, logs=None):
    DATA.order[:] = 0


def by_method(self, epoch, logs=None):
    DATA.harder(ARRAY)


def appends(self, epoch, logs=None):
    LOSSES.append(logs["loss"])


def sets_item(self, epoch, logs=None):
    TABLE["p"] += 0.1


def counts(self, epoch, logs=None):
    global COUNT  # noqa: PLW0603
    COUNT += 1


def calls(self, epoch, logs=None):
    counted()


def writes_array(self, epoch, logs=None):
    ARRAY[0] = logs["loss"]


def averages(self, epoch, logs=None):
    for mean, weight in zip(SHADOW, self.model.get_weights(), strict=True):
        mean[...] = 0.5 * mean + 0.5 * weight


def averages_in_place(self, epoch, logs=None):
    for mean, weight in zip(SHADOW, self.model.get_weights(), strict=True):
        mean *= 0.5  # noqa: PLW2901
        mean += 0.5 * weight  # noqa: PLW2901


def by_alias(self, epoch, logs=None):
    table = TABLE
    table["p"] = 1


def shuffles(self, epoch, logs=None):
    random.shuffle(LOSSES)


def sorts(self, epoch, logs=None):
    LOSSES.sort()


def pushes(self, epoch, logs=None):
    heapq.heappush(HEAP, logs["loss"])


def queues(self, epoch, logs=None):
    RECENT.appendleft(1)


def draws_next(self, epoch, logs=None):
    self.model.rate = next(NUMBERS)


def remembers(self, epoch, logs=None):
    STORE.remember(logs["loss"])


def sets_attribute(self, epoch, logs=None):
    STORE.last = epoch


def by_setattr(self, epoch, logs=None):
    setattr(STORE, "last", epoch)  # noqa: B010


CHANGES = {
    set_order: "DATA", set_part: "DATA", by_method: "DATA", appends: "LOSSES", sets_item: "TABLE", counts: "COUNT", calls: "COUNT",  # noqa: E501
    writes_array: "ARRAY", averages: "SHADOW", averages_in_place: "SHADOW", by_alias: "TABLE", shuffles: "LOSSES", sorts: "LOSSES",  # noqa: E501
    pushes: "HEAP", queues: "RECENT", draws_next: "NUMBERS", remembers: "STORE", sets_attribute: "STORE", by_setattr: "STORE",
}  # fmt: skip


@pytest.mark.parametrize("code", CHANGES, ids=lambda code: code.__name__)
def test_a_callback_that_changes_something_else_is_named(code):
    """It has no attributes of its own, so nothing was told."""
    assert forgetful([made(code)]) == [f"Mine ({CHANGES[code]})"]
    assert changed_by(Lambda(on_epoch_end=functools.partial(code, None))) == [CHANGES[code]]


def prints(self, epoch, logs=None):
    print(f"{epoch}: {logs} {RATE} {TABLE['p']} {LOSSES[-1:]}")  # noqa: T201


def logs_it(self, epoch, logs=None):
    LOG.info("%s", logs)


def local(self, epoch, logs=None):
    found, table = [], dict(TABLE)
    found.append(sum(LOSSES))
    table["p"] = 3
    for name, value in TABLE.items():
        found.append((name, value))
    predicted = self.model.predict(ARRAY)
    predicted[0] = 1
    predicted += ARRAY


def writes_file(self, epoch, logs=None):
    with open("log.txt", "a") as file:
        file.write(str(logs))


def reads_store(self, epoch, logs=None):
    print(STORE.read())  # noqa: T201


def assigns(self, epoch, logs=None):
    VARIABLE.assign_add(0.1)


def draws(self, epoch, logs=None):
    self.model.optimizer.learning_rate = float(GENERATOR.uniform())


def stops(self, epoch, logs=None):
    self.model.stop_training = logs["loss"] < RATE


@pytest.mark.parametrize("code", [prints, logs_it, local, writes_file, reads_store, assigns, draws, stops])
def test_a_callback_that_changes_nothing_that_a_backup_lacks_is_not_named(code):
    assert forgetful([made(code)]) == []
    assert forgetful([Lambda(on_epoch_end=functools.partial(code, None))]) == []


class Kept(Callback):
    """Has attributes that a backup holds."""

    def __init__(self):
        super().__init__()
        self.random, self.python, self.seeds = np.random.default_rng(3), random.Random(3), keras.random.SeedGenerator(3)
        self.generator, self.variable = tf.random.Generator.from_seed(3), tf.Variable(0.0)


def closure():
    count = 0

    def schedule(epoch, rate):
        nonlocal count
        count += 1
        return rate / count

    return schedule


class Called:
    def __init__(self):
        self.calls = 0

    def __call__(self, epoch, logs=None):
        self.calls += 1


class Added(keras.callbacks.EarlyStopping):
    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        LOSSES.append(1)


@pytest.mark.parametrize(
    ("callback", "named"),
    [
        (Kept, []),
        (lambda: keras.callbacks.LearningRateScheduler(closure()), ["LearningRateScheduler (count)"]),
        (lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * RATE), []),
        (lambda: Lambda(on_epoch_end=Called()), ["LambdaCallback (on_epoch_end)"]),
        (lambda: Lambda(on_epoch_end=lambda epoch, logs: TABLE.update(p=1)), ["LambdaCallback (TABLE)"]),
        (Added, ["Added (LOSSES)"]),
        (keras.callbacks.TerminateOnNaN, []),
    ],
)
def test_callbacks_of_keras_and_derived_ones(callback, named):
    assert forgetful([callback()]) == named
