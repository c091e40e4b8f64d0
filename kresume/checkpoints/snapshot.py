"""Our own checkpoint: `step-00001200/{state.safetensors, meta.json}`, complete or not there at all.

    write_snapshot(run / "snapshots", 1200, groups, records)
    state, skipped = newest_snapshot(run / "snapshots")

`state.safetensors` holds every array under `<group>/<index>`; `meta.json`, written last, holds the records, a digest of the
arrays' file and one of itself. The folder is written under another name, flushed to the disk and renamed; then `LATEST`
is replaced. A reader trusts only what verifies, and falls back to the snapshot before.

The arrays' format is safetensors (https://github.com/huggingface/safetensors): no pickle, nothing is executed on reading.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kresume import files
from kresume.checkpoints.state import TrainState
from kresume.errors import CheckpointError

FORMAT = 1
ARRAYS = "state.safetensors"
META = "meta.json"
LATEST = "LATEST"
REPLACED = "replaced-"
"""Begins the name of a snapshot of the same step for the instant in which the new one takes its place."""
PENDING = "-unscored"
"""Ends the name of a snapshot that was taken after an epoch's last step with its scoring still to do: the one taken after
the scoring has the same step."""


def snapshot_path(directory: Path, step: int, *, pending: bool = False) -> Path:
    """The folder of a step's snapshot."""
    return directory / f"step-{step:08d}{PENDING if pending else ''}"


def list_snapshots(directory: Path) -> list[tuple[int, Path]]:
    """Finished snapshots, oldest first: (step, folder). Whether they verify is found out when they are read."""
    found = []
    for path in (*directory.glob("step-*"), *directory.glob(f"{REPLACED}step-*")):
        name = path.name.removeprefix(REPLACED)
        match = re.fullmatch(rf"step-(\d+)({PENDING})?", name)
        if match and path.is_dir() and (path.name == name or not (directory / name).is_dir()):
            found.append((int(match[1]), match[2] is None, path))
    return [(step, path) for step, _, path in sorted(found)]


def write_snapshot(
    directory: Path, step: int, groups: Mapping[str, Sequence[np.ndarray]], records: Mapping[str, Any]
) -> Path:
    """Writes a snapshot, whole or not at all.

    Args:
        directory: the run's `snapshots` folder.
        step: optimizer updates done.
        groups: arrays by group, in order.
        records: JSON values that `TrainState.records` gives back. `records["phase"] == "scoring"` marks it as pending.

    Returns:
        Its folder.

    Raises:
        CheckpointError: a weight is not finite: a snapshot that nobody can train on from is worth less than none.
        OSError: the disk refused; what stood before stands.
    """
    for index, array in enumerate(groups.get("trainable", ())):
        if not is_finite(array):
            raise CheckpointError(f"weight {index} is not finite at step {step:,}: no snapshot of it is kept")
    arrays = {
        f"{group}/{index}": np.asarray(array, order="C")
        for group, values in groups.items()
        for index, array in enumerate(values)
    }
    path = snapshot_path(directory, step, pending=records.get("phase") == "scoring")
    # One may stand there: of an earlier process that went back to an older one and came here again, by the same steps, or of
    # this very state. It stays until the new one is complete, and counts until that has its name.
    replaced = path.with_name(f"{REPLACED}{path.name}")
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    with files.new_directory(path, replaced) as temporary:
        brief = _save_arrays(temporary / ARRAYS, arrays)
        facts = {
            "format": FORMAT,
            "step": step,
            "records": dict(records),
            "bfloat16": brief,
            "files": {
                ARRAYS: {
                    "bytes": (temporary / ARRAYS).stat().st_size,
                    "sha256": files.sha256_of_file(temporary / ARRAYS),
                }
            },
        }
        files.write_json(temporary / META, {**facts, "sha256": _digest_of_facts(facts)})
    shutil.rmtree(replaced, ignore_errors=True)
    _name_newest(directory)
    return path


def _name_newest(directory: Path) -> None:
    """Makes `LATEST` name the newest snapshot that is there."""
    pointer, finished = directory / LATEST, list_snapshots(directory)
    text = f"{finished[-1][1].name}\n" if finished else ""
    if text and (not pointer.is_file() or pointer.read_text(encoding="utf-8") != text):
        files.write_text(pointer, text)


