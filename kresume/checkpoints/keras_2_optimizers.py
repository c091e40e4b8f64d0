"""Translates Keras 2's optimizer configs, variables and slot names into Keras 3's.

optimizer(training_config["optimizer_config"], path)  # ("Adam", {"learning_rate": 0.01, ...})
slot("Adam/m/dense/kernel:0")                         # ("m", "dense/kernel")
ordered("SGD", config, arrays)                        # the variables in the order in which Keras 3 stores them
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kresume.checkpoints import keras_arrays
from kresume.errors import CheckpointError
from kresume.storage.damage import interpreting

OPTIMIZER_GONE = ("decay", "jit_compile", "is_legacy_optimizer", "name", "schedule_decay")
SLOTS: Mapping[str, Mapping[str, str]] = {
    "Adam": {"m": "_momentums", "v": "_velocities", "vhat": "_velocity_hats"},
    "AdamW": {"m": "_momentums", "v": "_velocities", "vhat": "_velocity_hats"},
    "Nadam": {"m": "_momentums", "v": "_velocities"},
    "Adamax": {"m": "_m", "v": "_u", "u": "_u"},
    "SGD": {"m": "momentums", "momentum": "momentums"},
    "RMSprop": {
        "velocity": "_velocities",
        "rms": "_velocities",
        "momentum": "_momentums",
        "average_gradient": "_average_gradients",
        "mg": "_average_gradients",
    },
    "Adagrad": {"accumulator": "_accumulators"},
    "Adadelta": {
        "accumulated_grad": "_accumulated_grads",
        "accumulated_delta_var": "_accumulated_delta_vars",
        "accum_grad": "_accumulated_grads",
        "accum_var": "_accumulated_delta_vars",
    },
    "Ftrl": {"accumulator": "_accumulators", "linear": "_linears"},
    "Lion": {"m": "_momentums"},
    "Adafactor": {"r": "_r", "c": "_c", "v": "_v"},
}
"""Slot names of Keras 2's new-style and legacy optimizers, and the attribute that holds each slot in Keras 3."""
NUMBERED = re.compile(r"_\d+$")
"""Matches the numeric suffix that TensorFlow appends to a name that is already used."""
AVERAGES = {"average": "_model_variables_moving_average"}


def optimizer(config: Any, path: str) -> tuple[str, dict[str, Any]] | None:
    """Returns an optimizer's class and config in Keras 3's form; None without an optimizer.

    Loss scaling is unwrapped. Keras 2's `decay` becomes the equivalent schedule.

    Args:
        config: the optimizer as Keras 2 wrote it.
        path: the file that holds it, for messages.

    Raises:
        CheckpointError: a setting does not have the form that Keras 2 writes.
    """
    with interpreting(f"{path}: the optimizer's config", CheckpointError):
        return _in_keras_3(config)


def _in_keras_3(config: Any) -> tuple[str, dict[str, Any]] | None:
    if isinstance(config, str):  # compile("adam")
        config = keras_arrays.by_name(config)
    if not isinstance(config, Mapping) or not isinstance(config.get("config"), Mapping):
        return None
    name = str(config.get("class_name", "")).rpartition(">")[2]
    inside = dict(config["config"])
    if name in {"LossScaleOptimizer", "LossScaleOptimizerV3"}:
        return _in_keras_3(inside.get("inner_optimizer"))
    # Nadam's decay changes its momentum, which Keras 3 fixes; the decay of other optimizers changes the rate.
    decay = 0.0 if name == "Nadam" else inside.get("decay") or 0.0
    for key in OPTIMIZER_GONE:
        inside.pop(key, None)
    first = inside.pop("lr", None)  # name of the rate before Keras 2.3
    rate = inside.get("learning_rate", first)
    if isinstance(rate, (int, float)):
        inside["learning_rate"] = rate
    if inside.get("epsilon", 0) is None:
        inside.pop("epsilon")  # None means Keras's default
    if decay and isinstance(rate, (int, float)):
        inside["learning_rate"] = decaying(rate, decay)
    elif isinstance(rate, Mapping):
        inside["learning_rate"] = {
            **rate,
            "module": "keras.optimizers.schedules",
            "registered_name": None,
            "config": {key: value for key, value in rate["config"].items() if key != "name"},
        }
    if name != "RMSprop" or not inside.get("use_ema"):
        inside.pop("ema_overwrite_frequency", None)
    return name, inside


