"""Continues and extends a golden run; shared by `scripts/make_golden_run.py` and `tests/promises/test_golden_run.py`."""

import json
from pathlib import Path

import keras
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from kresume.backend import fingerprint
from tests.helpers.runs import lines_without_time, result_arrays, run_training

HERE = "/golden"
"""Stands for the folder of the run in what is stored."""
EXTENSION = {"lr": 5e-4, "epochs": 2, "replay": 0.5, "balance": "class", "bn_stats": "moving"}
FREE = {"created", "finished", "command", "fingerprint", "kresume"}
"""Fields of `run.json` that hold the time, the machine and the version."""
LATER_FIELDS = (
    "statistics", "balance", "new_classes", "failed", "freezing", "teaching", "time", "restored", "notes", "merged",
    "sha256", "away",
)  # fmt: skip
"""Fields of `run.json` that came after 0.1.0."""
LATER = ("bn_stats",)
"""Options that came after 0.1.0, which its runs cannot record."""


def facts(run: Path, folder: Path) -> dict:
    """Returns all that a run recorded as JSON, apart from times, versions and folders."""
    record = json.loads((run / "run.json").read_text().replace(str(folder), HERE))
    for later in LATER_FIELDS:
        record.pop(later, None)
    (record["parent"] or {}).pop("files", None)
    record["images"].pop("dropped", None)
    record["rate"].pop("lowered_from", None)
    (record.get("result") or {}).pop("average", None)
    if "val_split" not in record["given"]:
        record["options"].pop("val_split", None)  # later versions take over the parent's
    for options in (record["given"], record["options"]):
        for name in LATER:
            options.pop(name, None)
    rows = (
        pq.read_table(run / "images.parquet").select(["sha256", "path", "label", "origin", "side", "seen"]).to_pylist()
    )
    images = [{**row, "path": row["path"].replace(str(folder), HERE)} for row in rows]
    return {
        "record": {name: value for name, value in record.items() if name not in FREE},
        "metrics": lines_without_time(run),
        "images": images,
    }


def continue_and_extend(folder: Path, arrays: Path) -> dict:
    """Continues `folder/first`, extends it with `folder/new`, and writes the arrays of both results.

    Args:
        folder: the current directory, with `first`, `old` and `new`.
        arrays: the folder for `continued.safetensors` and `extended.safetensors`.

    Returns:
        The facts of both runs and the fingerprint of this process.
    """
    keras.utils.clear_session()  # automatic names restart from one: `adam_w`, `seed_generator`
    run_training(out="first")
    keras.utils.clear_session()
    run_training("first", out="second", add=["new"], **EXTENSION)
    expected = {"fingerprint": fingerprint.fingerprint()}
    for name, run in (("continued", "first"), ("extended", "second")):
        save_file(result_arrays(folder / run), arrays / f"{name}.safetensors")
        expected[name] = facts(folder / run, folder)
    return expected
