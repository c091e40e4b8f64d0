"""Writes a golden run under `tests/golden/runs/<version>/<backend>/` and its continuation.

    KERAS_BACKEND=tensorflow python scripts/make_golden_run.py
    KERAS_BACKEND=jax python scripts/make_golden_run.py

`interrupted/` is a run that was killed in its second epoch. `expected.json` holds what this version writes into
`run.json` and `metrics.jsonl` when it continues that run to its end and then extends it with more images. The two
`.safetensors` hold every array of both results. `tests/promises/test_golden_run.py` does the same with the current code. The
pictures and the model are those of the first golden run. Paths begin with HERE, which the test replaces by its own folder.
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
from tests.helpers.golden_run import HERE, continue_and_extend
from tests.helpers.runs import make_interrupted, move, run_training

KILLED_AFTER = "step-00000007"
FIRST = {"batch_size": 4, "epochs": 3, "val_split": 0.25, "monitor": "val_loss", "ema": 0.9, "mixup": 0.2}
RUNS = Path(__file__).parents[1] / "tests" / "golden" / "runs"
INPUTS = RUNS / "0.1.0"
"""The pictures and the model of the first golden run serve all."""


def main() -> None:
    """Writes the golden run for the backend that KERAS_BACKEND names."""
    import keras

    out = RUNS / __version__ / keras.backend.backend()
    if out.exists():
        raise SystemExit(f"{out} exists: it holds what the code of its time wrote. Remove it first if that was wrong")
    snapshot.prune_snapshots = lambda *_: None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.environ["KRESUME_CACHE"] = str(folder / "cache")
        for part in ("old", "new", "model.py"):
            (shutil.copytree if (INPUTS / part).is_dir() else shutil.copy)(INPUTS / part, folder / part)
        os.chdir(folder)
        run_training(out="first", data=["old"], model="model.py:build", snapshot_every="1", **FIRST)
        make_interrupted(Path("first"), KILLED_AFTER)
        for number in range(4):  # an epoch ends at step 4; no test uses the older snapshots
            shutil.rmtree(snapshot.snapshot_path(Path("first/snapshots"), number))
        shutil.copytree("first", out / "interrupted")
        move(out / "interrupted", str(folder), HERE)
        expected = continue_and_extend(folder, out)
    (out / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
