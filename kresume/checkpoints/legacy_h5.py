"""Reads HDF5 files of Keras 2 and tf_keras that store layers by name.

    state = read("model.h5")

The format is that of `model.save("model.h5")` in Keras 2 and tf_keras, and of Keras 3's legacy form. A full model holds
`model_config`, `training_config`, `model_weights/<layer>/...` and `optimizer_weights`. A file with weights only
(`save_weights("w.h5")`) holds the layers at its root. Attributes store the order of layers and of their weights.

Arrays keep the file's own names, and `records` stores the order: `layers` as `[layer, [array, ...]]`, `optimizer_order`
for a file of Keras 3, and `slots` as `[attribute, variable, array]` for a file of Keras 2.

Source: `keras/src/legacy/saving/legacy_h5_format.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kresume.checkpoints import content, keras_2, keras_2_layers, keras_2_optimizers, keras_2_slots
from kresume.checkpoints.hdf5 import has_layers, read_file
from kresume.checkpoints.json_text import read_object
from kresume.checkpoints.keras_arrays import SCALE_VARIABLES, described, rate_from, unwrapped
from kresume.errors import CheckpointError
from kresume.storage import atomic
from kresume.values.state import SavedOptimizer, SavedRate, TrainState

ENDINGS = (".h5", ".hdf5")
WEIGHTS, OPTIMIZER = "model_weights", "optimizer_weights"
WITHOUT_WEIGHT = frozenset({"momentum_cache", "dynamic_scale", "current_loss_scale", "loss_scale", "good_steps"})
"""Names of Keras 2's scalars that belong to the whole optimizer or to its loss scaling."""
KERNELS = frozenset({"kernel", "recurrent_kernel"})


def accepts(path: str) -> bool:
    """Returns True for an HDF5 file that stores layers by name, whatever its ending."""
    file = Path(path)
    return content.kind_of(file) == "hdf5" and has_layers(file)


def read(path: str) -> TrainState:
    """Reads weights, optimizer state, and if present, architecture and compile config.

    Raises:
        CheckpointError: if the file is truncated, damaged, or not written by Keras.
    """
    content_of_file = read_file(Path(path).read_bytes(), path)
    arrays, file = content_of_file.arrays, _listed(content_of_file.attributes, path)
    slots, model = file.slots, file.model
    if not any(names for _, names in file.layers):
        raise CheckpointError(
            f"{path} is an HDF5 file, but not one that Keras wrote: expected layers in the attribute layer_names"
        )
    weights = [name for _, names in file.layers for name in names]
    for name in (*weights, *(_path_in_file(name) for name in slots)):
        if name not in arrays:
            raise CheckpointError(f"{path}: {name} is listed but missing; the file is damaged: use an earlier copy")
    old = keras_2.is_keras_2(file.version)
    notes = []
    if old and model is not None and keras_2_layers.is_of_keras_1(model):
        model = None
        notes.append(
            "the architecture is of Keras 1, whose layers have other arguments, and is ignored; weights are matched by order"
        )
    if file.backend == "theano":
        _flip_kernels(arrays, weights, [_path_in_file(name) for name in slots])
    compiled = _compiled(file.training, old, str(path))
    saved = _optimizer(compiled, old, slots)
    inside = slots[SCALE_VARIABLES:] if saved is not None and saved.loss_scale and not old else slots
    records: dict[str, Any] = {"layers": [[layer, names] for layer, names in file.layers if names]}
    step, rate = _step(arrays, inside), _rate(compiled, arrays, inside)
    if old:
        records |= _slots(saved, slots, arrays)
        notes += records.get("notes", ())
    else:
        records["optimizer_order"] = [_path_in_file(name) for name in slots]
    records["notes"] = tuple(notes)
    if old and saved is not None and saved.class_name == "Nadam":
        _with_product(saved, arrays, records["slots"])
    return TrainState(
        source=path,
        format="legacy-h5",
        layout="layers",
        arrays=arrays,
        architecture=_architecture(model, old, path) if model is not None else None,
        compiled=compiled,
        optimizer=saved,
        step=step,
        rate=rate,
        writer=f"keras {file.version}",
        written=atomic.modified(Path(path)),
        records=records,
    )


