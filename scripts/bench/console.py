"""Measures what progress, metrics and curves cost per step, against a silent `fit` of the same model and data.

    KERAS_BACKEND=tensorflow python scripts/bench/console.py

Takes about 2 minutes on 2 cores; --quick about half a minute.

Both train the same small model on the same pipeline, in turns, in one process; its steps take about 5 ms on a busy machine.
Ours draws the bars of a terminal, reads loss and accuracy twice a second, measures the share of time that steps wait for
images, and writes the lines and the curves; no snapshots. Theirs is `model.fit(verbose=0)` without callbacks. The table
gives the ratio of the time by the clock, and that of the processor time of the whole process, which depends less on what
else the machine does. The last column is the processor time that the training thread spends in the callbacks, without
what Keras spends there if there are none. To reach: 1.01, which is 50 us of a step of 5 ms.
"""

import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import pairs

from kresume.images.pipeline import training_dataset
from kresume.images.waiting import Waiting, batch_times
from kresume.reporter import Reporter
from kresume.reports.sinks import Sink
from kresume.reports.sinks.jsonl import JsonLines
from kresume.reports.sinks.tensorboard import TensorBoard
from kresume.training.loop.callbacks import Cutter, Keeper, Resumption
from kresume.training.loop.fit import BegunOnce
from kresume.training.loop.narrator import Narrator
from kresume.training.loop.progress import Progress
from kresume.training.loop.recording import Moments
from kresume.training.loop.stop import StopRequest
from kresume.training.loop.writer import RunWriter
from kresume.training.snapshot_policy import Cadence, Retention

SIDE, BATCH, STEPS, PAIRS = 32, 32, 1000, 9


class Screen(io.StringIO):
    """A terminal that keeps nothing."""

    def isatty(self) -> bool:
        """Returns True: bars are drawn."""
        return True

    def write(self, text: str) -> int:
        """Forgets the text."""
        return len(text)


class Rows:
    """Deals the same images again and again."""

    n, batch_size = 1024, BATCH

    def batch(self, step: int) -> np.ndarray:
        """Returns the images of a step."""
        return (np.arange(BATCH) + step * BATCH) % self.n


def model_of_5_ms() -> keras.Model:
    """Returns a compiled model whose step takes about 5 ms on two cores."""
    layers = [keras.layers.Conv2D(width, 3, strides=2, activation="relu", padding="same") for width in (16, 32)]
    model = keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), *layers, keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    )
    model.compile(keras.optimizers.AdamW(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class Timed:
    """Adds up the processor time that this thread spends in the callbacks of a list."""

    seconds = 0.0

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Calls the callbacks."""
        start = time.thread_time()
        super().on_train_batch_end(batch, logs)  # type: ignore[misc]  # of the list that it is mixed with
        self.seconds += time.thread_time() - start


class TimedAlone(Timed, keras.callbacks.CallbackList):  # type: ignore[misc]  # keras is untyped
    """Keras's list of callbacks, timed."""


class TimedOurs(Timed, BegunOnce):
    """The list of a run's callbacks, timed."""


def main() -> None:
    """Prints the table."""
    asked = pairs.parse(pairs.parser(__doc__))
    asked.pairs = PAIRS if asked.pairs == pairs.PAIRS else asked.pairs
    busy, model = pairs.Busy(), model_of_5_ms()
    pictures = np.random.default_rng(0).integers(0, 255, (Rows.n, SIDE, SIDE, 3)).astype(np.uint8)
    rows, labels = np.arange(Rows.n), (np.arange(Rows.n) % 10).astype(np.int32)
    spent: list[float] = []
    keras_own: list[float] = []
    processor: dict[str, list[float]] = {"ours": [], "theirs": []}

    def data(*, timed: bool):
        return training_dataset(
            lambda chosen: pictures[chosen], rows, labels, cast(Any, Rows()), start_step=0, image_size=(SIDE, SIDE),
            pixels=to_model, augment=None, times=batch_times() if timed else None,
        )  # fmt: skip

    def theirs() -> float:
        start, used = time.perf_counter(), time.process_time()
        silent = TimedAlone([], add_history=True, model=model, epochs=1, steps=STEPS)
        model.fit(data(timed=False), steps_per_epoch=STEPS, callbacks=silent, verbose=0)
        keras_own.append(silent.seconds)
        processor["theirs"].append(time.process_time() - used)
        return time.perf_counter() - start

    def ours() -> float:
        with tempfile.TemporaryDirectory() as name:
            start, used = time.perf_counter(), time.process_time()
            spent.append(train_with_everything(model, data(timed=True), Path(name)))
            processor["ours"].append(time.process_time() - used)
            return time.perf_counter() - start

    theirs()  # compile
    ours()
    for kept in (processor["ours"], processor["theirs"], spent, keras_own):
        kept.clear()
    measured = pairs.measure(asked, ours, theirs, busy)
    used = list(zip(processor["ours"], processor["theirs"], strict=True))
    step = statistics.median(theirs for _, theirs in measured) / STEPS
    row = [
        keras.config.backend(), f"{1000 * step:.1f}", pairs.ratio(measured, 3), pairs.ratio(used, 3),
        f"{1e6 * (statistics.median(spent) - statistics.median(keras_own)) / STEPS:.0f}",
    ]  # fmt: skip
    pairs.table(["backend", "step, ms", "by the clock", "processor time", "in the callbacks, us a step"], [row], busy)


def to_model(images):
    """Scales pixels to 0-1."""
    return images / 255.0


def train_with_everything(model: keras.Model, data, folder: Path) -> float:
    """Trains an epoch with all that `kresume train` shows and records; returns the seconds in the callbacks."""
    reporter, progress = Reporter(Screen()), Progress()
    metrics = folder / "metrics.jsonl"
    sinks: list[Sink] = [JsonLines(metrics), TensorBoard(folder / "tensorboard", metrics)]
    writer = RunWriter(folder, sinks, retention=Retention(1), guard=lambda: None)
    scores = {"images": 8, "accuracy": 0.5, "loss": 1.0, "f1": 0.5}

    def line(epoch, logs, speed) -> dict:
        made = {"epoch": 1, "step": STEPS, "lr": 1e-3, **logs, "old": scores, "new": scores, "all": scores}
        made |= {"classes": {}, "shares": {}, "images_per_second": speed, "time": "2026-01-01T00:00:00+00:00"}
        narrator.row(made, "epoch 1/1")
        return made

    keeper = Keeper(
        progress=progress, boundaries=[STEPS], steps_per_execution=1, writer=writer, cadence=Cadence.parse("1000min"),
        stop=StopRequest(), line=line, monitor=None, resumption=Resumption(), records=dict,
    )  # fmt: skip
    keeper.__dict__["snapshot"] = lambda logs, must: None
    narrator = Narrator(
        reporter, progress, [STEPS], batch_size=BATCH, steps_per_execution=1, iterations=0, speed=keeper.speed,
        committed=lambda: None, waiting=Waiting(batch_times()),
    )  # fmt: skip
    keeper.tell = Moments(narrator, writer)
    callbacks = TimedOurs([Cutter([STEPS], 0), narrator, keeper], add_history=True, model=model, epochs=1, steps=STEPS)
    callbacks.keeper = keeper
    with narrator:
        model.fit(data, steps_per_epoch=STEPS, callbacks=callbacks, verbose=0)
    writer.finish()
    return callbacks.seconds


if __name__ == "__main__":
    main()
