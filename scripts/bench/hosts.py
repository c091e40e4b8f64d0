"""Trains with one option after the other by one process and by two, and compares what comes of it.

    python scripts/bench/hosts.py                      # takes about ten minutes on two quiet cores
    python scripts/bench/hosts.py grow distill         # these alone

The two processes stand for two hosts; they find each other over loopback, and each reads its share of each batch. The images
of a step are those of one process, so weights and scores are the same but for rounding. Augmentation is off: each process
draws that of its own share. MixUp mixes images of one share, so there the pictures themselves differ.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scaling import free_port

MODEL = """
import keras

def build(num_classes, image_size):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((*image_size, 3)), layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, strides=2, use_bias=False, name="first"), layers.BatchNormalization(), layers.Activation("relu"),
        layers.Dropout(0.2, seed=3), layers.GlobalAveragePooling2D(), layers.Dense(num_classes, "softmax"),
    ])
"""
PARENT = (
    "--data", "old", "--model", "model.py:build", "--image-size", "10", "--batch-size", "8", "--epochs", "2",
    "--val-split", "0.25", "--augment", "none", "--seed", "3",
)  # fmt: skip
CHILD = ("--from", "parent", "--batch-size", "8", "--epochs", "2")
OPTIONS: dict[str, Sequence[str]] = {
    "nothing else": (*CHILD, "--add", "new"),
    "grow": (*CHILD, "--add", "grown", "--grow"),
    "mix": (*CHILD, "--add", "new", "--mix", "1:1"),
    "ema": (*CHILD, "--add", "new", "--ema", "0.9"),
    "unfreeze": (*CHILD, "--add", "new", "--freeze", "first", "--unfreeze-at", "1"),
    "distill": (
        *CHILD, "--add", "new", "--distill", "0.5", "--ema", "0.9", "--freeze", "first", "--unfreeze-at", "1",
    ),
    "new head": (
        "--from", "parent/model.keras", "--new-head", "--data", "grown", "--batch-size", "8", "--epochs", "2",
        "--augment", "none",
    ),
    "bfloat16": (*CHILD, "--add", "new", "--precision", "mixed_bfloat16"),
    "two steps a call": (*CHILD, "--add", "new", "--steps-per-execution", "2"),
    "until": (*CHILD, "--add", "new", "--until", "all.accuracy>=0.0"),
    "a gate that fails": (*CHILD, "--add", "new", "--require", "all.accuracy>=0.99"),
    "monitor": (*CHILD, "--add", "new", "--monitor", "val_loss"),
    "cache off": (*CHILD, "--add", "new", "--cache", "off"),
    "moving averages": (*CHILD, "--add", "new", "--bn-stats", "moving"),
    "another metric": (*CHILD, "--add", "new", "--metric", "AUC"),
    "a broken picture": (*CHILD, "--add", "broken"),
    "a loss that is no number": (*CHILD, "--add", "new", "--lr", "1e30"),
    "mixup": (*CHILD, "--add", "new", "--mixup", "0.3"),
}  # fmt: skip


def write_pictures(folder: Path, count: int, seed: int, classes: Sequence[str] = ("a", "b", "c")) -> None:
    """Writes noise whose brightness and colour depend on the class."""
    rng = np.random.default_rng(seed)
    for place, label in enumerate(classes):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            colour = np.roll([160, 60, 20], place) + rng.integers(-40, 40, (20, 20, 3))
            Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8)).save(folder / label / f"{index}.png")


def train(arguments: Sequence[str], out: str, processes: int) -> list[int]:
    """Trains by one or several processes; returns their exit codes."""
    address = f"127.0.0.1:{free_port()}"
    group = ["--coordinator", address, "--num-processes", str(processes)] if processes > 1 else []
    started = []
    for index in range(processes):
        which = ["--process-id", str(index)] if processes > 1 else []
        command = [sys.executable, "-m", "kresume", "train", *arguments, "--out", out, "--no-trial", *group, *which]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    return [process.wait(timeout=600) for process in started]


def weights(run: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a run's `model.keras`, with those of its optimizer."""
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(f"{run}/model.keras") as archive:
        file = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def compare(one: str, other: str) -> str:
    """Returns the cells of a row: the farthest weight of the model, and the farthest loss and accuracy of an epoch."""
    if not Path(one, "model.keras").exists() or not Path(other, "model.keras").exists():
        return "no result | "
    mine, theirs = weights(one), weights(other)
    if mine.keys() != theirs.keys():
        return "other arrays | "
    off = max(
        float(np.abs(array.astype(float) - theirs[name]).max())
        for name, array in mine.items()
        if not name.startswith("optimizer") and array.size
    )
    lines = [
        [json.loads(line)["all"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]
        for run in (one, other)
    ]
    if len(lines[0]) != len(lines[1]):
        return f"{off:.0e} | {len(lines[0])} epochs, {len(lines[1])}"
    scores = [
        max(abs(first[name] - second[name]) for first, second in zip(*lines, strict=True))
        for name in ("loss", "accuracy")
    ]
    return f"{off:.0e} | {scores[0]:.0e}, {scores[1]:.0e}"


def main() -> None:
    """Prints a row for each option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="OPTION", help=f"all, or some of: {', '.join(OPTIONS)}")
    asked = parser.parse_args().only or OPTIONS
    with tempfile.TemporaryDirectory(prefix="kresume-hosts-") as name:
        os.chdir(name)
        os.environ.update({"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "KRESUME_CACHE": f"{name}/cache"})
        Path("model.py").write_text(MODEL)
        write_pictures(Path("old"), 16, 0)
        write_pictures(Path("new"), 10, 1)
        write_pictures(Path("grown"), 10, 2, ("a", "d"))
        write_pictures(Path("broken"), 10, 3)
        Path("broken/a/3.png").write_bytes(Path("broken/a/3.png").read_bytes()[:300])
        train(PARENT, "parent", 1)
        print(
            "| option | exit codes of one process, of two | weights off by | loss and accuracy off by |\n|---|---|---|---|"
        )
        for option in asked:
            codes = [train(OPTIONS[option], f"{count}-{option}", count) for count in (1, 2)]
            shown = ", ".join(" ".join(map(str, each)) for each in codes)
            print(f"| {option} | {shown} | {compare(f'1-{option}', f'2-{option}')} |", flush=True)


if __name__ == "__main__":
    main()
