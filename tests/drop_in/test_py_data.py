"""Tests that a `PyDataset` which draws at random goes on: killed and continued exactly."""

import random

import keras
import numpy as np
import pytest

from tests.drop_in.test_backup_models import IMAGES, LABELS, arrays_of, train
from tests.helpers.runs import assert_same_bytes

pytestmark = [
    pytest.mark.one_backend(trains=True),
    pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning"),
]
HELD = {}


class Data(keras.utils.PyDataset):
    """Has an order of its own, and noise."""

    def __init__(self):
        super().__init__()
        self.order, self.count, self.generator = np.arange(52), 0, np.random.default_rng(3)
        self.files = [(str(index), index) for index in range(52)]
        HELD["generator"] = np.random.RandomState(4)

    def __len__(self):
        return 13

    def __getitem__(self, index):
        chosen = self.chosen()[index * 4 : index * 4 + 4]
        return IMAGES[chosen] + np.float32(self.noise()), LABELS[chosen]

    def chosen(self):
        return self.order

    def on_epoch_end(self):
        np.random.shuffle(self.order)

    def noise(self):
        return np.random.normal(size=(4, 4))


class OfPython(Data):
    """Shuffles a list of pairs by Python's generator, from which it draws, too."""

    def chosen(self):
        return [index for _, index in self.files]

    def on_epoch_end(self):
        random.shuffle(self.files)

    def noise(self):
        return random.gauss(0, 1)


class OfItsOwn(Data):
    def on_epoch_end(self):
        self.order = self.generator.permutation(52)

    def noise(self):
        return self.generator.normal()


class OfAGlobalName(Data):
    def noise(self):
        return HELD["generator"].normal()


class Counts(Data):
    """Seeds by a count, as the iterators of `ImageDataGenerator` do."""

    def noise(self):
        np.random.seed(self.count)
        self.count += 1
        return np.random.normal()


class DrawsNothing(Data):
    def noise(self):
        return 0.0


class DrawsInCallback(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.layers[-1].kernel.assign_add(np.random.normal(size=(4, 1)))


def final(folder, kind, kills, freq, *, validated=False, **options):
    def make():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01), "mse")
        return model

    for kill in (*kills, None):
        given = {"x": kind(), "y": None, "batch_size": None, "backup": {"save_freq": freq}, **options}
        if validated:
            given["validation_data"] = kind()
        trained = train(make, folder, kill=kill, **given)
    return arrays_of(trained[0])


@pytest.mark.parametrize(
    ("kind", "freq", "options"),
    [
        *((kind, freq, {}) for kind in (Data, OfPython, OfItsOwn, OfAGlobalName, Counts) for freq in (2, "epoch")),
        *((kind, 2, {"shuffle": True}) for kind in (Data, OfPython)),
        *((kind, "epoch", {"validated": True}) for kind in (Data, OfItsOwn, Counts)),
        (DrawsNothing, 2, {"others": [DrawsInCallback()]}),
    ],
)
def test_a_data_set_that_draws_goes_on(tmp_path, kind, freq, options):
    """It was shuffled again for the epochs before, by a generator that had not drawn for their batches."""
    expected = final(tmp_path / "whole", kind, [], freq, **options)
    assert_same_bytes(expected, final(tmp_path / "killed", kind, [17, 12], freq, **options))