def is_finite(array: np.ndarray) -> bool:
    """Tells whether no element is infinite or not a number."""
    if array.dtype.kind in "iub":
        return True
    # Sums propagate what is not finite, and cost a fraction of isfinite's temporary array.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.sum(array, dtype=np.float64)) or np.isfinite(array.astype(np.float64)).all())


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Writes the arrays and returns the names of those of bfloat16, which stand as the same bits of uint16.

    numpy has no bfloat16 of its own (it comes with ml_dtypes), and safetensors' numpy side does not know it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    brief = sorted(name for name, array in arrays.items() if array.dtype.name == "bfloat16")
    try:
        save_file({name: array.view(np.uint16) if name in brief else array for name, array in arrays.items()}, path)
    except SafetensorError as error:  # what it makes of a full or absent disk
        raise OSError(str(error)) from error
    return brief


def _digest_of_facts(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_snapshot(path: Path) -> TrainState:
    """Reads and verifies a snapshot.

    Raises:
        CheckpointError: it is incomplete or damaged; the message says what differs.
    """
    meta_path, arrays_path = path / META, path / ARRAYS
    try:
        meta = files.read_json(meta_path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {META} cannot be read ({error})") from error
    if not isinstance(meta, dict) or _digest_of_facts({k: v for k, v in meta.items() if k != "sha256"}) != meta.get(
        "sha256"
    ):
        raise CheckpointError(f"{path}: {META} does not have its digest: it was damaged")
    if meta["format"] > FORMAT:
        raise CheckpointError(f"{path} was written by a later kresume: upgrade with `pip install -U kresume`")
    expected = meta["files"][ARRAYS]
    try:
        data = arrays_path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {ARRAYS} cannot be read ({error.strerror})") from error
    if len(data) != expected["bytes"]:
        raise CheckpointError(f"{path}: {ARRAYS} has {len(data):,} bytes, {expected['bytes']:,} were written")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path}: {ARRAYS} does not have its digest: its bytes were changed")
    import ml_dtypes
    from safetensors.numpy import load

    arrays = load(data)
    arrays |= {name: arrays[name].view(ml_dtypes.bfloat16) for name in meta["bfloat16"]}
    return TrainState(
        source=str(path),
        format="snapshot",
        layout="groups",
        arrays=arrays,
        step=int(meta["step"]),
        records=meta["records"],
    )


def newest_snapshot(directory: Path) -> tuple[TrainState, list[tuple[Path, str]]]:
    """The newest snapshot that verifies, and those that do not with the reason of each.

    Raises:
        CheckpointError: none verifies.
    """
    skipped: list[tuple[Path, str]] = []
    for _, path in reversed(list_snapshots(directory)):
        try:
            return read_snapshot(path), skipped
        except CheckpointError as error:
            skipped.append((path, str(error).removeprefix(f"{path}: ")))
    reasons = "; ".join(f"{path.name}: {reason}" for path, reason in skipped) or "there is none"
    raise CheckpointError(f"no snapshot in {directory} can be read ({reasons}): restore one from a copy of the run")


def put_back(directory: Path) -> None:
    """Gives a snapshot its name back whose successor of the same step did not get it. Holder of the lock only."""
    for _, path in list_snapshots(directory):
        if path.name.startswith(REPLACED):
            path.rename(path.with_name(path.name.removeprefix(REPLACED)))


def set_aside(path: Path) -> None:
    """Renames a snapshot so that nothing reads it any more; an earlier one under that name is removed."""
    aside = path.with_name(f"aside-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    _name_newest(path.parent)


def prune_snapshots(directory: Path, keep: int, pinned: set[int]) -> None:
    """Removes all but the newest `keep` snapshots and those of the pinned steps, and what was set aside."""
    finished = list_snapshots(directory)
    kept = {path for _, path in finished[len(finished) - keep :]} if keep else set()
    kept |= {path for step, path in finished if step in pinned and not path.name.endswith(PENDING)}
    listed = {path for _, path in finished}
    for path in (*directory.glob("aside-*"), *directory.glob(f"{REPLACED}*")):
        if path not in listed:
            shutil.rmtree(path, ignore_errors=True)
    for _, path in finished:
        if path not in kept:
            # Renamed first: a removal that is killed half way must not leave a snapshot that looks complete.
            gone = files.temporary_beside(path)
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
    _name_newest(directory)


def pins(directory: Path) -> dict[int, int | None]:
    """For each snapshot the step of the best one that it relies on, or None."""
    result: dict[int, int | None] = {}
    for step, path in list_snapshots(directory):
        try:
            best = files.read_json(path / META)["records"].get("best")
        except (OSError, ValueError, KeyError):
            continue  # damaged: whoever reads it is told
        result[step] = int(best["step"]) if best else None
    return result


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes: two checkpoints with the same digest hold the same state."""
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()
