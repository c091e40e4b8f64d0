"""Tests that an iterator of tf.data is destroyed when its work ends, and never by a thread that it waits for."""

import gc
import math
import os
import sys
import threading
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import kresume
from kresume.images import iterators
from kresume.images.conventions import to_model_function
from kresume.images.order import Order
from kresume.images.pipeline import training_dataset
from kresume.images.tf_data import for_fit
from tests.helpers import forking
from tests.helpers.runs import TINY, run_training

IMAGES = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3), np.uint8)


def small_model():
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


class Reads:
    """Reads pictures slowly, and counts; from the call with the number `fails` on each raises."""

    def __init__(self, fails=math.inf):
        self.calls, self.fails = 0, fails

    def __call__(self, rows):
        self.calls += 1
        fails = self.calls >= self.fails
        time.sleep(0.02)
        if fails:
            raise OSError("the disk is gone")
        return IMAGES[rows]

    def go_on(self):
        """Returns True if anything is read within half a second."""
        before = self.calls
        time.sleep(0.5)
        return self.calls > before


def batches(read):
    options = {"image_size": (8, 8), "pixels": to_model_function("0-1"), "augment": None}
    return training_dataset(read, np.arange(64), np.arange(64) % 2, Order(0, 64, 8), start_step=0, **options)


class Ends(keras.callbacks.Callback):
    """Ends `fit` after its second batch, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1 and self.way == "stop":
            self.model.stop_training = True
        elif batch == 1 and self.way == "raise":
            raise ValueError("a callback fails")


@pytest.fixture
def uncollected():
    """Turns the garbage collector off, and returns a function that says if iterators made since then are alive."""
    gc.collect()
    gc.disable()
    before = iterators.alive()
    yield lambda: bool(iterators.alive() - before)
    gc.enable()


@pytest.mark.parametrize("way", ["stop", "raise", "read", "whole"])
def test_nothing_reads_on_after_fit(uncollected, way):
    """Also where an epoch is cut or `fit` raises, which leaves garbage that refers to the iterator, or a traceback."""
    reads = Reads(fails=12 if way == "read" else math.inf)
    error = None
    with for_fit(batches(reads)) as data:
        try:
            small_model().fit(data, steps_per_epoch=40, verbose=0, shuffle=False, callbacks=[Ends(way)])
        except Exception as raised:
            error = raised  # a notebook keeps it
        assert way != "stop" or uncollected()
    assert (error is not None) == (way in {"raise", "read"})
    assert not reads.go_on()
    if way != "read":  # its traceback refers to the iterator, which is empty
        assert not uncollected()


@pytest.mark.one_backend
def test_a_generator_is_closed():
    """A teacher's answers come from a generator, which holds an iterator."""
    reads = Reads()

    def answers():
        yield from batches(reads).as_numpy_iterator()

    with for_fit(answers()) as lent:
        next(lent)
    assert lent.gi_frame is None
    assert not reads.go_on()


def test_a_run_leaves_no_iterator(uncollected, pictures, tmp_path):
    """Trial, training, scoring, result: none needs the garbage collector, which runs in any thread."""
    run_training(data=[str(pictures / "old")], model="convnet", out=str(tmp_path / "run"), **TINY)
    assert not uncollected()


def test_a_backup_lets_the_iterator_go(uncollected, tmp_path):
    """A user's own `fit` that stops within an epoch reads nothing more once it returned."""

    def from_position(position):
        data = tf.data.Dataset.range(position, 1 << 40)
        return data.map(lambda number: (tf.fill((4, 8, 8, 3), tf.cast(number, tf.float32)), tf.zeros(4)))

    data = kresume.resumable(from_position, 8)
    backup = kresume.BackupAndRestore(tmp_path, data=data)
    small_model().fit(data, epochs=2, verbose=0, shuffle=False, callbacks=[Ends("stop"), backup])
    assert not uncollected()


@pytest.mark.one_backend
def test_what_the_collector_finds_is_destroyed_elsewhere():
    """An iterator that is garbage is destroyed by a thread of its own, other ones where their last reference goes away."""
    threads = []

    def made(in_circle):
        iterator = iter(batches(Reads()))
        next(iterator)
        weakref.finalize(iterator._iterator_resource, lambda: threads.append(threading.current_thread().name))
        if in_circle:
            iterator.itself = iterator

    made(in_circle=False)
    assert threads == [threading.current_thread().name]
    made(in_circle=True)
    gc.collect()
    until = time.monotonic() + 20
    while len(threads) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert threads[1:] == ["kresume-iterators"]


SCRIPT = """
import faulthandler, gc, sys, threading
faulthandler.dump_traceback_later(60, exit=True)
from concurrent.futures import ThreadPoolExecutor
import keras
from tests.images.test_iterators import Ends, IMAGES, batches, small_model
gc.disable()  # only one collection, at the worst moment
way = sys.argv[1]
begun, returned, waiting, collected = [threading.Event() for _ in range(4)]
pool, lock, calls = ThreadPoolExecutor(1), threading.Lock(), 0

def collect():
    gc.collect()
    collected.set()

def read(rows):
    global calls
    calls += begun.is_set()  # under JAX, Keras draws from another iterator first
    if calls == 6:
        assert returned.wait(60)
        if way == "reader":
            collect()
        elif way == "pool":
            pool.submit(collect).result()
        else:
            waiting.set()
            with lock:
                pass
    return IMAGES[rows]

begins = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: begun.set())
small_model().fit(batches(read), steps_per_epoch=50, verbose=0, shuffle=False, callbacks=[begins, Ends("stop")])
if way == "lock":
    with lock:
        returned.set()
        assert waiting.wait(60)
        collect()
returned.set()
assert collected.wait(60)
print("ended")
"""


@pytest.mark.parametrize("way", ["reader", "pool", "lock"])
def test_a_collection_in_any_thread_ends(way):
    """Garbage is collected while a batch is read for an iterator that is garbage.

    In the thread that reads it, in one that this thread waits for, and in one that holds a lock which it needs.
    """
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend()}
    command = [sys.executable, "-c", SCRIPT, way]
    done = forking.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ended"]


@pytest.mark.one_backend
def test_a_process_ends_while_a_traceback_holds_an_iterator():
    """A process ends although an error keeps an iterator, which reads on while Python can run no function any more."""
    script = (
        "import faulthandler\nfaulthandler.dump_traceback_later(60, exit=True)\n"
        "from tests.images.test_iterators import Reads, batches\n"
        "iterator = iter(batches(Reads()))\nnext(iterator)\nkept = [iterator._iterator_resource]\n"
        "kept.append(kept)\nprint('ended')"
    )
    done = forking.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["ended"]), done.stderr
