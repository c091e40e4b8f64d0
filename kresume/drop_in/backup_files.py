"""Reads, writes and removes the files beside the snapshots in a folder of backups.

    path = newest(folder, snapshot.ARRAYS, otherwise=WEIGHTS)    # a file of the newest snapshot
    left = read_fit(folder)                                      # fit.json: the last `fit` with this folder
    folder, note = folder_of(base, fit)                          # base, or base/fits/NAME if base is another fit's
    logs = open_logs(folder, left, ...)                          # this process writes fit.json and the log files now
    end_fit(folder, step, removes=False, stays=None)             # `fit` returned at this step
    write_metadata(folder, records)                              # training_metadata.json, as Keras's callback writes it
    remove(folder)                                               # everything that BackupAndRestore wrote

`fit.json` holds `processes` (all that wrote for this training), `logs` (the positions of the callbacks' log files when
it began), `returned` (the step at which `fit` returned, None while it runs) and `fit` (which call of the script it is).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kresume.checkpoints import snapshot
from kresume.checkpoints.backup_folder import METADATA, WEIGHTS
from kresume.drop_in.fit_of_script import FITS, Fit
from kresume.errors import RunError
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


def make_folder(folder: Path, backup_dir: str) -> None:
    """Makes the folder of the backups of a fit.

    Args:
        folder: where they will be.
        backup_dir: as the user gave it.

    Raises:
        RunError: it cannot be made.
    """
    try:
        atomic.make_directory(folder)
    except OSError as error:
        raise RunError(f"backup_dir={backup_dir!r}: the folder cannot be made ({error}): give another one") from error


def read_fit(folder: Path) -> dict[str, Any]:
    """Reads `fit.json` of the last `fit` with this folder; empty if there is none, or it is damaged.

    Without it any fit may continue, and the snapshots are verified by themselves.
    """
    try:
        left: dict[str, Any] = atomic.read_json(folder / FIT)
        if "fit" in left:
            Fit.from_dict(left["fit"])
            int(left["returned"] or 0)
        return {**left, "processes": [str(each) for each in left.get("processes", ())]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def folder_of(base: Path, fit: Fit) -> tuple[Path, str]:
    """Returns the folder for the backups of a fit, and a line for the user; empty if nothing is unusual.

    Args:
        base: the folder that the script names.
        fit: the fit that begins.
    """
    left = {folder: record for folder in (base, *sorted((base / FITS).glob("*/"))) if (record := _whose(folder))}
    for folder, other in left.items():
        if isinstance(other, str):
            return folder, _damaged(folder, fit)
        if fit.wrote(other):
            return folder, fit.doubt(other, str(folder))
    if base not in left:
        return base, ""
    other, folder = left[base], base / FITS / fit.name
    what = other.describe() if isinstance(other, Fit) else ""
    return (
        folder,
        f"{base}: holds the backup of another fit of this script ({what}), which is kept; this one's are in {folder}"
        f"{fit.way_to(other) if isinstance(other, Fit) else ''}",
    )


def _whose(folder: Path) -> Fit | str:
    """Returns the fit that was interrupted in a folder.

    `"unknown"` where any fit may continue: one that returned and kept its backup, an older or a foreign backup. Empty
    without a backup.
    """
    wait_for_writers(folder)
    record = read_fit(folder)
    if "fit" in record and record["returned"] is None:
        return Fit.from_dict(record["fit"])
    return "unknown" if record or (folder / WEIGHTS).is_file() or snapshot.list_snapshots(folder) else ""


def _damaged(folder: Path, fit: Fit) -> str:
    """Returns a line for the user if a damaged file hides which fit a backup is of; else an empty string."""
    if read_fit(folder) or not (folder / FIT).is_file():
        return ""
    return (
        f"{folder / FIT}: is damaged, so which fit of this script was interrupted is unknown: its backup is taken for that of "
        f"{fit.describe()}. If it is of another one, stop, and run that one alone"
    )


def open_logs(
    folder: Path,
    fit: Fit,
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
        fit: the fit that begins.
        left: the result of `read_fit` when this `fit` began.
        saved: the position of each log file at the start of this training; None if not recorded.
        callbacks: all other callbacks of `fit`.
        epoch: the index of the epoch that begins now.
        say: prints one line for the user.
    """
    processes = left.get("processes", [])
    base = folder.parent.parent if folder.parent.name == FITS else folder
    logs = CallbackLogs(callbacks, say, f"{base}: {fit.name}")
    logs.begin(saved, processes, epoch)
    begun = {
        "processes": sorted({*processes, this_process()}),
        "logs": left.get("logs") or logs.positions(),
        "returned": None,
        "fit": fit.as_dict(),
    }
    atomic.write_json(folder / FIT, begun)
    return logs


def end_fit(folder: Path, step: int, *, removes: bool, stays: Mapping[str, Any] | None) -> None:
    """Records that `fit` returned, or removes its backups.

    Args:
        folder: the folder of the backups.
        step: at which it returned.
        removes: True removes the backups.
        stays: the record of the fit whose backup stays, which another fit must not continue from; else None.
    """
    if removes:
        remove(folder)
    else:
        atomic.write_json(folder / FIT, dict(stays) if stays is not None else {**read_fit(folder), "returned": step})


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


def remove_empty(folder: Path, base: Path) -> None:
    """Removes the folder of a fit and those above it, up to `base`, as far as they are empty."""
    while folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        if folder == base:
            return
        folder = folder.parent
