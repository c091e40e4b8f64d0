"""Measures reading and restoring a `.keras` file against `keras.models.load_model`.

    KERAS_BACKEND=tensorflow python scripts/bench/readers.py

Takes about 1 minute on 2 cores; --quick about as long.

The file holds a ResNet-50 with its Adam state. Both end with the same model in memory: architecture built, weights and
optimizer slots assigned. `reading` is our reader alone: it verifies the archive's checksum and reads every array into
numpy. To reach: 1.0.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pairs

from kresume.checkpoints.read import read_checkpoint
from kresume.options.table import TrainConfig
from kresume.training.plan.parent import Live, Parent, restore_parent


def write(path: Path) -> None:
    """Saves a ResNet-50 for 10 classes after one training step with Adam."""
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.train_on_batch(np.zeros((2, 64, 64, 3), "float32"), np.array([0, 1]))
    model.save(path)


def ours(path: Path) -> Live:
    """Restores the file as `kresume train` does."""
    config = TrainConfig(from_=str(path))
    parent = Parent(read_checkpoint(path), None, None)
    return restore_parent(config, parent, num_classes=10, image_size=None)


def timed(function: Callable[[Path], object], path: Path) -> float:
    """Returns the wall-clock seconds of one call, after collecting the garbage of the call before."""
    keras.utils.clear_session()
    gc.collect()
    start = time.perf_counter()
    function(path)
    return time.perf_counter() - start


def main() -> None:
    """Prints one row of the table."""
    asked = pairs.parse(pairs.parser(__doc__))
    busy, reading = pairs.Busy(), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.keras"
        write(path)
        live, peer = ours(path), keras.models.load_model(path)
        for one, other in zip(live.optimizer.variables, peer.optimizer.variables, strict=True):
            same = np.asarray(keras.ops.convert_to_numpy(one)).tobytes()
            if same != np.asarray(keras.ops.convert_to_numpy(other)).tobytes():
                raise SystemExit(f"{one.path} differs from Keras's own loading: the comparison means nothing")
        del live, peer

        def restoring() -> float:
            reading.append(timed(read_checkpoint, path))
            return timed(ours, path)

        measured = pairs.measure(asked, restoring, lambda: timed(keras.models.load_model, path), busy)
        size = path.stat().st_size / 1e6
    own, plain = pairs.medians(measured)
    columns = ["backend", "file, MB", "`load_model`, s", "kresume, s", "of that reading, s", "ratio (quartiles)"]
    cells = [f"{size:.0f}", f"{plain:.2f}", f"{own:.2f}", f"{statistics.median(reading):.2f}", pairs.ratio(measured)]
    pairs.table(columns, [[keras.config.backend(), *cells]], busy)


if __name__ == "__main__":
    main()
