"""Describes what a script trains: its layers, what `compile` was given, and the arguments of `fit`.

    script = describe(model, call)
    script.records       # {"optimizer": {...}, "script": {"layers": ..., "settings": ..., "compile": ..., "fit": ..., ...}}

A backup records it, and `code_changes` compares it after a restart. It is computed once, before the first step: training may
change attributes of a model. Layers are in the order of the tree of layers, by their class, since generated names differ.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kresume.drop_in import code_digest, flat_values
from kresume.drop_in.code_digest import WRITTEN
from kresume.drop_in.fit_call import FitCall
from kresume.drop_in.flat_values import KEYS, Flat
from kresume.models import structure
from kresume.models.introspection import attributes_of

RECORD = "script"
"""Key of the record in a backup."""
CALLBACKS = "callbacks"
COMPILED = ("loss_weights", "run_eagerly", "steps_per_execution")
STEPS = ("train_step", "test_step", "compute_loss")
GRAPH, ORDER = "connections of its layers", "order of its layers"
ONLY_IF = " | "
"""Separates a path from a condition: settings of different conditions are not compared."""

_begun: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""The models and callbacks of the fits of this process with backups, by `id`: a class of the user's may have no hash."""


@dataclass(frozen=True)
class Script:
    """Holds the description of what a script trains.

    Attributes:
        records: JSON values for a backup.
        used: True if this process has trained the same model object before, which may have changed its attributes.
    """

    records: Mapping[str, Any]
    used: bool

    @property
    def optimizer(self) -> Mapping[str, Any]:
        """Returns the serialized optimizer; empty without one, or if it cannot be serialized."""
        found: Mapping[str, Any] = self.records["optimizer"]
        return found


def describe(model: Any, call: FitCall | None, callbacks: Sequence[Any] = ()) -> Script:
    """Describes a compiled model, the running `fit` and its callbacks; call it before the first step."""
    used = _begun.get(id(model)) is model
    _begun[id(model)] = model
    with warnings.catch_warnings():  # Keras warns of a lambda in a config
        warnings.simplefilter("ignore")
        optimizer = _optimizer(model)
        try:
            record = {**_layers(model), "compile": _compiled(model), "fit": _fit(call), "used": used, "files": _files()}
            record[CALLBACKS] = _callbacks(callbacks)
            # What the code itself writes may have counted, and trains nothing that a backup does not hold.
            record["settings"] = [_constant(flat) for flat in record["settings"]]
            record |= {name: _constant(record[name]) for name in ("compile", CALLBACKS)}
            json.dumps(record)
        except Exception:  # a description, which objects of the user's may refuse, is worth no training
            record = {}
    return Script({"optimizer": optimizer, RECORD: record}, used)


def _optimizer(model: Any) -> dict[str, Any]:
    """Returns the optimizer as Keras serializes it; empty without one, or if its schedule has no config."""
    if model.optimizer is None:
        return {}
    try:
        found: dict[str, Any] = keras.saving.serialize_keras_object(model.optimizer)
    except NotImplementedError:
        return {}
    return found


def _constant(flat: Flat) -> Flat:
    """Returns the values that the script's code does not change while it trains."""
    return {path: value for path, value in flat.items() if WRITTEN not in path}


def _callbacks(callbacks: Sequence[Any]) -> Flat:
    """Returns the code of callbacks of the user's, what it reads, and functions that others were given."""
    found: Flat = {}
    counted: Counter[str] = Counter()
    for callback in callbacks:
        kind = type(callback).__name__
        counted[kind] += 1
        path = f"{CALLBACKS}.{kind}{f'({counted[kind]})' if counted[kind] > 1 else ''}"
        again = _begun.get(id(callback)) is callback  # an earlier fit may have changed its attributes
        _begun[id(callback)] = callback
        of_one: Flat = {}
        flat_values.own_code(callback, of_one, f"{path}.")
        for name, value in attributes_of(callback).items():
            if code_digest.is_function(value):
                flat_values.flatten(f"{path}.{name}", value, of_one)
        params = f"{path}.params"  # they hold the number of epochs
        kept = {name: item for name, item in of_one.items() if not name.startswith(params)}
        found |= {name: item for name, item in kept.items() if code_digest.is_code(name) or not again}
    return found


def _files() -> str | None:
    """Returns a digest of the files of the user's code; None if unknown, as in a notebook.

    If it is equal after a restart, the user edited nothing: values that differ were drawn or read by the script.
    """
    if getattr(sys.modules.get("__main__"), "__file__", None) is None:
        return None
    users = [module for module in list(sys.modules.values()) if code_digest.is_users_module(module)]
    paths = sorted({str(module.__file__) for module in users})
    try:
        contents = sorted(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths)
    except OSError:  # removed since, or within an archive
        return None
    return _digest(contents) if contents else None


