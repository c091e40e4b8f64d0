"""Reads checkpoints of any supported format.

    state = read_checkpoint("ckpt/")

A format is one file with `accepts(path) -> bool` and `read(path) -> TrainState`, and one entry in `READERS`. Both run
inside of `storage.damage.reading`: what a library raises on damaged bytes becomes a CheckpointError that names the file.
"""

from __future__ import annotations

import datetime
import difflib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kresume.checkpoints import (
    backup_folder,
    content,
    keras_file,
    legacy_h5,
    orbax_folder,
    own_backup,
    packed,
    run,
    saved_model,
    tf_checkpoint,
    torch_file,
    weights_file,
)
from kresume.checkpoints.beside import with_files_beside
from kresume.checkpoints.hub_classes import is_preset
from kresume.errors import CheckpointError, MissingCheckpoint, UsageError
from kresume.spelling import option
from kresume.staging.fetch import here
from kresume.storage import sealed
from kresume.storage.damage import reading
from kresume.storage.model_folders import find_saved_model
from kresume.values.state import TrainState


@dataclass(frozen=True)
class Reader:
    """The reader of one format.

    Attributes:
        accepts: returns True if the content at a path has this format.
        read: reads the checkpoint.
        called: the format's name in messages.
        endings: usual file endings of the format. If no reader recognises the content of a file, the reader of its
            ending reports the damage.
    """

    accepts: Callable[[str], bool]
    read: Callable[[str], TrainState]
    called: str
    endings: tuple[str, ...] = ()


FEW = 12
"""Largest number of checkpoints that an error message lists."""

READERS: dict[str, Reader] = {
    "run": Reader(run.accepts, run.read, "a run of kresume"),
    "keras": Reader(keras_file.accepts, keras_file.read, "a .keras file", keras_file.ENDINGS),
    "backup": Reader(backup_folder.accepts, backup_folder.read, "a folder of Keras's BackupAndRestore"),
    "kresume-backup": Reader(
        own_backup.accepts, own_backup.read, "a folder of kresume's BackupAndRestore or a snapshot"
    ),
    "weights-h5": Reader(
        weights_file.accepts, weights_file.read, "a .weights.h5 or sharded .weights.json", weights_file.ENDINGS
    ),
    "legacy-h5": Reader(legacy_h5.accepts, legacy_h5.read, "an .h5 of Keras 2 or its legacy form", legacy_h5.ENDINGS),
    "torch": Reader(
        torch_file.accepts, torch_file.read, "a PyTorch state dict (.pth, .pt, .safetensors)", torch_file.ENDINGS
    ),
    "orbax": Reader(orbax_folder.accepts, orbax_folder.read, "a folder of Orbax"),
    "saved-model": Reader(saved_model.accepts, saved_model.read, "a SavedModel"),
    "tf-checkpoint": Reader(tf_checkpoint.accepts, tf_checkpoint.read, "a tf.train.Checkpoint (folder or prefix)"),
}
"""Readers in the order in which they are tried; the first that accepts the path reads it."""


def recognise(path: str) -> str | None:
    """Returns the format's name at `path`, by content or else by file ending.

    Returns None if no reader knows the path.
    """
    return _recognise(path)[0]


def _recognise(path: str) -> tuple[str | None, CheckpointError | None]:
    """Returns the format's name at `path`, and the first reader's reason not to look at the content."""
    refused: CheckpointError | None = None
    for name, reader in READERS.items():
        try:
            with reading(path, reader.called, CheckpointError):
                if reader.accepts(path):
                    return name, None
        # Content that one reader cannot look at may be of another's format.
        except CheckpointError as error:
            refused = refused or error
    by_ending = (name for name, reader in READERS.items() if reader.endings and path.endswith(reader.endings))
    return (next(by_ending, None) if Path(path).is_file() else None), refused


