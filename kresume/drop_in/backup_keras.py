"""Restores a backup of Keras's own `BackupAndRestore`, for scripts that switch to kresume's.

    if exists(folder):
        restored = restore("backup/", model, epochs)
    take_over(folder, records)  # once a backup of ours is on disk

Keras's backup holds the weights, the optimizer, the epoch, and with `save_freq=N` the batch at which it was written. It
holds no seed states, metrics or callback state. Keras overwrites it in place, so the newest pair of files may be damaged;
the pair before it then serves, if there is one. `kresume.checkpoints.backup_folder` reads the same folder as a checkpoint.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kresume.backend import live_state
from kresume.checkpoints import weights_file
from kresume.checkpoints.backup_folder import BEFORE, METADATA, WEIGHTS
from kresume.checkpoints.hdf5 import read_arrays
from kresume.drop_in import backup_files
from kresume.drop_in.backup_restore import Restored
from kresume.drop_in.why_ended import all_epochs_done
from kresume.errors import CheckpointError
from kresume.models import match_keras, structure
from kresume.models.restore import restore_optimizer
from kresume.storage import atomic

ASIDE = ".taken-over"
"""Suffix of Keras's files once a backup of kresume has replaced them."""


def exists(folder: Path) -> bool:
    """Returns True if the folder holds a backup of Keras's own callback."""
    return (folder / WEIGHTS).is_file()


def restore(backup_dir: str, model: Any, epochs: int | None) -> Restored:
    """Restores weights, optimizer and epoch from the newest pair of files that can be read.

    Args:
        backup_dir: the folder of the backups, as the user named it.
        model: built and compiled.
        epochs: the requested number of epochs, None if unknown.

    Raises:
        CheckpointError: no pair can be read.
    """
    folder, reasons = Path(backup_dir), []
    for ending in ("", BEFORE):
        weights, metadata = folder / f"{WEIGHTS}{ending}", folder / f"{METADATA}{ending}"
        if not weights.is_file():
            continue
        try:
            known = json.loads(metadata.read_text(encoding="utf-8")) if metadata.is_file() else {"epoch": 0}
            epoch, batch = int(known["epoch"]), int(known.get("batch") or 0)
            message = _load(model, weights)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reasons.append(f"{weights.name}: {' '.join(str(error).split())[:200]}")
            continue
        step = int(live_state.host_array(model.optimizer.iterations.value)) if model.optimizer is not None else 0
        ended = all_epochs_done(epoch, epochs, step)
        doing = (
            f"nothing is left to train after Keras's own backup: {ended}"
            if ended
            else "continuing from Keras's own backup"
        )
        # Keras begins the epoch again on top of what it trained, whatever order the data had: so does this.
        again = f", whose first {batch + 1:,} batches it trains again, as Keras does" if batch and not ended else ""
        line = (
            f"{backup_dir}: {doing} ({weights.name}) at epoch {epoch + 1}{again}; it has no "
            f"seed states, metrics or callback states, which start fresh{message}; its files are kept as *{ASIDE}"
        )
        return Restored(step, epoch, 0, epoch, line)
    raise CheckpointError(
        f"Keras's backup in {backup_dir} cannot be read ({'; '.join(reasons)}): restore it from a copy, or remove the "
        "folder to start again"
    )


def take_over(folder: Path, records: Mapping[str, Any]) -> None:
    """Moves Keras's own files aside and writes the one that scripts read, once a backup is on disk.

    Args:
        folder: the folder of the backups.
        records: those of the backup.
    """
    set_aside(folder)
    backup_files.write_metadata(folder, records)


def set_aside(folder: Path) -> None:
    """Renames Keras's files, if any; else they would be mistaken for a newer backup."""
    if not exists(folder):
        return
    for ending in ("", BEFORE):
        for name in (f"{WEIGHTS}{ending}", f"{METADATA}{ending}"):
            path = folder / name
            if path.is_file():
                path.rename(path.with_name(f"{name}{ASIDE}"))


def _load(model: Any, weights: Path) -> str:
    """Loads the file as Keras does, then matches the optimizer's slots by their variables.

    Keras assigns slots by order alone, which is wrong if a model trains other variables than before.

    Returns:
        A message for the user, as a part of a line; empty if there is nothing to say.
    """
    optimizer = model.optimizer
    if optimizer is None:
        _load_weights(model, weights)
        return ""
    fresh = [np.array(variable.value, copy=True) for variable in optimizer.variables]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
        _load_weights(model, weights)
    state = weights_file.state_of(str(weights), read_arrays(weights.read_bytes(), str(weights)), "")
    everything = len(structure.can_train(model)) == len(live_state.inner(optimizer)._trainable_variables)
    if everything and len(match_keras.optimizer_list(state)) == len(fresh):
        return ""
    live_state.assign(optimizer.variables, fresh)
    message = restore_optimizer(model, state)
    return f"; {message}" if message else ""


def _load_weights(model: Any, weights: Path) -> None:
    if weights.name.endswith(BEFORE):  # Keras reads the ending
        with atomic.temporary_copy(weights, ".weights.h5") as copy:
            model.load_weights(copy)
    else:
        model.load_weights(weights)
