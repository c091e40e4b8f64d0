"""Reads the folder of `kresume.BackupAndRestore`, or a single snapshot.

    state = read("backup/")                                  # the newest that verifies
    state = read("runs/2-signs/snapshots/step-00001200")     # as RUN@1200
    state = read("backup/step-00001200")

A backup holds every array with its location in the model, and the optimizer's class and settings. It holds no
architecture: the user's script builds the model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.checkpoints import run as run_reader
from kresume.checkpoints import snapshot
from kresume.checkpoints.keras_arrays import described, rate_from, unwrapped
from kresume.errors import CheckpointError
from kresume.values.state import SavedOptimizer, SavedRate, TrainState

RATE = "optimizer/1"
"""Name of a float rate: Keras stores it after the iteration count."""


def accepts(path: str) -> bool:
    """Returns True if `path` is a snapshot, or a backup folder of snapshots."""
    folder = Path(path)
    return (folder / snapshot.META).is_file() or (folder.is_dir() and bool(snapshot.list_snapshots(folder)))


def read(path: str) -> TrainState:
    """Reads a snapshot, or the newest snapshot of a folder that verifies.

    `records` holds `interrupted`, and the `epoch` and `batch` of the backup.

    Raises:
        CheckpointError: if the snapshot is damaged, or all snapshots of the folder are.
    """
    folder = Path(path)
    if (folder / snapshot.META).is_file():
        owner = folder.absolute().parent.parent
        state = snapshot.read_snapshot(folder)
        if runs.is_run(owner):
            return _of_run(path, owner, f"@{state.step}", averaged=folder.absolute().parent.name == runs.AVERAGED)
    elif runs.is_run(folder.absolute().parent):
        return _of_run(path, folder.absolute().parent, "@last", averaged=folder.absolute().name == runs.AVERAGED)
    else:
        state, skipped = snapshot.newest_snapshot(folder)
        if skipped:
            reasons = "; ".join(f"{damaged.name}: {reason}" for damaged, reason in skipped)
            state = replace(state, records={**state.records, "passed_over": reasons})
    optimizer = _optimizer(state)
    return replace(
        state,
        source=path,
        format="kresume-backup",
        optimizer=optimizer,
        rate=_rate(state, optimizer),
        writer="kresume",
        records={**state.records, "interrupted": True},
    )


def _of_run(path: str, owner: Path, which: str, *, averaged: bool) -> TrainState:
    """Reads a snapshot in a run's folder with all that the run knows; an average is the run's result.

    Raises:
        CheckpointError: it is an average that a killed process left.
    """
    if averaged and runs.open_run(owner).result_snapshots.name != runs.AVERAGED:
        raise CheckpointError(f"{path} was left by a process that ended before the run was finished: give {owner}")
    return replace(run_reader.read(f"{owner}{'' if averaged else which}"), source=path)


def _optimizer(state: TrainState) -> SavedOptimizer | None:
    count = sum(name.startswith("optimizer/") for name in state.arrays)
    saved: Any = state.records.get("optimizer")
    if not count:
        return None
    inner = unwrapped(saved)
    return described(inner, count, inner is not None and inner is not saved)


def _rate(state: TrainState, optimizer: SavedOptimizer | None) -> SavedRate | None:
    rate = (optimizer.config or {}).get("learning_rate") if optimizer is not None else None
    scaled = optimizer is not None and optimizer.loss_scale
    return rate_from(rate, state.arrays.get(RATE) if not scaled else None)
