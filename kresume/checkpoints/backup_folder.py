"""Reads the folder of `keras.callbacks.BackupAndRestore`: an interrupted training.

    state = read("backup/")          # latest.weights.h5 and training_metadata.json, or the pair before it (.bkp)

Keras overwrites both files in place, the weights first. A kill can therefore leave truncated weights, or complete
weights with an empty JSON file. `double_checkpoint` keeps the previous pair; the reader falls back to it if the newest
pair cannot be read, and `records["passed_over"]` gives the reason. The metadata holds the epoch at which Keras would
continue. It holds neither the planned number of epochs nor the order of the data.

Source: `keras/src/callbacks/backup_and_restore.py` of Keras 3.15.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kresume.checkpoints import weights_file
from kresume.checkpoints.hdf5 import read_arrays
from kresume.checkpoints.json_text import read_file
from kresume.errors import CheckpointError
from kresume.storage import atomic
from kresume.values.state import TrainState

WEIGHTS, METADATA, BEFORE = "latest.weights.h5", "training_metadata.json", ".bkp"
LARGEST_JSON = 2**20


def accepts(path: str) -> bool:
    """Returns True if the folder has Keras's two files or the previous pair."""
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
    """Reads the newest complete pair of weights and metadata.

    `records` holds `interrupted`, the `epoch` and `batch` that Keras wrote, and `passed_over`: why the newest pair was
    skipped.

    Raises:
        CheckpointError: if neither pair can be read.
    """
    folder = Path(path)
    try:
        return _read_pair(path, folder, "", None)
    except CheckpointError as error:
        if not _weights(folder, BEFORE).is_file():
            raise CheckpointError(
                f"{error}; BackupAndRestore(double_checkpoint=True) also keeps the backup before"
            ) from error
        try:
            return _read_pair(path, folder, BEFORE, str(error))
        except CheckpointError as second:
            raise CheckpointError(
                f"{path}: neither the newest backup nor the one before is readable: {error}; {second}"
            ) from error


def _read_pair(path: str, folder: Path, ending: str, passed_over: str | None) -> TrainState:
    weights, metadata = _weights(folder, ending), _metadata(folder, ending)
    if not weights.is_file():
        raise CheckpointError(f"{weights} does not exist")
    noted = _read_metadata(metadata)
    state = weights_file.state_of(path, read_arrays(weights.read_bytes(), str(weights)), atomic.modified(weights))
    return replace(
        state,
        format="backup",
        records={"interrupted": True, "epoch": noted["epoch"], "batch": noted["batch"], "passed_over": passed_over},
    )


def _read_metadata(metadata: Path) -> dict[str, int]:
    value = read_file(metadata, largest=LARGEST_JSON)
    try:
        batch = int(value.get("batch") or 0)  # index of the last batch, from 0; 0 after an epoch
        return {"epoch": int(value["epoch"]), "batch": batch + 1 if batch else 0}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{metadata} does not record the epoch ({type(error).__name__}: {error}): the file is truncated or damaged"
        ) from error
