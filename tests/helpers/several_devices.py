"""Trains the same runs on one device and on eight, in one process; see `test_several_devices.py`.

python -m tests.helpers.several_devices FOLDER         # FOLDER holds `old/` and `new/`
"""

import os
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    os.environ["KERAS_BACKEND"] = "jax"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fork puts the repository last

from kresume.checkpoints import snapshot
from tests.helpers.runs import make_interrupted, run_training

MODEL = """
import keras

def build(num_classes, image_size):
    return keras.Sequential([
        keras.layers.Input((*image_size, 3)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(4, 3, strides=2, use_bias=False, name="first"),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("relu"),
        keras.layers.Dropout(0.2, seed=3),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(num_classes, "softmax"),
    ])
"""
EXTENSION = {
    "add": ["new"], "data": ["old"], "ema": 0.9, "distill": 0.5, "freeze": "first", "unfreeze_at": 1, "epochs": 2,
    "require": ("all.accuracy>=0.0",), "monitor": "val_loss", "max_forgetting": 100.0,
}  # fmt: skip
"""An extension with the options that have a way of their own through the devices."""


def main(folder: Path) -> None:
    """Trains on both counts of devices, and continues on the other one after a kill."""
    os.chdir(folder)
    Path("model.py").write_text(MODEL)
    first = {
        "data": ["old"], "model": "model.py:build", "image_size": "10", "batch_size": 8, "epochs": 2, "val_split": 0.25,
        "trial": False,
    }  # fmt: skip
    prune, snapshot.prune_snapshots = snapshot.prune_snapshots, lambda *_: None
    for devices in (1, 8):
        run_training(out=f"on-{devices}", devices=devices, snapshot_every="1", **first)
    for before, after in ((1, 8), (8, 1), (8, 8)):
        shutil.copytree(f"on-{before}", f"from-{before}-to-{after}")
        make_interrupted(Path(f"from-{before}-to-{after}"), "step-00000002")
        run_training(out=f"from-{before}-to-{after}", devices=after)
    snapshot.prune_snapshots = prune
    for devices in (1, 8):
        run_training("on-1", out=f"extended-on-{devices}", devices=devices, trial=False, **EXTENSION)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
