"""Writes golden checkpoints under `tests/golden/<writer>-<version>/` with the real libraries.

    python scripts/make_golden_checkpoints.py                       every writer whose library is installed
    python scripts/make_golden_checkpoints.py keras                 one
    python scripts/make_golden_checkpoints.py --out /tmp/golden

Each writer runs in its own process. It trains a model of `tests/golden/models.py` for a few steps and saves it in one
format. Then it trains three more steps and records their losses in `expected.json`. A reader that restores weights and
optimizer state reproduces these losses one by one. `slots` holds digests of the optimizer slots by their Keras 3 names.

`pip install tf_keras` for the files of Keras 2.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
STEPS, NEXT, BATCH = 4, 3, 4
LARGEST = 50 * 1024


@dataclass(frozen=True)
class Golden:
    """Describes one checkpoint.

    Attributes:
        name: its folder.
        save: `save(model, folder)` writes it and returns the path that a user would give.
    """

    name: str
    model: str
    optimizer: Callable[[Any], Any]
    save: Callable[[Any, Path], Path]
    policy: str = "float32"
    rate: float = 0.01


def digest(array: Any) -> str:
    """Returns a digest of an array's type, shape and bytes: 16 hexadecimal digits."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()[:16]


def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of a step."""
    from models import images_and_labels

    images, labels = images_and_labels()
    rows = np.arange(step * BATCH, (step + 1) * BATCH) % len(images)
    return images[rows], labels[rows]


def to_file(name: str, method: str = "save", **options: Any) -> Callable[[Any, Path], Path]:
    """Returns a function that saves by `model.save(name)`, or by another method of the model."""

    def save(model: Any, folder: Path) -> Path:
        getattr(model, method)(folder / name, **options)
        return folder / name

    return save


def write_keras(out: Path) -> None:
    """Writes Keras 3 files: `.keras`, `.weights.h5`, shards, backup, legacy HDF5, mixed precision."""
    import keras

    optimizers = keras.optimizers
    cosine = optimizers.schedules.CosineDecay

    def backup(model: Any, folder: Path) -> Path:
        # The files that the callback's own code writes at the end of an epoch; it keeps the previous pair.
        callback = keras.callbacks.BackupAndRestore(folder / "backup", double_checkpoint=True)
        callback.set_model(model)
        callback.on_epoch_end(0)
        callback.on_epoch_end(1)
        return folder / "backup"

    def shards(model: Any, folder: Path) -> Path:
        model.save_weights(folder / "model.weights.json", max_shard_size=3e-6)
        return folder / "model.weights.json"

    write_all(
        keras,
        out,
        [
            Golden("keras-cnn-adam", "cnn", lambda _: optimizers.Adam(0.01), to_file("model.keras")),
            Golden("keras-resnet-sgd", "resnet", lambda _: optimizers.SGD(0.01, momentum=0.9), to_file("model.keras")),
            Golden(
                "keras-cnn-adamw-cosine", "cnn", lambda _: optimizers.AdamW(cosine(0.01, 50)), to_file("model.keras")
            ),
            Golden("keras-vit-plain-sgd", "vit", lambda _: optimizers.SGD(0.01), to_file("model.keras")),
            Golden("keras-nested-rmsprop", "nested", lambda _: optimizers.RMSprop(0.01), to_file("model.keras")),
            Golden(
                "keras-cnn-adam-float16",
                "cnn",
                lambda _: optimizers.Adam(0.01),
                to_file("model.keras"),
                "mixed_float16",
            ),
            Golden(
                "weights-h5-mobilenet-adam",
                "mobilenet",
                lambda _: optimizers.Adam(0.01),
                to_file("model.weights.h5", "save_weights"),
            ),
            Golden(
                "weights-h5-subclassed-sgd",
                "subclassed",
                lambda _: optimizers.SGD(0.01, momentum=0.9),
                to_file("model.weights.h5", "save_weights"),
            ),
            Golden(
                "weights-h5-sequential-ema",
                "sequential",
                lambda _: optimizers.Adam(0.01, use_ema=True),
                to_file("model.weights.h5", "save_weights"),
            ),
            Golden("weights-json-cnn-adam", "cnn", lambda _: optimizers.Adam(0.01), shards),
            Golden("backup-sequential-adam", "sequential", lambda _: optimizers.Adam(0.01), backup),
            Golden("legacy-h5-sequential-adam", "sequential", lambda _: optimizers.Adam(0.01), to_file("model.h5")),
        ],
    )


def write_tf_keras(out: Path) -> None:
    """Writes Keras 2 files with tf_keras: `.h5` with both kinds of optimizer, weights alone, and `.keras`.

    The kinds of optimizer are the new-style and the legacy ones.
    """
    import tf_keras

    optimizers = tf_keras.optimizers
    cosine = optimizers.schedules.CosineDecay
    write_all(
        tf_keras,
        out,
        [
            Golden("h5-cnn-adam", "cnn", lambda _: optimizers.Adam(0.01), to_file("model.h5")),
            Golden("h5-resnet-sgd", "resnet", lambda _: optimizers.SGD(0.01, momentum=0.9), to_file("model.h5")),
            Golden("h5-mobilenet-rmsprop", "mobilenet", lambda _: optimizers.RMSprop(0.01), to_file("model.h5")),
            Golden("h5-cnn-legacy-adam", "cnn", lambda _: optimizers.legacy.Adam(0.01), to_file("model.h5")),
            Golden(
                "h5-nested-legacy-sgd",
                "nested",
                lambda _: optimizers.legacy.SGD(0.01, momentum=0.9),
                to_file("model.h5"),
            ),
            Golden("h5-cnn-adam-cosine", "cnn", lambda _: optimizers.Adam(cosine(0.01, 50)), to_file("model.h5")),
            Golden("h5-vit-sgd", "vit", lambda _: optimizers.SGD(0.01, momentum=0.9), to_file("model.h5")),
            Golden("keras-sequential-adam", "sequential", lambda _: optimizers.Adam(0.01), to_file("model.keras")),
            Golden("keras-transfer-adam", "transfer", lambda _: optimizers.Adam(0.01), to_file("model.keras")),
            Golden("h5-transfer-sgd", "transfer", lambda _: optimizers.SGD(0.01, momentum=0.9), to_file("model.h5")),
            Golden(
                "weights-h5-sequential-adam",
                "sequential",
                lambda _: optimizers.Adam(0.01),
                to_file("model.weights.h5", "save_weights"),
            ),
        ],
    )


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "keras": ("keras", write_keras),
    "tf_keras": ("tf_keras", write_tf_keras),
}
"""By name: the distribution whose version names the folder, and the function that writes into it."""


def write_all(keras: Any, out: Path, goldens: list[Golden]) -> None:
    """Trains and saves each golden with one Keras, and records the expected values."""
    from models import BUILDERS

    for golden in goldens:
        folder = out / golden.name
        shutil.rmtree(folder, ignore_errors=True)  # other writers keep files of the same library beside it
        folder.mkdir(parents=True)
        keras.utils.set_random_seed(3)
        if hasattr(keras, "config") and hasattr(keras.config, "set_dtype_policy"):
            keras.config.set_dtype_policy(golden.policy)
        model = BUILDERS[golden.model](keras)
        model.compile(golden.optimizer(keras), "sparse_categorical_crossentropy")
        for step in range(STEPS):
            model.train_on_batch(*batches(step))
        path = golden.save(model, folder)
        images, _ = batches(0)
        expected = {
            "path": path.name,
            "model": golden.model,
            "step": STEPS,
            "rate": golden.rate,
            "predictions": np.asarray(model.predict(images, verbose=0), "float32").tolist(),
            "slots": slots_of(model.optimizer),
            "next_losses": [float(model.train_on_batch(*batches(step))) for step in range(STEPS, STEPS + NEXT)],
        }
        (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        for file in (item for item in folder.rglob("*") if item.is_file()):
            if file.stat().st_size > LARGEST:
                raise SystemExit(
                    f"{file} has {file.stat().st_size:,} bytes, more than {LARGEST:,}: make its model smaller"
                )


NAMES = {"m": "_momentums", "v": "_velocities", "momentum": "momentums", "rms": "_velocities"}
ATTRIBUTES = ("_momentums", "_velocities", "momentums", "_model_variables_moving_average")


def slots_of(optimizer: Any) -> dict[str, list[str]]:
    """Returns digests of the slots by Keras 3's attribute, in the order of the trainable variables."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    found = {}
    for name in ATTRIBUTES:
        values = getattr(optimizer, name, None)
        if values:
            found[name] = [digest(np.asarray(value)) for value in values]
    for name in getattr(optimizer, "get_slot_names", list)():  # a legacy optimizer of Keras 2
        weights = [weight for weight in optimizer.weights if weight.name.endswith(f"/{name}:0")]
        found[NAMES[name]] = [digest(weight.numpy()) for weight in weights]
    return found


def main() -> None:
    """Writes every golden checkpoint, or those of the named writers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("writers", nargs="*", choices=[*WRITERS, []], help="default: every one that is installed")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    for name in arguments.writers or WRITERS:
        distribution, write = WRITERS[name]
        try:
            folder = arguments.out / f"{name}-{importlib.metadata.version(distribution)}"
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: {distribution} is not installed, its files stay as they are")
            continue
        if arguments.in_process:
            write(folder)
        else:
            command = [sys.executable, __file__, name, "--out", str(arguments.out), "--in-process"]
            environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
            subprocess.run(command, check=True, env=environment)
            print(f"{folder}: {sum(1 for _ in folder.iterdir())} checkpoints")


if __name__ == "__main__":
    main()
