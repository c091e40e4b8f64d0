"""Reads the folder of `keras.callbacks.BackupAndRestore`: a training that was interrupted, in Keras's own words.

    state = read("backup/")          # latest.weights.h5 and training_metadata.json, or the pair before it (.bkp)

Keras overwrites both files in place, the weights first, so a kill can leave a torn pair: weights cut short, or an empty
JSON beside whole ones. With `double_checkpoint` the pair before is kept; a newest pair that does not read falls back to it,
and `records["passed_over"]` says so by name. The epoch is where Keras would go on; how many were planned stands nowhere,
the order of the data neither.

Source: `keras/src/callbacks/backup_and_restore.py` of Keras 3.15.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from kresume import files
from kresume.checkpoints import weights_file
from kresume.checkpoints.hdf5 import read_arrays
from kresume.checkpoints.state import TrainState
from kresume.errors import CheckpointError

WEIGHTS, METADATA, BEFORE = "latest.weights.h5", "training_metadata.json", ".bkp"
LARGEST_JSON = 2**20


def accepts(path: str) -> bool:
    """Whether `path` is a folder with Keras's two files, or with the pair before them."""
    folder = Path(path)
    if not folder.is_dir():
        return False
    return any(
        _weights(folder, ending).is_file() and _metadata(folder, ending).is_file() for ending in ("", BEFORE)
    ) or (_weights(folder, "").is_file() and _weights(folder, BEFORE).is_file())


def _weights(folder: Path, ending: str) -> Path:
    return folder / f"{WEIGHTS}{ending}"


def _metadata(folder: Path, ending: str) -> Path:
    return folder / f"{METADATA}{ending}"


def read(path: str) -> TrainState:
    """Reads the newest pair that is whole.

    `records` says `interrupted`, the `epoch` and `batch` that Keras noted, and `passed_over`: why the newest pair was not used.

    Raises:
        CheckpointError: neither pair can be read.
    """
    folder = Path(path)
    try:
        return _read_pair(path, folder, "", None)
    except CheckpointError as error:
        if not _weights(folder, BEFORE).is_file():
            raise CheckpointError(
                f"{error}; BackupAndRestore(double_checkpoint=True) would have kept the pair before"
            ) from error
        try:
            return _read_pair(path, folder, BEFORE, str(error))
        except CheckpointError as second:
            raise CheckpointError(f"neither pair in {path} can be read: {error}; {second}") from error


def _read_pair(path: str, folder: Path, ending: str, passed_over: str | None) -> TrainState:
    weights, metadata = _weights(folder, ending), _metadata(folder, ending)
    if not weights.is_file():
        raise CheckpointError(f"{weights} is not there")
    noted = _noted(metadata)
    state = weights_file.state_of(path, read_arrays(weights.read_bytes(), str(weights)), files.modified(weights))
    return replace(
        state,
        format="backup",
        records={"interrupted": True, "epoch": noted["epoch"], "batch": noted["batch"], "passed_over": passed_over},
    )


def _noted(metadata: Path) -> dict[str, int]:
    try:
        if metadata.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{metadata.stat().st_size:,} bytes")
        value: Any = json.loads(metadata.read_text(encoding="utf-8"))
        batch = int(value.get("batch") or 0)  # the index of the last one, counted from 0; 0 after an epoch
        return {"epoch": int(value["epoch"]), "batch": batch + 1 if batch else 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{metadata} does not say where the training stood ({type(error).__name__}: {error}): it is torn or damaged"
        ) from error
