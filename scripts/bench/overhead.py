"""Measures steady-state training speed of `kresume train` against a plain Keras script.

    python scripts/bench/overhead.py ../shared/data/signdigits/old [--backends tensorflow] [--models convnet]

Takes about 40 minutes on 2 cores, 25 of them MobileNetV2 under JAX; --quick about 7.

Both train the same architecture on the same folder of JPEGs with the same augmentation and batch size. The plain script
is `image_dataset_from_directory` (cached in memory after its first pass, prefetched) and `fit`. Each runs in its own
process. Images per second are the median over the epochs after the first, because the first includes tracing and
decoding. Snapshots are on, one per minute. To reach: 0.98.
"""

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import pairs

BATCH = 32
MODELS = {"convnet": (64, 3), "applications:MobileNetV2": (96, 2)}
"""Side of the pictures, and epochs: one after the first is long enough where an epoch takes a minute."""

PLAIN = """
import json, sys, time
import keras
folder, architecture, size, epochs, batch = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
data = keras.utils.image_dataset_from_directory(folder, image_size=(size, size), batch_size=batch, seed=0, verbose=False)
shift = keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest")
count = int(data.cardinality())
data = data.cache().map(lambda x, y: (shift(x, training=True), y), num_parallel_calls=4).prefetch(4)
model = keras.saving.deserialize_keras_object(json.load(open(architecture)))
model.compile(keras.optimizers.AdamW(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
speeds = []
class Clock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.monotonic()
    def on_epoch_end(self, epoch, logs=None):
        speeds.append(count * batch / (time.monotonic() - self.start))
model.fit(data, epochs=epochs, verbose=0, callbacks=[Clock()])
print(json.dumps(speeds))
"""


def main() -> None:
    """Prints the table."""
    made = pairs.parser(__doc__)
    made.add_argument("data", help="a folder with one folder of pictures per class")
    made.add_argument("--backends", nargs="+", default=["tensorflow", "jax"])
    made.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    asked = pairs.parse(made)
    busy, rows = pairs.Busy(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plain.py").write_text(PLAIN)
        for model in asked.models:
            size, epochs = MODELS[model]
            for backend in asked.backends:
                environment = {"KERAS_BACKEND": backend, "KRESUME_CACHE": str(folder / "cache")}
                out, architecture = folder / "run", folder / f"{backend}.json"

                def ours(
                    model=model,
                    size=size,
                    epochs=epochs,
                    environment=environment,
                    out=out,
                    architecture=architecture,
                ) -> float:
                    options = f"--image-size {size} --batch-size {BATCH} --epochs {epochs} --val-split 0".split()
                    train = ["-m", "kresume", "train", "--data", asked.data, "--model", model, "--out", out]
                    pairs.run([sys.executable, *train, *options], environment)
                    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
                    shutil.copy(out / "architecture.json", architecture)
                    shutil.rmtree(out)
                    return statistics.median(line["images_per_second"] for line in lines[1:])

                def theirs(size=size, epochs=epochs, environment=environment, architecture=architecture) -> float:
                    words = [asked.data, architecture, size, epochs, BATCH]
                    _, printed = pairs.run([sys.executable, folder / "plain.py", *words], environment)
                    return statistics.median(json.loads(printed.splitlines()[-1])[1:])

                measured = pairs.measure(asked, ours, theirs, busy)
                own, plain = pairs.medians(measured)
                rows.append([f"{model} {size}", backend, f"{plain:,.0f}", f"{own:,.0f}", pairs.ratio(measured)])
                pairs.note(" ".join(rows[-1]))
    columns = ["model", "backend", "plain Keras, images/s", "kresume train, images/s", "ratio (quartiles)"]
    pairs.table(columns, rows, busy)


if __name__ == "__main__":
    main()
