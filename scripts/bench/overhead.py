"""Training speed of `kresume train` in steady state against a plain Keras script on the same folder.

    python scripts/bench/overhead.py ../shared/data/signdigits/old

Both train the same architecture on the same JPEGs with the same augmentation and batch size; the plain script is
`image_dataset_from_directory` (cached in memory after its first pass, prefetched) and `fit`. Each runs in a process of its
own, one after another; images per second are those of the epochs after the first (tracing and decoding are in that one),
the median. Snapshots are on, each minute.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EPOCHS = 4
BATCH = 32
MODELS = {"convnet": 64, "applications:MobileNetV2": 96}

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


def run(arguments: list[str], backend: str, folder: Path) -> str:
    """Runs a process under a backend and gives its output."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "KRESUME_CACHE": str(folder / "cache")}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def main(data: str) -> None:
    """Prints the table."""
    print("| model | backend | plain Keras, images/s | kresume train, images/s | ratio |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plain.py").write_text(PLAIN)
        for model, size in MODELS.items():
            for backend in ("tensorflow", "jax"):
                out = folder / f"{model.replace(':', '-')}-{backend}"
                options = f"--image-size {size} --batch-size {BATCH} --epochs {EPOCHS} --val-split 0".split()
                command = [
                    sys.executable,
                    "-m",
                    "kresume",
                    "train",
                    "--data",
                    data,
                    "--model",
                    model,
                    "--out",
                    str(out),
                ]
                run([*command, *options], backend, folder)
                lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
                ours = statistics.median(line["images_per_second"] for line in lines[1:])
                arguments = [str(out / "architecture.json"), str(size), str(EPOCHS), str(BATCH)]
                plain = run([sys.executable, str(folder / "plain.py"), data, *arguments], backend, folder)
                theirs = statistics.median(json.loads(plain.splitlines()[-1])[1:])
                print(f"| {model} {size} | {backend} | {theirs:,.0f} | {ours:,.0f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
