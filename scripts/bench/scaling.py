"""Makes the tables of docs/scaling.md: several devices and several processes against one.

    python scripts/bench/scaling.py --devices 1 2 4 8 --processes 1 2 4 --kills

Each count trains the same small network on the same pictures under JAX on this machine's CPU: virtual devices of one process,
or processes on loopback. A row says how far the weights are from those of one device after the same steps, how fast an epoch
was, and which share of it was not spent computing: one minus the time of as many bare steps, on a batch that lies on the
devices already, over the time of the epoch. Virtual devices share the same cores, so a table says what several of them cost,
not what they gain.

With `--kills` one of two processes is killed by SIGKILL in the middle, first process 1, then process 0, which coordinates.
The table says after how many seconds the other one had ended and with which exit code, and how far the weights are after the
same command has continued the run.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from kresume import runs
from kresume.checkpoints import snapshot

MODEL = """
import keras

def build(num_classes, image_size):
    layers = [keras.layers.Input((*image_size, 3)), keras.layers.Rescaling(1 / 255)]
    for width in (16, 32, 64):
        layers += [
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.MaxPooling2D(),
        ]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(num_classes, "softmax")])
"""
BARE = """
import sys, time
import keras, numpy as np
from kresume.backend import selection
from kresume.training.loop.fit import build

selection.select("jax", "cpu", int(sys.argv[1]), int(sys.argv[2]))
sys.path.insert(0, ".")
from model import build as network

model = network(4, (int(sys.argv[3]), int(sys.argv[3])))
model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"])
batch = np.zeros((int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[3]), 3), "float32"), np.zeros(int(sys.argv[2]), "int32")
build(model, batch[0].shape, batch[1].shape, "int32")
import jax
from keras.src.backend.jax.trainer import _distribute_data

placed = _distribute_data(batch)
model.make_train_function()
state = model._get_jax_state(
    trainable_variables=True, non_trainable_variables=True, optimizer_variables=True, metrics_variables=True
)
def steps(count):
    global state
    began = time.perf_counter()
    for _ in range(count):
        logs, state = model.train_function(state, iter([(*placed, None)]))
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / count
steps(5)
print(min(steps(10) for _ in range(3)))
"""
SIZE, BATCH = 32, 32


def write_pictures(folder: Path, count: int) -> None:
    """Writes four classes of noise, each with a bright corner."""
    rng = np.random.default_rng(0)
    for label in range(4):
        (folder / str(label)).mkdir(parents=True)
        for index in range(count):
            picture = rng.integers(0, 120, (SIZE, SIZE, 3)).astype(np.uint8)
            picture[8 * (label // 2) : 8 * (label // 2) + 8, 8 * (label % 2) : 8 * (label % 2) + 8] += 100
            Image.fromarray(picture).save(folder / str(label) / f"{index}.png")


def free_port() -> int:
    """Returns a port that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Job:
    """One training by one or several processes.

    Args:
        folder: holds the pictures and the model; the run is made in it.
        out: the run's name.
        epochs: how many.
        processes: how many processes.
        devices: virtual devices of each.
    """

    def __init__(self, folder: Path, out: str, epochs: int, processes: int = 1, devices: int = 1) -> None:
        self.folder, self.out, self.processes = folder, out, processes
        command = [
            sys.executable, "-m", "kresume", "train", "--data", "old", "--model", "model.py:build", "--image-size", str(SIZE),
            "--batch-size", str(BATCH), "--epochs", str(epochs), "--augment", "none", "--out", out, "--backend", "jax",
            "--device", "cpu", "--no-trial", "--snapshot-every", "20",
        ]  # fmt: skip
        self._environment = {
            **os.environ,
            "KRESUME_CACHE": str(folder / "cache"),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        self._commands = [command]
        if processes > 1:
            address = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(processes)]
            self._commands = [[*command, *address, "--process-id", str(index)] for index in range(processes)]
        self.running: list[subprocess.Popen] = []

    def start(self) -> None:
        """Starts all processes."""
        self.running = [
            subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=(self.folder / f"{self.out}.{index}.log").open("w"),
            )
            for index, command in enumerate(self._commands)
        ]

    def wait(self) -> list[int]:
        """Waits for all processes, and returns their exit codes."""
        return [process.wait() for process in self.running]

    def said(self, index: int) -> str:
        """Returns what a process has printed last."""
        return ((self.folder / f"{self.out}.{index}.log").read_text().strip().splitlines() or [""])[-1]

    def train(self) -> Path:
        """Trains to the end, and returns the run."""
        self.start()
        if any(self.wait()):
            raise SystemExit("\n".join(self.said(index) for index in range(self.processes)))
        return self.folder / self.out


