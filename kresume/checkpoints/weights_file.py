"""Reads `.weights.h5` and sharded `.weights.json`, written by Keras 3's `model.save_weights`.

    state = read("model.weights.h5")

The file holds weights and optimizer variables, but neither the architecture nor the optimizer's name; `--model` and
`--optimizer` give them. It holds no checksum: truncation and structure are checked, but a flipped bit in a weight
cannot be detected.

The index of the sharded form maps each group of variables to the file, or files, beside it that hold them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kresume.checkpoints import content
from kresume.checkpoints.hdf5 import Content, has_layers, read_arrays, read_file
from kresume.checkpoints.json_text import read_file as read_json
from kresume.checkpoints.keras_arrays import KERAS_2_LAYERS, optimizer_of, rate_of, step_of, tidy
from kresume.errors import CheckpointError
from kresume.spelling import option
from kresume.storage import atomic
from kresume.values.state import TrainState

ENDINGS = (".weights.h5", ".weights.json")
LARGEST_JSON = 64 * 2**20


def accepts(path: str) -> bool:
    """Returns True for a shard index, or an HDF5 file without layers by name.

    The file ending does not matter.
    """
    kind = content.kind_of(Path(path))
    return kind == "shards" or (kind == "hdf5" and not has_layers(Path(path)))


def read(path: str) -> TrainState:
    """Reads every array.

    Raises:
        CheckpointError: if the file is truncated or damaged, a shard is missing, or `save_weights` did not write it.
    """
    file = Path(path)
    kind = content.kind_of(file)
    sharded = kind == "shards" or (kind is None and file.name.endswith(".json"))
    found = Content(_read_shards(file), {}) if sharded else read_file(file.read_bytes(), path)
    arrays = found.arrays
    if not any("/vars/" in f"/{name}" for name in arrays):
        _refuse_the_oldest(found, path)
        raise CheckpointError(
            f"{path} is an HDF5 file, but not one that Keras wrote: expected groups named `vars`; it holds "
            f"{', '.join(list(arrays)[:3]) or 'no array'}"
        )
    return state_of(path, arrays, atomic.modified(file))


def _refuse_the_oldest(found: Content, path: str) -> None:
    """Raises for weights of Keras before 1.0, which are stored by layer number.

    The file does not say the order of the kernels' axes.

    Raises:
        CheckpointError: if the file has that format.
    """
    if "nb_layers" in found.attributes.get("", {}):
        raise CheckpointError(
            f"{path} holds weights of Keras 0 or early Keras 1: numbered layers (layer_0/param_0), and kernels as (outputs, "
            "inputs, height, width), which Theano also flipped; the file does not record the backend. Read them with h5py and "
            "assign them to your model: kernels by numpy.transpose(kernel, (2, 3, 1, 0)), of Theano also [::-1, ::-1]; dense "
            f"kernels and biases unchanged; then model.save('model.keras') and {option('from', 'model.keras')}"
        )


def state_of(path: str, arrays: dict[str, np.ndarray], written: str) -> TrainState:
    """Returns the checkpoint that the arrays of a `.weights.h5` file represent.

    Args:
        path: the path as the user gave it.
        arrays: the arrays by HDF5 path.
        written: time of writing, ISO 8601.
    """
    keras_2 = any(name.startswith(KERAS_2_LAYERS) for name in arrays)
    arrays = tidy(arrays)
    return TrainState(
        source=path,
        format="weights-h5",
        layout="keras",
        arrays=arrays,
        optimizer=optimizer_of(None, arrays),
        step=step_of(arrays),
        rate=rate_of(None, arrays),
        writer="keras 2" if keras_2 else "keras 3",
        written=written,
    )


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    value = read_json(index, largest=LARGEST_JSON)
    try:
        listed = value["weight_map"].values()
        names = sorted({name for files in listed for name in ([files] if isinstance(files, str) else files)})
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not an index of sharded weights ({type(error).__name__}: {error}): expected JSON with `weight_map`"
        ) from error
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: the shard {name} is not a file in the same folder: refused")
        shard = index.with_name(name)
        if not shard.is_file():
            raise CheckpointError(f"{index}: the shard {name} is missing: copy it to {index.parent}")
        found = read_arrays(shard.read_bytes(), str(shard))
        twice = found.keys() & arrays.keys()
        if twice:
            raise CheckpointError(f"{index}: {sorted(twice)[0]} is in two shards, the second is {name}: refused")
        arrays |= found
    wanted = {key.strip("/") for key in value["weight_map"]}
    lost = sorted(key for key in wanted if not any(name.startswith(f"{key}/") for name in arrays))
    if lost:
        raise CheckpointError(
            f"{index}: {lost[0]} is missing from the shards {', '.join(names)}: one of them belongs to another checkpoint"
        )
    return arrays
