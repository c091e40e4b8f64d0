"""Reads a `.keras` file without running any code from it.

The archive (https://keras.io/guides/serialization_and_saving) holds `config.json` (architecture and compile config),
`metadata.json` (writer and date), `model.weights.h5`, and, in files of ours, `kresume.json` (the card). Keras itself reads
the weights by class name and order and loads flipped bits in the HDF5 data in silence; the archive's checksums are verified
here before anything is believed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kresume.checkpoints.state import Card, SavedOptimizer, SavedRate, TrainState
from kresume.errors import CheckpointError

CARD = "kresume.json"
WEIGHTS = "model.weights.h5"
LARGEST_JSON = 256 * 2**20
INITIAL_RATES = ("initial_learning_rate", "peak", "warmup_target", "max_lr")


def accepts(path: str) -> bool:
    """Whether `path` is a file that is or calls itself a Keras archive."""
    file = Path(path)
    return file.is_file() and (file.suffix == ".keras" or _has_member(file, WEIGHTS))


def _has_member(file: Path, name: str) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return name in archive.namelist()


def read(path: str) -> TrainState:
    """Reads weights, optimizer state, architecture, compile config and card.

    Raises:
        CheckpointError: it is truncated, damaged, or no Keras archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = _json(archive, "config.json", path)
            metadata = _json(archive, "metadata.json", path)
            card = _json(archive, CARD, path) if CARD in archive.namelist() else None
            arrays = read_hdf5(archive.read(WEIGHTS), path)
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}): it is no complete .keras archive; use an earlier copy"
        ) from error
    except KeyError as error:
        raise CheckpointError(f"{path} is no .keras archive: it has no member {error}") from error
    compiled = config.get("compile_config")
    iterations = arrays.get("optimizer/vars/0")
    step = int(iterations) if iterations is not None and iterations.shape == () else None
    extra = card or {}
    return TrainState(
        source=path,
        format="keras",
        layout="keras",
        arrays=arrays,
        architecture=config,
        compiled=compiled,
        optimizer=_optimizer(compiled, arrays),
        step=int(extra["step"]) if extra.get("step") is not None else step,
        rate=_rate(compiled, arrays, extra.get("peak")),
        card=Card.from_dict(card) if card is not None else None,
        writer=f"keras {metadata.get('keras_version', 'of unknown version')}",
        written=str(metadata.get("date_saved", "")).replace("@", "T"),
    )


def _json(archive: zipfile.ZipFile, name: str, path: str) -> dict[str, Any]:
    if archive.getinfo(name).file_size > LARGEST_JSON:
        raise CheckpointError(f"{path}: its member {name} claims {archive.getinfo(name).file_size:,} bytes: refused")
    try:
        value = json.loads(archive.read(name))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: its member {name} is no JSON ({error}): the file is damaged") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: its member {name} is no JSON object: the file is damaged")
    return value


def read_hdf5(data: bytes, path: str) -> dict[str, np.ndarray]:
    """Every dataset of an HDF5 file by its path, without following links out of it.

    Raises:
        CheckpointError: it is no HDF5 file, or is truncated.
    """
    import h5py

    arrays: dict[str, np.ndarray] = {}

    def walk(group: Any, prefix: str) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
                raise CheckpointError(f"{path}: {prefix}{name} is a link out of its place: refused")
            item = group[name]
            if isinstance(item, h5py.Group):
                walk(item, f"{prefix}{name}/")
            elif item.external:
                raise CheckpointError(f"{path}: {prefix}{name} keeps its data in another file: refused")
            else:
                array = np.asarray(item)
                kind = item.attrs.get("dtype")
                # HDF5 has no bfloat16: Keras stores its bytes and names the type beside them.
                if kind == "bfloat16" and array.dtype.kind in "Vu":
                    import ml_dtypes

                    array = array.view(ml_dtypes.bfloat16)
                arrays[f"{prefix}{name}"] = array

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            walk(file, "")
    except OSError as error:
        raise CheckpointError(
            f"{path}: its weights are no complete HDF5 file ({error}): use an earlier copy"
        ) from error
    return arrays


def _optimizer(compiled: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray]) -> SavedOptimizer | None:
    count = sum(name.startswith("optimizer/vars/") for name in arrays)
    if not count:
        return None
    saved = (compiled or {}).get("optimizer")
    if not isinstance(saved, Mapping):
        return SavedOptimizer(None, None, count)
    return SavedOptimizer(str(saved["class_name"]), dict(saved["config"]), count)


def _rate(compiled: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray], peak: float | None) -> SavedRate | None:
    saved = (compiled or {}).get("optimizer")
    config = saved.get("config", {}) if isinstance(saved, Mapping) else {}
    rate = config.get("learning_rate")
    if isinstance(rate, Mapping):
        return SavedRate(peak_of_schedule(rate), "schedule", dict(rate))
    if peak is not None:
        return SavedRate(float(peak), "run")
    # The variable is what the training really ended with; the config is what it was compiled with.
    stored = arrays.get("optimizer/vars/1")
    if stored is not None and stored.shape == () and stored.dtype.kind == "f":
        return SavedRate(float(stored), "float")
    return SavedRate(float(rate), "float") if isinstance(rate, (int, float)) else None


def peak_of_schedule(schedule: Mapping[str, Any]) -> float:
    """The initial or peak rate of a Keras schedule's config; the largest value of a piecewise one."""
    config: Mapping[str, Any] = schedule.get("config", {})
    if isinstance(config.get("values"), (list, tuple)):
        return float(max(config["values"]))
    rates = [float(config[name]) for name in INITIAL_RATES if isinstance(config.get(name), (int, float))]
    if not rates:
        raise CheckpointError(
            f"the checkpoint's learning rate is a schedule of its own class ({schedule.get('class_name')}), whose peak "
            "cannot be read: give --lr"
        )
    return max(rates)
