"""The cost of snapshots: stall of training per snapshot against `model.save_weights`, and the overhead of one a minute.

    KERAS_BACKEND=tensorflow python scripts/bench/snapshot.py

The model is ResNet-50 with Adam (about 280 MB of weights and slots). Both ways save the same live state to the same disk, in
turns, in one process; the first of each (which makes its buffers or opens its library) is left out, the median is reported.
The stall is what the training thread waits for: the copy out of the device for us, the whole of it for `save_weights`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from kresume import devices
from kresume.training.snapshots import RunWriter

ROUNDS = 8


def main() -> None:
    """Prints one row of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    model = keras.applications.ResNet50(weights=None, classes=10, input_shape=(64, 64, 3))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    images, labels = np.random.default_rng(0).random((8, 64, 64, 3), "float32"), np.arange(8)
    model.fit(images, labels, batch_size=8, epochs=1, verbose=0)
    megabytes = sum(array.nbytes for group in devices.read_state(model).values() for array in group) / 2**20
    stalls, plain, whole = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = RunWriter(folder / "snapshots", keep=2, guard=lambda: None)
        for step in range(rounds):
            start = time.perf_counter()
            records = {"phase": "training", "best": None, "callbacks": {}}
            writer.submit(step, lambda buffers: devices.read_state(model, buffers), records, extra={}, must=True)
            stalls.append(time.perf_counter() - start)
            writer.join()
            whole.append(time.perf_counter() - start)
            start = time.perf_counter()
            model.save_weights(folder / "plain.weights.h5")
            plain.append(time.perf_counter() - start)
    if writer.failures:
        sys.exit("; ".join(writer.failures))
    stall, theirs, until_safe = (statistics.median(times[1:]) for times in (stalls, plain, whole))
    columns = (
        "backend",
        "state, MB",
        "save_weights, s",
        "stall, s",
        "ratio",
        "until it is on the disk, s",
        "stall at one a minute",
    )
    row = (
        keras.config.backend(),
        f"{megabytes:.0f}",
        f"{theirs:.2f}",
        f"{stall:.3f}",
        f"{stall / theirs:.2f}",
        f"{until_safe:.2f}",
        f"{100 * stall / 60:.2f} %",
    )
    for cells in (columns, ["---"] * len(columns), row):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
