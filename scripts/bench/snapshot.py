"""Measures the stall per snapshot against `model.save_weights`, and the overhead at one per minute.

    KERAS_BACKEND=tensorflow python scripts/bench/snapshot.py

Takes about 1 minute on 2 cores; --quick about as long.

The model is ResNet-50 with Adam (about 280 MB of weights and slots). Both save the same live state to the same disk, in
turns, in one process. The first save of each is not counted, because it allocates buffers or opens its library. The
stall is the time that the training thread waits: for us the copy from the device, for `save_weights` the whole call. To
reach: 0.2.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pairs

from kresume.backend import live_state
from kresume.training.loop.writer import RunWriter
from kresume.training.snapshot_policy import Retention


def main() -> None:
    """Prints one row of the table."""
    asked = pairs.parse(pairs.parser(__doc__))
    busy = pairs.Busy()
    model = keras.applications.ResNet50(weights=None, classes=10, input_shape=(64, 64, 3))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    images, labels = np.random.default_rng(0).random((8, 64, 64, 3), "float32"), np.arange(8)
    model.fit(images, labels, batch_size=8, epochs=1, verbose=0)
    megabytes = sum(array.nbytes for group in live_state.read_state(model).values() for array in group) / 2**20
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = RunWriter(folder / "snapshots", retention=Retention(2), guard=lambda: None)

        def stall() -> float:
            start = time.perf_counter()
            records = {"phase": "training", "best": None, "callbacks": {}}
            writer.submit(
                len(whole), lambda buffers: live_state.read_state(model, buffers), records, extra={}, must=True
            )
            seconds = time.perf_counter() - start
            writer.join()
            whole.append(time.perf_counter() - start)
            return seconds

        def save_weights() -> float:
            start = time.perf_counter()
            model.save_weights(folder / "plain.weights.h5")
            return time.perf_counter() - start

        stall(), save_weights()
        measured = pairs.measure(asked, stall, save_weights, busy)
    if writer.failures:
        sys.exit("; ".join(writer.failures))
    own, plain = pairs.medians(measured)
    columns = [
        "backend",
        "state, MB",
        "save_weights, s",
        "stall, s",
        "ratio (quartiles)",
        "until it is on the disk, s",
        "stall at one a minute",
    ]
    row = [
        keras.config.backend(),
        f"{megabytes:.0f}",
        f"{plain:.2f}",
        f"{own:.3f}",
        pairs.ratio(measured),
        f"{statistics.median(whole[1:]):.2f}",
        f"{100 * own / 60:.2f} %",
    ]
    pairs.table(columns, [row], busy)


if __name__ == "__main__":
    main()
