"""Writes a golden run under `tests/golden/runs/<version>/<backend>/` and its continuation.

    KERAS_BACKEND=tensorflow python scripts/make_golden_run.py
    KERAS_BACKEND=jax python scripts/make_golden_run.py

`interrupted/` is a run that was killed in its second epoch. `expected.json` holds what this version writes into
`run.json` and `metrics.jsonl` when it continues that run to its end and then extends it with more images. The two
`.safetensors` hold every array of both results. `tests/test_golden_run.py` does the same with the current code. The
pictures and the model are stored beside the backends. Paths begin with ROOT, which the test replaces by its own folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kresume import __version__
from kresume.checkpoints import snapshot
from tests.conftest import CLASSES, draw
from tests.golden_run import ROOT, continue_and_extend
from tests.support import make_interrupted, move, run_training

KILLED_AFTER = "step-00000007"
FIRST = {"batch_size": 4, "epochs": 3, "val_split": 0.25, "monitor": "val_loss", "ema": 0.9, "mixup": 0.2}
MODEL = '''"""A small model with what a run must carry: batch statistics, the state of a dropout, an optimizer with slots."""

import keras


def build():
    """Returns the model, uncompiled."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
            keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.25, seed=7, name="drop"),
            keras.layers.Dense(3, activation="softmax", name="head"),
        ]
    )
'''


def write_inputs(folder: Path) -> None:
    """Writes the pictures and the model if they are missing."""
    from PIL import Image

    for name, count, first in (("old", 8, 0), ("new", 6, 100)):
        for index, label in enumerate(CLASSES):
            for seed in range(first + 1000 * index, first + 1000 * index + count):
                path = folder / name / label / f"{seed}.png"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(draw(label, seed, 12)).save(path)
    (folder / "model.py").write_text(MODEL)


def main() -> None:
    """Writes the golden run for the backend that KERAS_BACKEND names."""
    import keras

    golden = Path(__file__).parents[1] / "tests" / "golden" / "runs" / __version__
    write_inputs(golden)
    out = golden / keras.backend.backend()
    shutil.rmtree(out, ignore_errors=True)
    snapshot.prune_snapshots = lambda *_: None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.environ["KRESUME_CACHE"] = str(folder / "cache")
        for part in ("old", "new", "model.py"):
            (shutil.copytree if (golden / part).is_dir() else shutil.copy)(golden / part, folder / part)
        os.chdir(folder)
        run_training(out="first", data=["old"], model="model.py:build", snapshot_every="1", **FIRST)
        make_interrupted(Path("first"), KILLED_AFTER)
        for number in range(4):  # an epoch ends at step 4; no test uses the older snapshots
            shutil.rmtree(snapshot.snapshot_path(Path("first/snapshots"), number))
        shutil.copytree("first", out / "interrupted")
        move(out / "interrupted", str(folder), ROOT)
        expected = continue_and_extend(folder, out)
    (out / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
