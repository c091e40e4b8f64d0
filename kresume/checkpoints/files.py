"""Records which files a checkpoint has, and tells later if they are still the same.

    files = describe_files(state, run)              # {"base.keras": {"bytes": ..., "mtime_ns": ..., "sha256": ...}}
    compare_files(Path("ckpt/base.keras"), files)   # Comparison("unchanged")

A file of the same size and time counts as unchanged. Another time alone says nothing, because copying changes it: then
the content decides. This module imports neither Keras nor TensorFlow nor JAX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from kresume import runs
from kresume.checkpoints.snapshot import ARRAYS, AVERAGE, META, list_snapshots, snapshot_path
from kresume.storage import atomic
from kresume.values.state import TrainState

FileState = Literal["unchanged", "changed", "missing", "moved", "unknown"]
LARGEST_INDEX = 64 * 2**20
"""Bytes of the largest JSON file that is read as an index of shards."""


@dataclass(frozen=True)
class Comparison:
    """How the files of a checkpoint compare with those that were recorded.

    Attributes:
        state: `"moved"` is for callers that search for them elsewhere; `"unknown"` if nothing was recorded.
        reason: what differs, or empty.
    """

    state: FileState
    reason: str = ""


def describe_files(state: TrainState, run: runs.Run | None) -> dict[str, dict[str, Any]]:
    """Describes the files of a checkpoint that was just read.

    Args:
        state: its content.
        run: the run that it belongs to; None for a bare checkpoint.

    Returns:
        Bytes, modification time and SHA-256 by name, relative to `_root` of the path. Empty if the files cannot be read any
        more: the training has what it needs, and the log says that they are unknown.
    """
    path = run.path if run is not None else Path(state.source)
    found = _of_run(run, state) if run is not None else _of_checkpoint(state)
    try:
        return {str(file.relative_to(_root(path))): _describe(file) for file in found}
    except (OSError, ValueError):
        return {}


def compare_files(path: Path, files: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Compares the files of a checkpoint with those that were recorded.

    Args:
        path: the checkpoint, or the run's directory.
        files: the result of `describe_files`.
    """
    if not files:
        return Comparison("unknown", "its files were not recorded")
    root, lost, differing = _root(path), [], []
    for name, before in files.items():
        try:
            if not _is_same(root / name, before):
                differing.append(name)
        except FileNotFoundError:
            lost.append(name)
        except OSError as error:
            return Comparison("unknown", f"{name} cannot be read ({error.strerror or type(error).__name__})")
    if len(lost) == len(files) and not path.exists():
        return Comparison("missing", "nothing is there any more")
    if lost:
        return Comparison("missing", f"{_first(lost)} {'are' if len(lost) > 1 else 'is'} no longer there")
    if differing:
        which = "" if len(files) == 1 else f"{_first(differing)} {'have' if len(differing) > 1 else 'has'} "
        return Comparison("changed", f"{which}another content")
    return Comparison("unchanged")


def result_content(run: runs.Run) -> str | None:
    """Returns the SHA-256 of the arrays of a run's result, from its snapshot's record; else None."""
    step = run.result_step()
    if step is None:
        return None
    try:
        return _content(snapshot_path(run.result_snapshots, step) / ARRAYS)
    except OSError:
        return None


def _root(path: Path) -> Path:
    """Returns the folder to which names are relative: the checkpoint, if it is one, else its folder."""
    return path if path.is_dir() else path.parent


def _of_run(run: runs.Run, state: TrainState) -> list[Path]:
    """Returns the arrays' file of the snapshot that was read."""
    step = int(state.step or 0) - run.record.base_step
    folder = run.averaged if AVERAGE in state.records else run.snapshots
    taken = [path for each, path in list_snapshots(folder) if each == step]
    return [taken[-1] / ARRAYS] if taken else []


def _of_checkpoint(state: TrainState) -> list[Path]:
    from kresume.checkpoints import tf_checkpoint  # here: it needs numpy, and most logs compare files of runs

    path = Path(state.source)
    if state.format == "tf-checkpoint" and (prefix := tf_checkpoint.prefix_of(state.source)) is not None:
        return sorted(file for file in Path(prefix).parent.glob(f"{_escaped(Path(prefix).name)}.*") if file.is_file())
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path, *_shards(path)] if path.is_file() else []


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _shards(path: Path) -> list[Path]:
    """Returns the files that a JSON index of shards names; empty for any other file."""
    if path.suffix != ".json" or path.stat().st_size > LARGEST_INDEX:
        return []
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        names = {name for each in named for name in ([each] if isinstance(each, str) else each)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return sorted(path.parent / name for name in names if (path.parent / name).is_file())


def _describe(file: Path) -> dict[str, Any]:
    facts = file.stat()
    return {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": _content(file)}


def _is_same(file: Path, before: Mapping[str, Any]) -> bool:
    facts = file.stat()
    if facts.st_size != before.get("bytes"):
        return False
    return facts.st_mtime_ns == before.get("mtime_ns") or _content(file) == before.get("sha256")


def _content(file: Path) -> str:
    """Returns the SHA-256 of a file.

    That of a snapshot's arrays is read from the record beside them, which costs less.
    """
    if file.name == ARRAYS and (file.parent / META).is_file():
        try:
            return str(atomic.read_json(file.parent / META)["files"][ARRAYS]["sha256"])
        except (ValueError, KeyError, TypeError):
            pass  # damaged: the bytes decide
    facts = file.stat()
    return _hashed(str(file), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hashed(file: str, size: int, mtime_ns: int) -> str:
    """Returns the SHA-256 of a file, computed once however many runs have this parent."""
    return atomic.sha256_of_file(Path(file))


def _first(names: list[str]) -> str:
    return f"{len(names):,} files, {names[0]} for example," if len(names) > 1 else names[0]
