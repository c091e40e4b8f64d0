"""Reads, writes and removes the files beside the snapshots in a folder of backups.

    path = newest(folder, snapshot.ARRAYS, otherwise=WEIGHTS)    # a file of the newest snapshot
    left = read_fit(folder)                                      # fit.json: the last `fit` with this folder
    logs = open_logs(folder, left, ...)                          # this process writes fit.json and the log files now
    end_fit(folder, step)                                        # `fit` returned at this step
    write_metadata(folder, records)                              # training_metadata.json, as Keras's callback writes it
    remove(folder)                                               # everything that BackupAndRestore wrote

`fit.json` holds `processes` (all that wrote for this training), `logs` (the positions of the callbacks' log files when
it began) and `returned` (the step at which `fit` returned, None while it runs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kresume.checkpoints import snapshot
from kresume.checkpoints.backup_folder import METADATA
from kresume.storage import atomic
from kresume.training.loop.callback_logs import CallbackLogs, this_process
from kresume.training.loop.writer import wait_for_writers

FIT = "fit.json"


def newest(folder: Path, name: str, *, otherwise: str, before: int = 0) -> str:
    """Returns the path of a file in one of the newest snapshots.

    Args:
        folder: the folder of the backups.
        name: the file in the snapshot.
        otherwise: the file of Keras's own backup, returned if there is no such snapshot.
        before: how many snapshots are newer than the requested one.
    """
    wait_for_writers(folder)
    snapshots = snapshot.list_snapshots(folder)
    return str(snapshots[-1 - before][1] / name if len(snapshots) > before else folder / otherwise)


def read_fit(folder: Path) -> dict[str, Any]:
    """Reads `fit.json` of the last `fit` with this folder; empty if there was none."""
    path = folder / FIT
    left: dict[str, Any] = atomic.read_json(path) if path.is_file() else {}
    return left


def open_logs(
    folder: Path,
    left: Mapping[str, Any],
    saved: Mapping[str, Any] | None,
    callbacks: Sequence[Any],
    epoch: int,
    say: Callable[[str], None],
) -> CallbackLogs:
    """Resets the callbacks' log files to the position where this training starts.

    Also records this process in `fit.json` as their writer.

    Args:
        folder: the folder of the backups.
        left: the result of `read_fit` when this `fit` began.
        saved: the position of each log file at the start of this training; None if not recorded.
        callbacks: all other callbacks of `fit`.
        epoch: the index of the epoch that begins now.
        say: prints one line for the user.
    """
    processes = left.get("processes", [])
    logs = CallbackLogs(callbacks, say)
    logs.begin(saved, processes, epoch)
    begun = {
        "processes": sorted({*processes, this_process()}),
        "logs": left.get("logs") or logs.positions(),
        "returned": None,
    }
    atomic.write_json(folder / FIT, begun)
    return logs


def end_fit(folder: Path, step: int) -> None:
    """Records that `fit` returned, and at which step."""
    atomic.write_json(folder / FIT, {**read_fit(folder), "returned": step})


def write_metadata(folder: Path, records: Mapping[str, Any]) -> None:
    """Writes the epoch and the batch of a backup to the file that scripts read."""
    atomic.write_json(folder / METADATA, {"epoch": records["epoch"], "batch": records["batch"]})


def remove(folder: Path) -> None:
    """Removes every file that `BackupAndRestore` wrote, and no other."""
    snapshot.prune_snapshots(folder, 0, set())
    for name in (snapshot.LATEST, METADATA, FIT):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("images-*.parquet"):
        path.unlink(missing_ok=True)
    atomic.flush_directory(folder)  # else the next fit could find a training that is done
