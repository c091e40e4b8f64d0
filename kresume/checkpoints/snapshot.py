"""Reads and writes snapshots: `step-00001200/{state.safetensors, meta.json}`, always complete.

    write_snapshot(run / "snapshots", 1200, groups, records)
    state, skipped = newest_snapshot(run / "snapshots")

`state.safetensors` holds every array as `<group>/<index>`. `meta.json` is written last and holds the records, a digest
of the array file and a digest of itself. The folder is written under a temporary name, flushed to disk and renamed;
then `LATEST` is replaced. A reader verifies the digests and falls back to the previous snapshot if they do not match.

Arrays are stored as safetensors (https://github.com/huggingface/safetensors): no pickle, reading executes no code.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kresume.errors import CheckpointError, NotFinite
from kresume.storage import atomic, refusals
from kresume.storage.capture import META as META
from kresume.storage.capture import REPLACED as REPLACED
from kresume.storage.damage import interpreting, reading
from kresume.values.state import TrainState

if TYPE_CHECKING:
    import numpy as np  # imported where arrays are: `kresume log` lists a hundred runs in the time that it takes

FORMAT = 1
ARRAYS = "state.safetensors"
LATEST = "LATEST"
NOT_FINITE = "not_finite"
"""The record that names the arrays that were not finite when the run began: the only ones that may be so later. Without it,
only weights that train are checked."""
AVERAGE = "average"
"""The record that says which share of a result are the weights with which its run began."""
PENDING = "-unscored"
"""Suffix of a snapshot taken after an epoch's last step and before its scoring. The snapshot taken after the scoring
has the same step."""


def snapshot_path(directory: Path, step: int, *, pending: bool = False) -> Path:
    """Returns the folder of a step's snapshot."""
    return directory / f"step-{step:08d}{PENDING if pending else ''}"


def list_snapshots(directory: Path) -> list[tuple[int, Path]]:
    """Returns finished snapshots as (step, folder), oldest first.

    The list does not verify them; `read_snapshot` does.
    """
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
    """Writes a snapshot atomically.

    Args:
        directory: the run's `snapshots` folder.
        step: number of optimizer updates.
        groups: arrays by group, in order.
        records: JSON values that `TrainState.records` returns. `records["phase"] == "scoring"` marks the snapshot as
            pending.

    Returns:
        The snapshot's folder.

    Raises:
        NotFinite: if an array that must be finite is not, because training cannot continue from such a snapshot.
        OSError: if the disk refuses the write; the snapshots written before still exist.
    """
    import numpy as np

    if broken := broken_arrays(groups, records.get(NOT_FINITE)):
        raise NotFinite(broken, step)
    arrays = {
        f"{group}/{index}": np.asarray(array, order="C")
        for group, values in groups.items()
        for index, array in enumerate(values)
    }
    path = snapshot_path(directory, step, pending=records.get("phase") == "scoring")
    # A snapshot of this step may exist: a process that restarted from an older snapshot reaches the same step again, or
    # the same state is saved twice. The old one stays valid until the new one is complete and has the name.
    replaced = path.with_name(f"{REPLACED}{path.name}")
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    with atomic.new_directory(path, replaced) as temporary:
        bfloat16 = _save_arrays(temporary / ARRAYS, arrays)
        facts = {
            "format": FORMAT,
            "step": step,
            "records": dict(records),
            "bfloat16": bfloat16,
            "files": {
                ARRAYS: {
                    "bytes": (temporary / ARRAYS).stat().st_size,
                    "sha256": atomic.sha256_of_file(temporary / ARRAYS),
                }
            },
        }
        atomic.write_json(temporary / META, {**facts, "sha256": _digest_of_facts(facts)})
    shutil.rmtree(replaced, ignore_errors=True)
    _name_newest(directory)
    return path


def _name_newest(directory: Path) -> None:
    """Makes `LATEST` name the newest existing snapshot."""
    pointer, finished = directory / LATEST, list_snapshots(directory)
    text = f"{finished[-1][1].name}\n" if finished else ""
    if text and (not pointer.is_file() or pointer.read_text(encoding="utf-8") != text):
        atomic.write_text(pointer, text)


def broken_arrays(groups: Mapping[str, Sequence[np.ndarray]], allowed: Sequence[str] | None) -> list[str]:
    """Lists the arrays that hold a NaN or an infinity and must not.

    Args:
        groups: arrays by group, in order.
        allowed: arrays that may: a buffer of the user's own layer that starts at infinity, for example. None checks only
            the weights that train.
    """
    checked = ("trainable",) if allowed is None else ("trainable", "non_trainable", "optimizer", "statistics")
    names = ((f"{group}/{index}", array) for group in checked for index, array in enumerate(groups.get(group, ())))
    return [name for name, array in names if name not in (allowed or ()) and not is_finite(array)]