def read_checkpoint(path: str | os.PathLike[str], optimizer_from: str | os.PathLike[str] | None = None) -> TrainState:
    """Reads a checkpoint of any known format.

    Args:
        path: the checkpoint, on a disk or at an address (`gs://`, `s3://`), from which it is fetched.
        optimizer_from: a separate file with the optimizer's state dict, for PyTorch weights.

    Raises:
        UsageError: if `optimizer_from` is given with another format than PyTorch's.
        MissingCheckpoint: if nothing exists at `path`.
        CheckpointError: if it is not a checkpoint, or it is damaged.
    """
    path, optimizer_from = here(path), None if optimizer_from is None else here(optimizer_from)
    if Path(path).is_dir() and is_preset(Path(path)):
        preset = f"hub:{path}"
        raise CheckpointError(
            f"{path} is a preset of keras-hub, a network without its training: start a new model with its weights by "
            f"{option('model', preset)}, without {option('from')}"
        )
    name, refused = _recognise(path)
    if optimizer_from is not None and name is not None and name != "torch":
        raise UsageError(
            f"{option('optimizer-from', os.fspath(optimizer_from))} is only for PyTorch weights, but {path} is "
            f"{READERS[name].called}: leave it out"
        )
    if name is not None:
        path = str(find_saved_model(path) or path) if name == "saved-model" else path
        sealed.check(path)
        with reading(path, READERS[name].called, CheckpointError):
            optimizer = os.fspath(optimizer_from) if optimizer_from is not None else None
            state = READERS[name].read(path) if optimizer is None else torch_file.read(path, optimizer)
            return with_files_beside(state)
    if refused is not None:
        raise refused
    plain, which = run.split(path)
    if not plain.exists():
        beside = [child.name for child in plain.parent.iterdir()] if plain.parent.is_dir() else []
        near = difflib.get_close_matches(plain.name, beside, 1, 0.7)
        meant = f", did you mean {plain.parent / near[0]}?" if near else ""
        raise MissingCheckpoint(f"no checkpoint at {path} (looked from {Path.cwd()}): the path does not exist{meant}")
    if which:
        raise CheckpointError(f"{plain} is not a run, so {path} names no snapshot: @ chooses a snapshot of a run")
    if plain.is_dir() and len(inside := _files_in(plain)) == 1:
        return read_checkpoint(_as_given(inside[0]), optimizer_from)
    if plain.is_dir():
        _explain_folder(plain)
    archive = packed.explain(plain)
    if archive is not None:
        raise CheckpointError(archive)
    known = ", ".join(reader.called for reader in READERS.values())
    raise CheckpointError(f"{path} is not a checkpoint that kresume can read; supported are {known}")


PREFIX = ".index"
"""Ending of TensorFlow's index file; the path without it is the checkpoint's prefix."""
ENDINGS = (*(ending for reader in READERS.values() for ending in reader.endings), PREFIX)


def _as_given(path: Path) -> str:
    """Returns the path that a user types; for TensorFlow's index the prefix."""
    return str(path) if content.kind_of(path) is not None else str(path).removesuffix(PREFIX)


def _date(path: Path) -> str:
    """Returns the modification time of a file as `ls -l` shows it."""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")


def _files_in(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, oldest first.

    For sharded weights, the list has only the index, not the shards.
    """
    files = [path for path in folder.iterdir() if path.name.endswith(ENDINGS) or content.kind_of(path) is not None]
    indexed = {path.name.removesuffix("json") for path in files if path.name.endswith(".weights.json")}
    if indexed:
        stems = tuple(name.removesuffix(".weights.") for name in indexed)
        files = [path for path in files if not (path.name.endswith(".weights.h5") and path.name.startswith(stems))]
    return sorted(files, key=lambda path: path.stat().st_mtime)


def _explain_folder(folder: Path) -> None:
    inside, files = sorted(folder.iterdir()), _files_in(folder)
    if not inside:
        raise CheckpointError(f"{folder} is empty: expected a checkpoint in it")
    if files:
        dates = ", ".join(f"{Path(_as_given(path)).name} ({_date(path)})" for path in reversed(files[-FEW:]))
        more = f", and {len(files) - FEW:,} older" if len(files) > FEW else ""
        count = f"{len(files):,} checkpoints and no index"
        raise CheckpointError(
            f"{folder} holds {count}, newest first: {dates}{more}; give the one to start from, for example "
            f"{option('from', shlex.quote(_as_given(files[-1])))}"
        )
