"""Reading a ResNet-50 with its Adam state from a `.keras` file and restoring it, against `keras.models.load_model`.

    python scripts/bench/readers.py --rounds 5

Both end with the same model in memory: architecture built, weights and optimizer slots assigned. Rounds alternate, so that
the machine's noise falls on both; seconds of the processor stand beside those of the clock, for a machine that others use
too. Reach: at most 1.0x. `reading` is our reader alone: the archive's checksum verified and every array in numpy.
"""

from __future__ import annotations

import argparse
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

from kresume.checkpoints.read import read_checkpoint
from kresume.config import TrainConfig
from kresume.training.parent import Live, Parent, restore_parent


def write(path: Path) -> None:
    """ResNet-50 for 10 classes, one step of Adam into its training."""
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.train_on_batch(np.zeros((2, 64, 64, 3), "float32"), np.array([0, 1]))
    model.save(path)


def ours(path: Path) -> Live:
    """The way that `kresume train` takes."""
    config = TrainConfig(from_=str(path))
    parent = Parent(read_checkpoint(path), None, None)
    return restore_parent(config, parent, num_classes=10, image_size=None)


def timed(function: Callable[[Path], object], path: Path) -> tuple[float, float]:
    """Seconds of one call by the clock and of the processor, after the garbage of the one before is gone."""
    keras.utils.clear_session()
    gc.collect()
    start, busy = time.perf_counter(), time.process_time()
    function(path)
    return time.perf_counter() - start, time.process_time() - busy


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.keras"
        write(path)
        live, peer = ours(path), keras.models.load_model(path)
        for one, other in zip(live.optimizer.variables, peer.optimizer.variables, strict=True):
            same = np.asarray(keras.ops.convert_to_numpy(one)).tobytes()
            if same != np.asarray(keras.ops.convert_to_numpy(other)).tobytes():
                raise SystemExit(f"{one.path} differs from Keras's own loading: the comparison means nothing")
        rows = {
            "reading": read_checkpoint,
            "reading and restoring": ours,
            "keras.models.load_model": keras.models.load_model,
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        del live, peer
        for _ in range(arguments.rounds):
            for name, function in rows.items():
                times[name].append(timed(function, path))
        size = path.stat().st_size / 1e6
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in times.items()
    }
    print(f"{keras.config.backend()}, {size:.0f} MB, {arguments.rounds} rounds, medians (least and most by the clock)")
    print(f"{'':<25}{'clock':>9}{'processor':>11}")
    for name, (clock, processor) in medians.items():
        clocks = [seconds for seconds, _ in times[name]]
        print(f"{name:<25}{clock:>7.2f} s{processor:>9.2f} s   ({min(clocks):.2f}-{max(clocks):.2f})")
    ratios = [a / b for a, b in zip(medians["reading and restoring"], medians["keras.models.load_model"], strict=True)]
    print(f"{'ratio':<25}{ratios[0]:>7.2f} x{ratios[1]:>9.2f} x   (reach: at most 1.0)")


if __name__ == "__main__":
    main()
