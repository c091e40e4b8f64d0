"""Reads a `.keras` file without running any code from it.

    state = read("model.keras")

The archive (https://keras.io/guides/serialization_and_saving) holds `config.json` (architecture and compile config),
`metadata.json` (writer and date), `model.weights.h5`, and, if kresume wrote it, `kresume.json` (the model card). Keras
reads the weights by class name and order, and silently loads flipped bits in the HDF5 data. This reader verifies the
archive's checksums first. Nothing is extracted: members are read into memory, by name, up to their checked size. The
same content as a plain folder (`model.save(path, zipped=False)`) has no checksums.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kresume.checkpoints import content, keras_2, keras_2_optimizers
from kresume.checkpoints.hdf5 import read_arrays
from kresume.checkpoints.json_text import LARGEST, read_object
from kresume.checkpoints.keras_arrays import OPTIMIZER, optimizer_arrays, optimizer_of, rate_of, step_of, tidy
from kresume.errors import CheckpointError
from kresume.values.card import Card
from kresume.values.state import UNDECAYED, SavedOptimizer, TrainState

ENDINGS = (".keras",)
CARD = "kresume.json"
CONFIG = "config.json"
METADATA = "metadata.json"
WEIGHTS = "model.weights.h5"
SMALL = 64 * 2**20
LARGEST_EXPANSION = 1000
"""Largest compression ratio of a member above `SMALL` bytes; deflate's own limit is about that. A higher ratio marks a
zip bomb."""


def accepts(path: str) -> bool:
    """Returns True for a Keras archive, or its content as a folder.

    The file ending does not matter.
    """
    file = Path(path)
    if file.is_dir():
        return (file / WEIGHTS).is_file() and (file / CONFIG).is_file()
    return content.kind_of(file) == "keras-archive"


def read(path: str) -> TrainState:
    """Reads weights, optimizer state, architecture, compile config and card.

    Raises:
        CheckpointError: if the file is truncated, damaged, hostile, or no Keras archive.
    """
    if Path(path).is_dir():
        return _read_members(path, lambda name: _file(Path(path) / name))
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            return _read_members(path, lambda name: archive.read(name) if name in archive.namelist() else None)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}), not a complete .keras archive: use an earlier copy"
        ) from error


def read_architecture(path: str) -> dict[str, Any]:
    """Reads only the architecture of a Keras archive, with its compile config, in Keras 3's form.

    Raises:
        CheckpointError: as `read` does.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            config, metadata = (
                _object(archive.read(name) if name in archive.namelist() else None, name, path)
                for name in (CONFIG, METADATA)
            )
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}), not a complete .keras archive") from error
    if keras_2.is_keras_2(metadata.get("keras_version", "3")):
        config, _ = _in_keras_3(config, config.get("compile_config"), path)
    return config


def _file(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _check_members(archive: zipfile.ZipFile, path: str) -> None:
    names: set[str] = set()
    for info in archive.infolist():
        if info.filename in names:
            raise CheckpointError(f"{path}: two members are named {info.filename}: refused")
        names.add(info.filename)
        if content.points_outside(info.filename):
            raise CheckpointError(f"{path}: the member {info.filename} points outside the archive: refused")
        if info.file_size > SMALL and info.file_size > LARGEST_EXPANSION * info.compress_size:
            raise CheckpointError(
                f"{path}: the member {info.filename} claims {info.file_size:,} bytes, but only {info.compress_size:,} are "
                "stored: refused"
            )
        if info.filename in {CONFIG, METADATA, CARD} and info.file_size > LARGEST:
            raise CheckpointError(f"{path}: the member {info.filename} claims {info.file_size:,} bytes: refused")


def _read_members(path: str, member: Callable[[str], bytes | None]) -> TrainState:
    config = _object(member(CONFIG), CONFIG, path)
    metadata = _object(member(METADATA), METADATA, path)
    kept = member(CARD)
    extra = _object(kept, CARD, path) if kept is not None else {}
    weights = member(WEIGHTS)
    if weights is None:
        raise CheckpointError(f"{path} is not a .keras archive: it has no member {WEIGHTS}")
    arrays = tidy(read_arrays(weights, path))
    compiled = config.get("compile_config")
    if keras_2.is_keras_2(metadata.get("keras_version", "3")):
        config, compiled = _in_keras_3(config, compiled, path)
        arrays = _with_slots_of_keras_3(compiled, arrays)
    return TrainState(
        source=path,
        format="keras",
        layout="keras",
        arrays=arrays,
        architecture=config,
        compiled=compiled,
        optimizer=_with_undecayed(optimizer_of(compiled, arrays), extra.get(UNDECAYED), path),
        step=int(extra["step"]) if extra.get("step") is not None else step_of(arrays),
        rate=rate_of(compiled, arrays, extra.get("peak")),
        card=_card(extra, path) if extra else None,
        writer=f"keras {metadata.get('keras_version', 'of unknown version')}",
        written=str(metadata.get("date_saved", "")).replace("@", "T"),
        records={"feed": str(extra["feed"])} if extra.get("feed") else {},
    )


def _with_undecayed(saved: SavedOptimizer | None, names: Any, path: str) -> SavedOptimizer | None:
    """Adds what the optimizer leaves out of weight decay, which kresume writes beside Keras's files."""
    if saved is None or names is None:
        return saved
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: {UNDECAYED} in the member {CARD} is no list of names: the file is damaged")
    return replace(saved, config={**(saved.config or {}), UNDECAYED: names})


def _in_keras_3(
    config: dict[str, Any], compiled: dict[str, Any] | None, path: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Translates architecture and compile config of a Keras 2 archive into Keras 3's form."""
    found = keras_2_optimizers.optimizer((compiled or {}).get("optimizer"), path)
    if compiled is not None and found is not None:
        compiled = {**compiled, "optimizer": {"class_name": found[0], "config": found[1]}}
    return {**keras_2.architecture(config, path), "compile_config": compiled}, compiled


def _with_slots_of_keras_3(compiled: Mapping[str, Any] | None, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    saved = optimizer_of(compiled, arrays)
    if saved is None or saved.loss_scale:
        return arrays
    wanted = keras_2_optimizers.ordered(saved.class_name, saved.config or {}, optimizer_arrays(arrays))
    rest = {name: array for name, array in arrays.items() if not name.startswith(OPTIMIZER)}
    return rest | {f"{OPTIMIZER}{index}": array for index, array in enumerate(wanted)}


def _card(value: dict[str, Any], path: str) -> Card:
    try:
        return Card.from_dict(value)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the member {CARD} cannot be read ({type(error).__name__}: {error}): it is damaged, or was written by "
            "a later version of kresume"
        ) from error


def _object(data: bytes | None, name: str, path: str) -> dict[str, Any]:
    if data is None:
        raise CheckpointError(f"{path} is not a .keras archive: it has no member {name}")
    return read_object(data, f"{path}: the member {name}")