def records_of(path: Path) -> dict[str, Any]:
    """Returns the records of a snapshot without reading its arrays; empty if it cannot be read."""
    try:
        records = atomic.read_json(path / META)["records"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return records if isinstance(records, dict) else {}


def is_finite(array: np.ndarray) -> bool:
    """Returns True if no element is infinite or NaN."""
    import numpy as np

    if array.dtype.kind in "iub":
        return True
    # A sum propagates inf and NaN and costs a fraction of isfinite's temporary array.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.sum(array, dtype=np.float64)) or np.isfinite(array.astype(np.float64)).all())


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Writes the arrays, bfloat16 as the bits of uint16; returns the bfloat16 names.

    numpy has no bfloat16 of its own (ml_dtypes provides it), and safetensors' numpy interface does not support it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # safetensors replaces the file by one of mode 0600. The umask decides of this one; to ask for it is not safe in threads.
    path.touch()
    mode = path.stat().st_mode
    bfloat16 = sorted(name for name, array in arrays.items() if array.dtype.name == "bfloat16")
    try:
        save_file({name: array.view("uint16") if name in bfloat16 else array for name, array in arrays.items()}, path)
    except SafetensorError as error:  # raised for a full or missing disk
        raise refusals.named(error, path, path) or OSError(str(error)) from error
    atomic.set_mode(path, mode)
    return bfloat16


def _digest_of_facts(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_snapshot(path: Path) -> TrainState:
    """Reads and verifies a snapshot.

    Raises:
        CheckpointError: if the snapshot is incomplete or damaged; the message says what differs.
    """
    # Whoever writes a file can write its digest, too: what the digests cover may still be of any form.
    with reading(str(path), "a snapshot", CheckpointError), interpreting(f"{path}: {META}", CheckpointError):
        return _read_verified(path)


def _read_verified(path: Path) -> TrainState:
    meta_path, arrays_path = path / META, path / ARRAYS
    try:
        meta = atomic.read_json(meta_path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {META} cannot be read ({error})") from error
    if not isinstance(meta, dict) or _digest_of_facts({k: v for k, v in meta.items() if k != "sha256"}) != meta.get(
        "sha256"
    ):
        raise CheckpointError(f"{path}: {META} does not match its digest: it is damaged")
    if meta["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by a later version of kresume: upgrade with `pip install -U kresume`"
        )
    expected = meta["files"][ARRAYS]
    try:
        data = arrays_path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {ARRAYS} cannot be read ({error.strerror})") from error
    if len(data) != expected["bytes"]:
        raise CheckpointError(f"{path}: {ARRAYS} has {len(data):,} bytes, expected {expected['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path}: {ARRAYS} does not match its digest: its bytes were changed")
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


def newest_snapshot(
    directory: Path, way_on: str = "restore one from a copy of the run"
) -> tuple[TrainState, list[tuple[Path, str]]]:
    """Returns the newest snapshot that verifies, and the skipped ones with reasons.

    Args:
        directory: the snapshots' folder.
        way_on: what to do if there is none, for the message.

    Raises:
        CheckpointError: if no snapshot verifies.
    """
    skipped: list[tuple[Path, str]] = []
    for _, path in reversed(list_snapshots(directory)):
        try:
            return read_snapshot(path), skipped
        except CheckpointError as error:
            skipped.append((path, str(error).removeprefix(f"{path}: ")))
    reasons = "; ".join(f"{path.name}: {reason}" for path, reason in skipped) or "there is none"
    raise CheckpointError(f"no snapshot in {directory} can be read ({reasons}): {way_on}")


def undo_replacements(directory: Path) -> None:
    """Undoes an interrupted replacement: renames `replaced-step-N` to `step-N`.

    Call only with the run's lock held.
    """
    for _, path in list_snapshots(directory):
        if path.name.startswith(REPLACED):
            path.rename(path.with_name(path.name.removeprefix(REPLACED)))


def set_aside(path: Path) -> None:
    """Renames a snapshot so that no reader finds it.

    An earlier folder of the new name is removed.
    """
    aside = path.with_name(f"aside-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    _name_newest(path.parent)


def prune_snapshots(directory: Path, keep: int, pinned: set[int]) -> None:
    """Removes all snapshots except the newest `keep` and those of pinned steps.

    Also removes snapshots that were set aside or replaced.
    """
    finished = list_snapshots(directory)
    kept = {path for _, path in finished[-keep:]} if keep else set()
    kept |= {path for step, path in finished if step in pinned and not path.name.endswith(PENDING)}
    listed = {path for _, path in finished}
    for path in (*directory.glob("aside-*"), *directory.glob(f"{REPLACED}*")):
        if path not in listed:
            shutil.rmtree(path, ignore_errors=True)
    atomic.remove_directories(path for _, path in finished if path not in kept)
    _name_newest(directory)


def best_steps(directory: Path) -> dict[int, int | None]:
    """Returns the step of the best snapshot that each snapshot depends on.

    The value is None for a snapshot without a best epoch. Damaged snapshots are left out.
    """
    result: dict[int, int | None] = {}
    for step, path in list_snapshots(directory):
        if records := records_of(path):  # else it is damaged: `read_snapshot` reports it
            best = records.get("best")
            result[step] = int(best["step"]) if best else None
    return result


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Computes a SHA-256 over names, dtypes, shapes and bytes.

    Two checkpoints with the same digest hold the same state.
    """
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()
