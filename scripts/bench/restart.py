"""Measures process start to first new step, and last printed line to process end.

    python scripts/bench/restart.py --backend tensorflow

Takes about 9 minutes on 2 cores under TensorFlow, 15 under JAX; --quick about 3. `--backend jax --programs` measures only
what the programs are worth that JAX compiled before and the run holds: the continuation with and without them, in
seconds of the clock and of processors.

Start: the model is MobileNetV2 at 96 pixels on generated JPEGs, cached in both cases. A run is stopped after some
steps. Its continuation is timed from the start of the process to the end of its first new step. The plain script
imports Keras, loads `model.keras` of the same state, makes its dataset and fits one step. Then the position is moved:
the first batch of the data is timed at step 0, 100 and 1,000,000. To reach: 1.1.

End: a convnet trains for about half a minute. The time from the last printed line to the end of the process is measured
three times each: where the process ends by itself, and where SIGTERM or Ctrl-C arrives after two thirds. To reach: 1 s.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pairs
from PIL import Image

EPOCHS, ROUNDS = 24, 3
ENDS = {"its own end": None, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
PLAIN = """
import json, sys, time
import keras
model = keras.models.load_model(sys.argv[1])
data = keras.utils.image_dataset_from_directory(sys.argv[2], image_size=(96, 96), batch_size=32, seed=0, verbose=False)
model.fit(data, steps_per_epoch=1, epochs=1, verbose=0)
print(time.time(), flush=True)
import os
os._exit(0)
"""
CONTINUED = """
import os, sys, time
import kresume.training.loop.callbacks as callbacks
from kresume.cli import main
done = callbacks.Keeper.on_train_batch_end
def first(keeper, batch, logs=None):
    done(keeper, batch, logs)
    print(sum(os.times()[:2]), time.time(), flush=True)
    os._exit(0)
from kresume.backend.selection import select
select(None)
callbacks.Keeper.on_train_batch_end = first
main(["train", "--out", sys.argv[1]])
"""


def write_pictures(folder: Path) -> None:
    """Writes ten classes of 64 JPEGs."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for index in range(64):
            picture = rng.integers(0, 255, (96, 96, 3)).astype(np.uint8)
            Image.fromarray(picture).save(folder / str(label) / f"{index}.jpg")


def timed(command: list[object], environment: dict[str, str]) -> float:
    """Returns the seconds from the start of a process to the time that it prints."""
    start = time.time()
    return float(pairs.run(command, environment)[1].split()[-1]) - start


def first_batches(rounds: int) -> list[float]:
    """Returns the median seconds until the first batch at step 0, 100 and 1,000,000."""
    from kresume.images import conventions, pipeline
    from kresume.images.order import Order

    pictures = np.zeros((640, 96, 96, 3), np.uint8)
    times: dict[int, list[float]] = {0: [], 100: [], 10**6: []}
    for _ in range(rounds + 1):  # the first round imports TensorFlow
        for step, measured in times.items():
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
            )
            next(iter(data))
            measured.append(time.perf_counter() - start)
    return [statistics.median(measured[1:]) for measured in times.values()]


def leaving(
    command: list[object], environment: dict[str, str], how: signal.Signals | None, epoch: int
) -> tuple[float, float]:
    """Trains, optionally interrupted by a signal; times the last line and the exit.

    Returns:
        Seconds from the last line to the end of the process, and seconds before that line.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    start = last = time.monotonic()
    for line in process.stdout or ():
        last = time.monotonic()
        if how is not None and line.startswith(f"epoch {epoch}/"):
            process.send_signal(how)
    code = process.wait()
    end = time.monotonic()
    if code != {None: 0, signal.SIGTERM: 75, signal.SIGINT: 130}[how]:
        sys.exit(f"the training ended with exit code {code}")
    return end - last, last - start


def interrupt(base: list[object], folder: Path, environment: dict[str, str]) -> list[object]:
    """Trains MobileNetV2 in the folder `run` and kills it after some steps; returns the command without its end."""
    for file, text in (("plain.py", PLAIN), ("continued.py", CONTINUED)):
        (folder / file).write_text(text)
    base = [*base, "--model", "applications:MobileNetV2", "--image-size", 96, "--snapshot-every", 1]
    words = [str(word) for word in [*base, "--steps", 400, "--out", folder / "run"]]
    process = subprocess.Popen(words, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((folder / "run" / "snapshots").glob("step-0000000[2-9]")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    return base


def continued(folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Continues a copy of the run; returns the seconds until its first new step, and those of processors."""
    copy = folder / "copy"
    shutil.copytree(folder / "run", copy)
    start = time.time()
    processors, end = pairs.run([sys.executable, folder / "continued.py", copy], environment)[1].split()[-2:]
    shutil.rmtree(copy)
    return float(end) - start, float(processors)