def weights(run: Path) -> dict[str, np.ndarray]:
    """Returns the weights of a run's result."""
    step = runs.open_run(run).result_step()
    arrays = snapshot.read_snapshot(snapshot.snapshot_path(run / "snapshots", step)).arrays
    return {name: array for name, array in arrays.items() if name.partition("/")[0] in {"trainable", "non_trainable"}}


def distance(run: Path, other: Path) -> float:
    """Returns the largest difference between two results' weights."""
    one, two = weights(run), weights(other)
    return max(float(np.abs(one[name].astype(float) - two[name].astype(float)).max()) for name in one)


def bare_step(folder: Path, devices: int) -> float:
    """Returns the seconds of a step on a batch that lies on the devices already."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "KERAS_BACKEND": "jax",
    }
    words = [sys.executable, "-W", "ignore", "-c", BARE, str(devices), str(BATCH), str(SIZE)]
    done = subprocess.run(words, cwd=folder, env=environment, text=True, check=True, capture_output=True)
    return float(done.stdout.split()[-1])


def row(name: str, run: Path, reference: Path, bare: float | None) -> str:
    """Returns the row of a count."""
    line = runs.read_metrics(run / "metrics.jsonl")[-1]
    speed = float(line["images_per_second"])
    idle = "" if bare is None else f"{100 * max(0.0, 1 - bare * speed / BATCH):.0f} %"
    return f"| {name} | {distance(run, reference):.1e} | {speed:,.0f} | {idle} |"


def kill_row(folder: Path, index: int, epochs: int, reference: Path) -> str:
    """Kills one of two processes in the middle, and returns the row."""
    job = Job(folder, f"killed-{index}", epochs, processes=2)
    job.start()
    metrics = folder / job.out / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        if any(process.poll() is not None for process in job.running):
            raise SystemExit(job.said(0))
        time.sleep(0.1)
    job.running[index].send_signal(signal.SIGKILL)
    began = time.monotonic()
    code = job.running[1 - index].wait()
    seconds, said = time.monotonic() - began, job.said(1 - index)
    again = Job(folder, job.out, epochs, processes=2)
    run = again.train()
    return f"| {index} | {seconds:.0f} | {code}: {said} | {distance(run, reference):.1e} |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--kills", action="store_true")
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kresume-scaling-"))
    try:
        write_pictures(folder / "old", given.images // 4)
        (folder / "model.py").write_text(MODEL)
        reference = Job(folder, "one", given.epochs).train()
        print("| on one machine | weights off by | images/s | not computing |\n|---|---|---|---|")
        for count in given.devices:
            run = reference if count == 1 else Job(folder, f"devices-{count}", given.epochs, devices=count).train()
            print(row(f"{count} device{'s' * (count > 1)}", run, reference, bare_step(folder, count)), flush=True)
        for count in given.processes:
            if count > 1:
                run = Job(folder, f"processes-{count}", given.epochs, processes=count).train()
                print(row(f"{count} processes", run, reference, None), flush=True)
        if given.kills:
            print(
                "\n| killed process | the other ended after, s | how | weights off by, continued |\n|---|---|---|---|"
            )
            for index in (1, 0):
                print(kill_row(folder, index, given.epochs, reference), flush=True)
        print(json.dumps({"cores": os.cpu_count(), "images": given.images, "epochs": given.epochs}), file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
