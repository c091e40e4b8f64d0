"""From the start of a process to its first new step: a continued run against a plain script that loads the `.keras` and fits.

    python scripts/bench/restart.py --backend tensorflow

The model is MobileNetV2 at 96 pixels on generated JPEGs, cached in both cases. A run is stopped after some steps; continuing
it is timed from the start of the process to the end of its first new step. The plain script imports Keras, loads `model.keras`
of the same state, makes its dataset and fits one step. Then the position is moved: the first batch of the data at step 0, 100
and 1,000,000. Each figure is the median over processes, the two kinds in turns.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PLAIN = """
import json, sys, time
import keras
model = keras.models.load_model(sys.argv[1])
data = keras.utils.image_dataset_from_directory(sys.argv[2], image_size=(96, 96), batch_size=32, seed=0, verbose=False)
model.fit(data, steps_per_epoch=1, epochs=1, verbose=0)
print(time.time())
"""
CONTINUED = """
import sys, time
import kresume.training.callbacks as callbacks
from kresume.cli import main
done = callbacks.Keeper.on_train_batch_end
def first(keeper, batch, logs=None):
    done(keeper, batch, logs)
    print(time.time(), flush=True)
    import os
    os._exit(0)
from kresume.devices import select
select(None)
callbacks.Keeper.on_train_batch_end = first
main(["train", "--out", sys.argv[1]])
"""


def write_pictures(folder: Path) -> None:
    """Ten classes of 64 JPEGs."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for index in range(64):
            picture = rng.integers(0, 255, (96, 96, 3)).astype(np.uint8)
            Image.fromarray(picture).save(folder / str(label) / f"{index}.jpg")


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds from the start of a process to the moment that it prints."""
    start = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        return float(done.stdout.split()[-1]) - start
    except (IndexError, ValueError):
        sys.exit(done.stderr)


def first_batches(folder: Path) -> list[float]:
    """Seconds until the first batch at step 0, 100 and 1,000,000, the median of five."""
    from kresume.images import conventions, pipeline
    from kresume.images.order import Order

    pictures = np.zeros((640, 96, 96, 3), np.uint8)
    result = []
    for step in (0, 100, 10**6):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            data = pipeline.training_dataset(
                lambda rows: pictures[rows],
                np.arange(640),
                np.zeros(640, np.int32),
                Order(0, 640, 32),
                start_step=step,
                image_size=(96, 96),
                pixels=conventions.to_model_function("0-1"),
                augment=None,
                one_hot=None,
            )
            next(iter(data))
            times.append(time.perf_counter() - start)
        result.append(statistics.median(times))
    return result


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="tensorflow")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "data")
        for file, text in (("plain.py", PLAIN), ("continued.py", CONTINUED)):
            (folder / file).write_text(text)
        environment = {**os.environ, "KERAS_BACKEND": arguments.backend, "KRESUME_CACHE": str(folder / "cache")}
        base = [
            sys.executable,
            "-m",
            "kresume",
            "train",
            "--data",
            str(folder / "data"),
            "--model",
            "applications:MobileNetV2",
        ]
        base += ["--image-size", "96", "--val-split", "0", "--snapshot-every", "1"]
        finished = [*base, "--steps", "2", "--out", str(folder / "finished")]
        subprocess.run(finished, env=environment, check=True, capture_output=True)
        interrupted = [*base, "--steps", "400", "--out", str(folder / "run")]
        process = subprocess.Popen(interrupted, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list((folder / "run" / "snapshots").glob("step-0000000[2-9]")):
            time.sleep(0.05)
        process.kill()
        process.wait()
        ours, theirs = [], []
        for number in range(arguments.rounds):
            copy = folder / f"run-{number}"
            shutil.copytree(folder / "run", copy)
            ours.append(timed([sys.executable, str(folder / "continued.py"), str(copy)], environment))
            plain = [
                sys.executable,
                str(folder / "plain.py"),
                str(folder / "finished" / "model.keras"),
                str(folder / "data"),
            ]
            theirs.append(timed(plain, environment))
        mine, plain_time = statistics.median(ours), statistics.median(theirs)
        os.environ["KERAS_BACKEND"] = arguments.backend
        early, later, far = first_batches(folder)
        print("| backend | plain script, s | continued run, s | ratio | first batch at step 0 / 100 / 1,000,000, ms |")
        print("|---|---|---|---|---|")
        print(
            f"| {arguments.backend} | {plain_time:.1f} | {mine:.1f} | {mine / plain_time:.2f} | "
            f"{1e3 * early:.0f} / {1e3 * later:.0f} / {1e3 * far:.0f} |"
        )


if __name__ == "__main__":
    main()
