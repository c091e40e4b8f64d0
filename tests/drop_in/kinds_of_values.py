"""Holds values of every kind that a training may use; `test_script_values` edits one after the other."""

import collections
import dataclasses
import enum
import functools
import random
import types

import keras
import numpy as np

from tests.drop_in import helper_of_script
from tests.drop_in.helper_of_script import IMPORTED

ops = keras.ops


@dataclasses.dataclass
class Config:
    alpha: float = 0.3
    notes: str = "no code reads this"


@dataclasses.dataclass(slots=True)
class Slotted:
    alpha: float = 0.4


class Mode(enum.Enum):
    SOFT = 0.1
    HARD = 0.9


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Constants:
    width = 5
    unread = 6


class Plain:
    shared = 0.25

    def __init__(self):
        self.unread, self.own, self.calls = random.random(), 0.75, 0

    def scaled(self, value):
        self.calls += 1
        return value * 1.5


class Callable:
    def __init__(self, gamma):
        self.gamma, self.calls, self.unread = gamma, 0, random.random()

    def __call__(self, y_true, y_pred):
        self.calls += 1
        return ops.mean(y_pred * self.gamma + 1.0)


Point = collections.namedtuple("Point", "x y")
CONFIG, SLOTTED, MODE, LEVEL, PLAIN, POINT = Config(), Slotted(), Mode.SOFT, Level.LOW, Plain(), Point(1, 2)
CFG = {"beta": 0.5, "nested": {"inner": 7}, "unread": "anything", "path": "/tmp/out-1"}
TABLE = {0: 0.2, 1: 0.3}
NUMBERS, PAIR, TEXT, CHOSEN = [0.1, 0.2], (3, 4), "mean", {"north", "south", "west"}
SMALL, LARGE, RATIO = np.array([1.0, 2.0]), np.arange(1000.0), np.float32(0.125)
SPACE = types.SimpleNamespace(tau=0.6, unread=1)
TENSOR, CACHE, STEPS = ops.convert_to_tensor(0.95), {}, 0


def called(value):
    return value * CFG["nested"]["inner"]


def make_inner(factor):
    counts = {"calls": 0}

    def inner(value, power=2, *, table={"key": 1.25}):  # noqa: B006
        counts["calls"] += 1
        return value**power * factor * table["key"]

    return inner


INNER = make_inner(1.75)


class Own(keras.Model):
    rate = 0.15

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.config, self.options, self.seen = Config(0.35), {"drop": 0.45}, []

    def call(self, x):
        return self.dense(x)

    @property
    def doubled(self):
        return self.rate * 2

    @staticmethod
    def halved(value):
        return value / 2

    def train_step(self, data):
        global STEPS  # noqa: PLW0603
        STEPS += 1
        CACHE["last"] = data
        self.seen.append(1)
        used = self.config.alpha + self.options["drop"] + self.doubled + self.halved(1)
        used += CONFIG.alpha + SLOTTED.alpha + MODE.value + LEVEL + Constants.width + PLAIN.own + PLAIN.shared + POINT.y
        used += CFG["beta"] + called(1) + TABLE[0] + NUMBERS[0] + PAIR[0] + (TEXT == "mean") + ("north" in CHOSEN)
        used += SMALL[0] + LARGE[0] + RATIO + SPACE.tau + INNER(1) + IMPORTED + PLAIN.scaled(1)
        used += (
            helper_of_script.ALPHA
            + helper_of_script.scaled(1)
            + helper_of_script.SETTINGS["depth"]
            + len(CACHE)
            + STEPS
        )
        used += PLAIN.calls + helper_of_script.COUNT + TENSOR
        return super().train_step(data) | {"used": used}


def weighted(y_true, y_pred, weights):
    return ops.mean(y_pred) * weights["first"]


LOSSES = [
    Callable(2.5),
    functools.partial(weighted, weights={"first": 0.55}),
    functools.partial(Callable(3.5), y_true=0),
]


def make(loss=0):
    model = Own()
    model.build((None, 3))
    model.compile("sgd", LOSSES[loss])
    return model