def compile_config(training: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Translates Keras 2's `training_config` into the compile config of a `.keras` file; see `optimizer`."""
    found = optimizer(training.get("optimizer_config"), path)
    rest = {key: value for key, value in training.items() if key != "optimizer_config"}
    return {**rest, "optimizer": {"class_name": found[0], "config": found[1]} if found is not None else None}


def decaying(rate: float, decay: float) -> dict[str, Any]:
    """Returns Keras 3's schedule for Keras 2's `decay`.

    The decay divides the rate by 1 + decay x iterations.
    """
    return {
        "module": "keras.optimizers.schedules",
        "class_name": "InverseTimeDecay",
        "config": {"initial_learning_rate": rate, "decay_steps": 1, "decay_rate": decay, "staircase": False},
        "registered_name": None,
    }


def slot(name: str) -> tuple[str, str]:
    """Splits Keras 2's name of a slot into its kind and its variable.

    New-style optimizers write `Adam/m/dense/kernel:0`, or `m/dense/kernel:0` inside loss scaling. Legacy ones write
    `Adam/dense/kernel/m:0` or `training/Adam/dense/kernel/m:0`. Iteration counts have no variable: `("iteration", "")`.
    Names without information (`training/Adam/Variable_3:0`) are only split; `keras_2_slots.py` identifies those slots
    by their order.
    """
    parts = name.partition(":")[0].split("/")
    if NUMBERED.sub("", parts[0]) == "training":
        parts = parts[1:]
    if NUMBERED.sub("", parts[-1]) in {"iteration", "iter", "iterations"}:
        return "iteration", ""
    known = {kind for kinds in SLOTS.values() for kind in kinds} | AVERAGES.keys()
    if len(parts) > 2 and parts[1] in known and parts[-1] not in known:
        return parts[1], "/".join(parts[2:])
    if len(parts) > 1 and parts[0] in known and parts[-1] not in known:  # inside loss scaling, without the class
        return parts[0], "/".join(parts[1:])
    if parts[-1] in known:
        return parts[-1], "/".join(parts[1:-1])
    return parts[-1], "/".join(parts[:-1])


def nadam_product(beta_1: float, updates: int) -> np.ndarray:
    """Computes Keras 3's `_u_product` after a number of updates.

    Keras 2's new-style Nadam does not store the product. The legacy Nadam stores a product of another momentum
    schedule. Both products are close to 0 after a few updates. Source: `keras/src/optimizers/nadam.py`, after Dozat
    2016, "Incorporating Nesterov Momentum into Adam".
    """
    product = np.float32(1.0)
    for update in range(1, min(updates, 2000) + 1):
        product *= np.float32(beta_1 * (1.0 - 0.5 * 0.96**update))
    return np.asarray(product)


def has_idle_momentum(name: str | None, config: Mapping[str, Any] | None) -> bool:
    """Returns True for SGD without momentum.

    Keras 2.11 and later store momentum slots for it, which nothing uses.
    """
    return name == "SGD" and not (config or {}).get("momentum")


def ordered(name: str | None, config: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns a new-style optimizer's variables in the order in which Keras 3 stores them.

    Removes SGD's unused momentum, appends Nadam's product and adds Adafactor's placeholders.

    Args:
        name: the optimizer's class.
        config: its settings.
        arrays: the update count, then averages and slots in the order in which Keras 2 created them.
    """
    if has_idle_momentum(name, config):
        kinds = 2 if config.get("use_ema") else 1
        return list(arrays[: len(arrays) - (len(arrays) - 1) // kinds])
    if name == "Nadam" and len(arrays) > 1:
        return [*arrays, nadam_product(float(config.get("beta_1", 0.9)), int(arrays[0]))]
    return _with_placeholders(arrays) if name == "Adafactor" else list(arrays)


def _with_placeholders(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Adds the two unused scalars that Keras 3's Adafactor keeps for one-dimensional weights.

    They come before the slot of each such weight.
    """
    found = list(arrays[:1])
    rest = list(arrays[1:])
    while rest:
        row, column, whole = (tuple(array.shape) for array in (rest + rest[-1:] * 2)[:3])
        if len(rest) > 2 and len(whole) > 1 and (row, column) == (whole[:-1], (*whole[:-2], whole[-1])):
            found, rest = found + rest[:3], rest[3:]
        else:
            zero = np.zeros((), rest[0].dtype)
            found, rest = [*found, zero, zero.copy(), rest[0]], rest[1:]
    return found