def starts(asked, base: list[object], folder: Path, environment: dict[str, str], busy: pairs.Busy) -> list[str]:
    """Measures the starts; returns one row of the first table."""
    base = interrupt(base, folder, environment)
    pairs.run([*base, "--steps", 2, "--out", folder / "finished"], environment)

    def theirs() -> float:
        model = folder / "finished" / "model.keras"
        return timed([sys.executable, folder / "plain.py", model, folder / "data"], environment)

    measured = pairs.measure(asked, lambda: continued(folder, environment)[0], theirs, busy)
    own, plain = pairs.medians(measured)
    return [f"{plain:.1f}", f"{own:.1f}", pairs.ratio(measured)]


def programs(asked, base: list[object], folder: Path, environment: dict[str, str], busy: pairs.Busy) -> None:
    """Prints the table of continuations with and without the programs that the run holds."""
    interrupt(base, folder, environment)
    (archive,) = (folder / "run" / "compiled").iterdir()
    figures: list[list[tuple[float, float]]] = [[], []]

    def measure(which: int) -> float:
        without = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if which else {}
        figures[which].append(continued(folder, {**environment, **without}))
        return figures[which][-1][1]

    measured = pairs.measure(asked, lambda: measure(0), lambda: measure(1), busy)
    seconds = [statistics.median(clock for clock, _ in each) for each in figures]
    processors = pairs.medians(measured)
    columns = ["", "programs read from the run", "compiled again", "ratio (quartiles)"]
    rows = [
        ["processor seconds to the first step", *(f"{each:.1f}" for each in processors), pairs.ratio(measured)],
        ["seconds by the clock", *(f"{each:.1f}" for each in seconds), f"{seconds[0] / seconds[1]:.2f}"],
        ["archive, MB", f"{archive.stat().st_size / 1e6:.1f}", "", ""],
    ]
    pairs.table(columns, rows, busy)


def main() -> None:
    """Prints the tables."""
    made = pairs.parser(__doc__)
    made.add_argument("--backend", default="tensorflow", choices=["tensorflow", "jax"])
    made.add_argument("--programs", action="store_true", help="measure only what kept programs are worth (jax)")
    asked = pairs.parse(made)
    busy, ends = pairs.Busy(), []
    os.environ["KERAS_BACKEND"] = asked.backend
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "data")
        environment = {"KERAS_BACKEND": asked.backend, "KRESUME_CACHE": str(folder / "cache")}
        base = [sys.executable, "-m", "kresume", "train", "--data", folder / "data", "--val-split", 0]
        if asked.programs:
            programs(asked, base, folder, environment, busy)
            return
        row = starts(asked, base, folder, environment, busy)
        early, later, far = first_batches(asked.pairs)
        epochs, rounds = (3, 1) if asked.quick else (EPOCHS, ROUNDS)
        train = [*base, "--model", "convnet", "--image-size", 64, "--epochs", epochs]
        for number, (words, how) in enumerate(ENDS.items()):
            times = []
            for turn in range(rounds):
                busy.wait(asked.wait)
                times.append(
                    leaving([*train, "--out", folder / f"end-{number}-{turn}"], environment, how, epochs * 2 // 3)
                )
            seconds, trained = zip(*times, strict=True)
            low, middle, high = pairs.quartiles(seconds)
            cells = [f"{statistics.median(trained):.0f}", f"{middle:.2f} ({low:.2f}-{high:.2f})", f"{max(seconds):.2f}"]
            ends.append([asked.backend, words, *cells])
    columns = [
        "backend",
        "plain script, s",
        "continued run, s",
        "ratio (quartiles)",
        "first batch at step 0 / 100 / 10^6, ms",
    ]
    firsts = " / ".join(f"{1e3 * seconds:.0f}" for seconds in (early, later, far))
    pairs.table(columns, [[asked.backend, *row, firsts]])
    print()
    columns = [
        "backend",
        "ended by",
        "seconds before the last line",
        "from the last line to the end, s (quartiles)",
        "most",
    ]
    pairs.table(columns, ends, busy)


if __name__ == "__main__":
    main()
