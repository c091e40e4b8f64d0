"""Measures what recomputed statistics of batch normalisation are worth, and from how many images.

    python scripts/bench/batchnorm.py ../shared/data/signdigits

Takes about 3 minutes on 2 cores. Trains small networks with plain Keras on four fifths of `old/`, briefly as continued
trainings are, with shifts and zooms. After some epochs it scores the held-out fifth: with Keras's moving averages, with
statistics recomputed from 64 to 1,024 training images, from augmented images, and with dropout on. Weights are the same
in each row. The last column is the time of a pass over that of training on as many images.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from kresume.models import build, statistics

COUNTS = (64, 128, 256, 512, 1024)
BATCH, SIZE = 32, 48
L = keras.layers


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads class folders, `(n, 48, 48, 3) float32` and labels."""
    pictures, labels = [], []
    for label, name in enumerate(sorted(path.name for path in folder.iterdir() if path.is_dir())):
        for path in sorted((folder / name).iterdir()):
            pictures.append(np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)))
            labels.append(label)
    return np.stack(pictures).astype("float32"), np.array(labels)


def small(classes: int) -> keras.Model:
    """Returns a network with Keras's own momentum, 0.99, and dropout before batch normalisation."""
    body = []
    for filters in (16, 32, 64):
        body += [L.Conv2D(filters, 3, strides=2, use_bias=False), L.BatchNormalization(), L.ReLU(), L.Dropout(0.1)]
    head = [L.GlobalAveragePooling2D(), L.Dropout(0.3), L.Dense(classes, activation="softmax")]
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), L.Rescaling(1 / 127.5, -1), *body, *head])


MODELS = {"convnet of kresume": lambda classes: build.convnet(classes, (SIZE, SIZE)), "small, momentum 0.99": small}
augment = keras.Sequential(
    [L.RandomTranslation(0.1, 0.1, fill_mode="nearest", seed=1), L.RandomZoom(0.15, fill_mode="nearest", seed=2)]
)


def with_dropout(model: keras.Model, batches: list[np.ndarray]) -> dict[int, np.ndarray]:
    """Recomputes as `compute_statistics`, with dropout on as in training."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, L.Dropout)]
    calls = [layer.call for layer in layers]
    for layer, call in zip(layers, calls, strict=True):
        layer.call = lambda inputs, training=None, call=call: call(inputs, training=True)
    try:
        return dict(statistics.compute_statistics(model, batches))
    finally:
        for layer in layers:
            del layer.call


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with `old/`, which holds one folder of pictures per class")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    x, y = read(asked.data / "old")
    held = np.random.default_rng(7).permutation(len(x)) < len(x) // 5
    (x, y), (v, w) = (x[~held], y[~held]), (x[held], y[held])
    print(f"{len(x)} training and {len(v)} validation pictures, {keras.backend.backend()}")
    names = ["moving averages", *(f"{count:,}" for count in COUNTS), "1,024 augmented", "1,024 with dropout", "time"]
    print("| network | epochs | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 2))
    for name, make in MODELS.items():
        table: dict[int, list[list[float]]] = {}
        for seed in range(asked.seeds):
            keras.utils.set_random_seed(seed)
            model = make(int(y.max()) + 1)
            rate = keras.optimizers.schedules.CosineDecay(2e-3, 12 * (len(x) // BATCH))
            model.compile(keras.optimizers.AdamW(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
            data = (
                tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed).batch(BATCH, drop_remainder=True)
            )
            data = data.map(lambda a, b: (augment(a, training=True), b)).prefetch(2)
            order = np.random.default_rng(seed).permutation(len(x))
            batches = [x[np.take(order, range(at, at + BATCH), mode="wrap")] for at in range(0, 1024, BATCH)]
            done = 0
            for more in (3, 3, 6):
                start = time.monotonic()
                model.fit(data, epochs=more, verbose=0, shuffle=False)
                step = (time.monotonic() - start) / more / (len(x) // BATCH)
                done += more

                def accuracy(found: dict[int, np.ndarray], model: keras.Model = model) -> float:
                    with statistics.used(model, found):
                        return 100 * model.evaluate(v, w, verbose=0)[1]

                row = [accuracy({})]
                for count in COUNTS:
                    row.append(accuracy(dict(statistics.compute_statistics(model, batches[: count // BATCH]))))
                shifted = [np.asarray(augment(batch, training=True)) for batch in batches]
                row.append(accuracy(dict(statistics.compute_statistics(model, shifted))))
                row.append(accuracy(with_dropout(model, batches)))
                start = time.monotonic()
                statistics.compute_statistics(model, batches)
                row.append((time.monotonic() - start) / len(batches) / step)
                table.setdefault(done, []).append(row)
        for done, rows in table.items():
            mean = np.mean(rows, axis=0)
            shown = " | ".join(f"{value:.1f} %" for value in mean[:-1])
            print(f"| {name} | {done} | {shown} | {mean[-1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