@dataclass(frozen=True)
class _Listed:
    """The content of a file's attributes.

    Attributes:
        layers: `[layer, [array, ...]]` in the model's order; a layer without a name holds the model's own weights.
        slots: names of the optimizer's arrays.
        version: the version of Keras.
        backend: the backend that wrote the file.
        model: the serialized model, None if the file has none.
        training: the serialized compile config, None if the file has none.
    """

    layers: list[Any]
    slots: list[str]
    version: str
    backend: str
    model: dict[str, Any] | None
    training: dict[str, Any] | None


def _listed(attributes: Mapping[str, Mapping[str, Any]], path: str) -> _Listed:
    """Reads the lists that the attributes of a file's groups hold."""
    file = attributes.get("", {})
    prefix = f"{WEIGHTS}/" if WEIGHTS in attributes else ""
    root = attributes.get(WEIGHTS, file)
    layers = [
        [layer, [f"{prefix}{layer}/{name}" for name in _names(attributes[f"{prefix}{layer}"], "weight_names")]]
        for layer in _names(root, "layer_names")
        if f"{prefix}{layer}" in attributes
    ]
    top = f"{prefix}top_level_model_weights"
    if top in attributes:
        layers.append(["", [f"{top}/{name}" for name in _names(attributes[top], "weight_names")]])
    return _Listed(
        layers,
        slots=_names(attributes.get(OPTIMIZER, {}), "weight_names"),
        version=_text(root.get("keras_version", file.get("keras_version"))) or "1",
        backend=_text(root.get("backend", file.get("backend"))),
        model=_object(file.get("model_config"), "model_config", path),
        training=_object(file.get("training_config"), "training_config", path),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _flip_kernels(arrays: dict[str, np.ndarray], weights: Sequence[str], slots: Sequence[str]) -> None:
    """Flips Theano's convolution kernels and their slots to the other backends' orientation.

    Theano stores kernels reversed in space. Source: `preprocess_weights_for_loading` in `keras/engine/saving.py` of
    Keras 2.2, which flips kernels of the same names.
    """
    kernels = [
        name for name in weights if name.rpartition("/")[2].partition(":")[0] in KERNELS and arrays[name].ndim > 2
    ]
    shapes = {arrays[name].shape for name in kernels}
    for name in [*kernels, *(name for name in slots if arrays[name].shape in shapes)]:
        array = arrays[name]
        arrays[name] = np.flip(array, axis=tuple(range(array.ndim - 2)))


def _names(attributes: Mapping[str, Any], name: str) -> list[str]:
    """Returns an attribute that is a list of names.

    Keras splits long lists into `name0`, `name1`, ...
    """
    if name in attributes:
        return list(attributes[name]) if isinstance(attributes[name], list) else []
    found: list[list[str]] = []
    while isinstance(part := attributes.get(f"{name}{len(found)}"), list):
        found.append(part)
    return [item for part in found for item in part]


def _path_in_file(name: str) -> str:
    """Returns the path in the file of one of the optimizer's arrays.

    Some backends wrote names that start at the file's root.
    """
    return name.lstrip("/") if name.startswith("/") else f"{OPTIMIZER}/{name}"


def _object(value: Any, name: str, path: str) -> dict[str, Any] | None:
    return None if value is None else read_object(_text(value), f"{path}: the attribute {name}")


def _architecture(model: Mapping[str, Any], old: bool, path: str) -> dict[str, Any]:
    """Returns the model in Keras 3's serialized form.

    In Keras 3's legacy files, only the outermost object lacks `module` and `registered_name`.
    """
    if old:
        return keras_2.architecture(model, path)
    name = str(model.get("class_name"))
    module = {"Sequential": "keras", "Functional": "keras.src.models.functional"}.get(name)
    return {"module": module, "registered_name": None if module == "keras" else name, **model}


def _compiled(training: Mapping[str, Any] | None, old: bool, path: str) -> dict[str, Any] | None:
    """Returns the compile config in the form of a `.keras` file."""
    if training is None:
        return None
    if old:
        return keras_2_optimizers.compile_config(training, path)
    rest = {key: value for key, value in training.items() if key != "optimizer_config"}
    return {**rest, "optimizer": training.get("optimizer_config")}


def _optimizer(compiled: Mapping[str, Any] | None, old: bool, slots: list[str]) -> SavedOptimizer | None:
    if not slots:
        return None
    saved = unwrapped((compiled or {}).get("optimizer"))
    scaled = any(name.rpartition("/")[2].partition(":")[0] in {"dynamic_scale", "current_loss_scale"} for name in slots)
    count = len(slots) - (0 if not scaled else 2 if old else SCALE_VARIABLES)
    return described(saved, count, scaled)


def _slots(saved: SavedOptimizer | None, slots: list[str], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns `slots` with Keras 3's names: the optimizer's attribute, the variable, the array.

    If the names say nothing and the arrays do not fit the optimizer that the file names, `cannot_keep` gives the
    reason.
    """
    kinds = {**keras_2_optimizers.SLOTS.get((saved and saved.class_name) or "", {}), **keras_2_optimizers.AVERAGES}
    said = [keras_2_optimizers.slot(name) for name in slots]
    if (
        saved is None
        or not slots
        or any((kind in kinds and variable) or kind in WITHOUT_WEIGHT for kind, variable in said)
    ):
        found = [
            ["_iterations" if kind == "iteration" else kinds.get(kind, kind), variable, _path_in_file(name)]
            for name, (kind, variable) in zip(slots, said, strict=True)
        ]
        if saved is not None and keras_2_optimizers.has_idle_momentum(saved.class_name, saved.config):
            idle = [array for attribute, _, array in found if attribute == "momentums"]
            found = [slot for slot in found if slot[2] not in idle]
            for array in idle:
                del arrays[array]
        return {"slots": found}
    counts = [kind == "iteration" for kind, _ in said]
    shapes = [tuple(arrays[_path_in_file(name)].shape) for name in slots]
    attributes = keras_2_slots.kinds(counts, shapes, saved.class_name or "", saved.config or {})
    if attributes is None:
        why = (
            f"the names of its {len(slots):,} arrays do not identify them ({slots[-1]}), and their order does not fit "
            f"{saved.class_name}"
        )
        return {"slots": [["", "", _path_in_file(name)] for name in slots], "cannot_keep": why}
    found, notes = [], []
    for name, attribute in zip(slots, attributes, strict=True):
        if attribute == keras_2_slots.NOTHING:
            del arrays[_path_in_file(name)]
        else:
            found.append([attribute, "", _path_in_file(name)])
    if not any(counts):  # RMSprop, Adagrad and Adadelta before Keras 2.3
        arrays[f"{OPTIMIZER}/iterations"] = np.asarray(0)
        found.append(["_iterations", "", f"{OPTIMIZER}/iterations"])
        notes.append(f"{saved.class_name} of Keras before 2.3 stores no count of updates: the count starts at 0")
    return {"slots": found, "notes": tuple(notes)}


def _with_product(saved: SavedOptimizer, arrays: dict[str, np.ndarray], slots: list[list[str]]) -> None:
    """Adds Nadam's product of momentums, as Keras 3 would have computed it."""
    for slot in [slot for slot in slots if slot[0] == "momentum_cache"]:
        slots.remove(slot)
        del arrays[slot[2]]
    count = next((int(arrays[name]) for attribute, _, name in slots if attribute == "_iterations"), 0)
    product = f"{OPTIMIZER}/u_product"
    arrays[product] = keras_2_optimizers.nadam_product(float((saved.config or {}).get("beta_1", 0.9)), count)
    slots.append(["_u_product", "", product])


def _step(arrays: Mapping[str, np.ndarray], slots: list[str]) -> int | None:
    for name in slots:
        array = arrays[_path_in_file(name)]
        if keras_2_optimizers.slot(name)[0] == "iteration" and array.shape == ():
            return int(array)
    return None


def _rate(compiled: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray], slots: list[str]) -> SavedRate | None:
    saved = unwrapped((compiled or {}).get("optimizer"))
    rate = saved["config"].get("learning_rate") if saved is not None else None
    # Keras 3 stores the rate as a variable.
    stored = (arrays[_path_in_file(name)] for name in slots if name.rpartition("/")[2] == "learning_rate")
    return rate_from(rate, next(stored, None))