def _layers(model: Any) -> dict[str, Any]:
    """Returns `[name, class, index of its settings]` of each layer, and the settings, each once."""
    indices: dict[str, int] = {}
    layers: list[list[Any]] = []
    settings: list[Flat] = []
    for layer, _, name in structure.visited(model):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        text = json.dumps(flat := _settings(layer))
        if text not in indices:
            indices[text] = len(settings)
            settings.append(flat)
        layers.append([name, type(layer).__name__, indices[text]])
    return {"layers": layers, "settings": settings}


def _settings(layer: Any) -> Flat:
    """Returns the settings of a layer or a model, without those of its layers."""
    found: Flat = {}
    flat_values.flatten("dtype", keras.dtype_policies.serialize(layer.dtype_policy), found)
    if isinstance(layer, keras.Model):
        flat_values.own_code(layer, found)
        held = attributes_of(layer)
        for name in STEPS:
            if name in held:
                flat_values.flatten(name, held[name], found)
        if isinstance(layer, keras.Sequential):
            children = [type(each).__name__ for each in layer.layers]
            found[f"{ORDER}{ONLY_IF}{_digest(sorted(children))}"] = _digest(children)
        elif type(layer).__name__ != "Sequential" and hasattr(layer, "_nodes_by_depth"):
            classes = sorted(type(each).__name__ for each in layer.layers)
            found[f"{GRAPH}{ONLY_IF}{_digest(classes)}"] = _digest(_graph(layer))
    else:
        flat_values.settings_of(layer, found)
    if layer._trainable_variables or layer._non_trainable_variables:
        found["trainable"] = bool(layer.trainable)
    return found


def _graph(model: Any) -> list[Any]:
    """Returns the operations of a functional model: class, settings, arguments, sources of its inputs."""
    nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
    order = {id(node.operation): index for index, node in reversed(list(enumerate(nodes)))}
    found = []
    for node in nodes:
        operation = node.operation
        flat: Flat = {}
        if not isinstance(operation, keras.Layer):
            flat_values.settings_of(operation, flat)
        flat_values.flatten("arguments", [*node.arguments.args], flat)
        flat_values.flatten("named", dict(node.arguments.kwargs), flat)
        sources = [each._keras_history for each in node.arguments.keras_tensors]
        inputs = [[order.get(id(source.operation), -1), source.tensor_index] for source in sources]
        compared = sorted(each for each in flat.items() if not each[0].endswith(KEYS))
        settings = [[path, f"{item:.4g}" if isinstance(item, float) else item] for path, item in compared]
        found.append([type(operation).__name__, settings, inputs])
    return found


def _compiled(model: Any) -> Flat:
    """Returns what `compile` was given, apart from the optimizer."""
    given = getattr(getattr(model, "_compile_config", None), "config", None) or {}
    found: Flat = {}
    flat_values.flatten("loss", _as_losses(given.get("loss")), found)
    for name in COMPILED:
        flat_values.flatten(name, given.get(name), found)
    auto = model._resolve_auto_jit_compile()  # what "auto" means on this machine, as `compile` records it
    flat_values.flatten(f"jit_compile{ONLY_IF}{auto}", given.get("jit_compile"), found)
    for name in ("metrics", "weighted_metrics"):
        of_metrics: Flat = {}
        flat_values.flatten("m", given.get(name), of_metrics)
        found.update({f"{name}{path[1:]}": value for path, value in of_metrics.items()})
        named = [value for path, value in of_metrics.items() if "." not in path and not path.endswith(KEYS)]
        listed = [str(value) for value in named if value not in ("list", "dict")]
        found[name] = ", ".join(listed) if given.get(name) else "none"
    return found


def _as_losses(loss: Any) -> Any:
    """Returns losses of Keras that are a name or function as objects: `"mse"` means `MeanSquaredError()`."""
    if isinstance(loss, Mapping):
        return {name: _as_losses(each) for name, each in loss.items()}
    if isinstance(loss, (list, tuple)):
        return [_as_losses(each) for each in loss]
    try:
        function = keras.losses.get(loss) if isinstance(loss, str) else loss
    except ValueError:
        return loss
    if not getattr(function, "__module__", "").startswith("keras.") or not hasattr(function, "__name__"):
        return loss
    named = function.__name__.replace("_", "").lower()
    kinds = [kind for name, kind in vars(keras.losses).items() if isinstance(kind, type) and name.lower() == named]
    return kinds[0](name=named) if kinds else loss  # without a name it would count in those that Keras generates


def _fit(call: FitCall | None) -> Flat:
    """Returns the arguments of `fit` that a training depends on."""
    found: Flat = {}
    if call is None:
        return found
    weights = call.given.get("sample_weight")
    for name, value in call.given.items():
        if name != "sample_weight" and (name != "shuffle" or call.shuffles):
            flat_values.flatten(name, value, found)
    if (size := call.batch_size()) is not None:
        found["batch_size"] = size
    found["sample_weight"] = "none" if weights is None else "given"
    if isinstance(weights, np.ndarray):
        flat_values.flatten(
            f"sample_weight{ONLY_IF}{len(weights)}", weights, found
        )  # those of other data are no change
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:12]
