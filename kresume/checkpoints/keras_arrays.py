"""Finds the optimizer, step and rate in arrays written by Keras's saving library.

    arrays = tidy(read_arrays(data, path))
    step_of(arrays), rate_of(compiled, arrays), optimizer_of(compiled, arrays)

The optimizer's variables are `optimizer/vars/0..n`: the iteration count, the rate unless it is a schedule, then
averages, accumulators and slots in the order in which the class creates them. A loss-scaled optimizer (mixed_float16)
is stored twice: completely, with four variables of the scaling first, and again under `optimizer/inner_optimizer`.

Source: `keras/src/saving/saving_lib.py` and `optimizers/loss_scale_optimizer.py` of Keras 3.15.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kresume.values.state import SavedOptimizer, SavedRate

OPTIMIZER = "optimizer/vars/"
INNER = "optimizer/inner_optimizer/vars/"
LOSS_SCALE = "LossScaleOptimizer"
SCALE_VARIABLES = 4
"""Number of variables of Keras 3's loss scaling that precede the optimizer's variables."""
KERAS_2_LAYERS = "_layer_checkpoint_dependencies/"
KERAS_2_ATTENTION = re.compile(r"/_(query|key|value|output)_dense/")
OPTIMIZERS = (
    "SGD", "RMSprop", "Adam", "AdamW", "Nadam", "Adamax", "Adagrad", "Adadelta", "Adafactor", "Ftrl", "Lion", "Lamb", "Muon",
)  # fmt: skip
"""Keras 3's optimizers that a name alone can start. ScheduleFreeAdamW is left out because its slots start as copies of
the weights, MultiOptimizer because it is a map of optimizers."""
DEFAULT_RATES = {"SGD": 0.01}
"""The default rate of each class; 0.001 for classes not listed (a test checks this)."""
INITIAL_RATES = ("initial_learning_rate", "peak", "warmup_target", "max_lr")


def tidy(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames arrays of Keras 2 to Keras 3's names; the trees are equal."""
    names = (name.replace(KERAS_2_LAYERS, "layers/") for name in arrays)
    names = (KERAS_2_ATTENTION.sub(r"/\1_dense/", name) for name in names)
    return dict(zip(names, arrays.values(), strict=True))


def optimizer_arrays(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the optimizer's variables in order; empty if the file has none.

    Variables of loss scaling around the optimizer are left out.
    """
    prefix = INNER if any(name.startswith(INNER) for name in arrays) else OPTIMIZER
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return [found[key] for key in sorted(found, key=lambda key: (len(key), key))]


def optimizer_of(compiled: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray]) -> SavedOptimizer | None:
    """Returns the optimizer from the compile config and the arrays; None without state.

    Under `mixed_float16` Keras wraps the optimizer automatically and omits this from the compile config; only the
    arrays show it.
    """
    count = len(optimizer_arrays(arrays))
    if not count:
        return None
    scaled = any(name.startswith(INNER) for name in arrays)
    return described(unwrapped((compiled or {}).get("optimizer")), count, scaled)


def described(saved: Mapping[str, Any] | None, variables: int, loss_scale: bool) -> SavedOptimizer:
    """Returns the optimizer that a file stores.

    Args:
        saved: the serialized optimizer without loss scaling; None if the file does not hold it.
        variables: number of its stored arrays, without those of loss scaling.
        loss_scale: True if it was wrapped for loss scaling.
    """
    if saved is None:
        return SavedOptimizer(None, None, variables, loss_scale)
    return SavedOptimizer(class_of(saved), dict(saved["config"]), variables, loss_scale)


def class_of(saved: Mapping[str, Any]) -> str:
    """Returns the name by which Keras finds the class of a serialized optimizer.

    A user's own class is registered as `package>name`.
    """
    registered, name = str(saved.get("registered_name") or ""), str(saved["class_name"])
    package, mark, tail = (registered if ">" in registered else name).rpartition(">")
    # Keras 2 and its add-ons registered classes that Keras 3 knows by their plain name.
    return (
        tail if not mark or (tail in OPTIMIZERS and package in {"Custom", "Keras", "Addons"}) else f"{package}>{tail}"
    )


def by_name(name: str) -> dict[str, Any] | None:
    """Returns the optimizer that `compile("adam")` creates, with its default rate.

    Returns None if Keras has no optimizer of that name.
    """
    found = {known.lower(): known for known in OPTIMIZERS}.get(name.lower())
    return {"class_name": found, "config": {"learning_rate": DEFAULT_RATES.get(found, 1e-3)}} if found else None


def unwrapped(saved: Any) -> Mapping[str, Any] | None:
    """Returns a serialized optimizer without loss scaling; None if `saved` is no optimizer."""
    if isinstance(saved, str):
        return by_name(saved)
    if not isinstance(saved, Mapping):
        return None
    config = saved.get("config")
    if not isinstance(config, Mapping) or "class_name" not in saved:
        return None
    inner = config.get("inner_optimizer")
    return unwrapped(inner) if saved["class_name"] == LOSS_SCALE else saved


def step_of(arrays: Mapping[str, np.ndarray]) -> int | None:
    """Returns the optimizer's iteration count, None if unknown."""
    found = optimizer_arrays(arrays)
    return int(found[0]) if found and found[0].shape == () and found[0].dtype.kind in "iu" else None


def rate_of(
    compiled: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray], peak: float | None = None
) -> SavedRate | None:
    """Returns the compile config's schedule, the recorded peak or the final rate.

    The first that exists is returned.

    Args:
        compiled: Keras's compile config.
        arrays: the arrays of the file.
        peak: the peak rate that a file written by kresume records.
    """
    config: Mapping[str, Any] = (unwrapped((compiled or {}).get("optimizer")) or {}).get("config", {})
    rate = config.get("learning_rate")
    if isinstance(rate, Mapping):
        return rate_of_schedule(rate)
    if peak is not None:
        return SavedRate(float(peak), "run")
    found = optimizer_arrays(arrays)
    return rate_from(rate, found[1] if len(found) > 1 else None)


def rate_from(configured: Any, stored: np.ndarray | None) -> SavedRate | None:
    """Returns the rate that a config and the stored array give.

    Args:
        configured: `learning_rate` of the optimizer's config: a serialized schedule, or the rate passed to `compile`.
        stored: the array that is the rate at the time of writing if it is a single float; None if there is none.
    """
    if isinstance(configured, Mapping):
        return rate_of_schedule(configured)
    if stored is not None and stored.shape == () and stored.dtype.kind == "f":
        return SavedRate(float(stored), "float")
    return SavedRate(float(configured), "float") if isinstance(configured, (int, float)) else None


def rate_of_schedule(schedule: Mapping[str, Any]) -> SavedRate:
    """Returns the rate that a serialized Keras schedule stands for.

    This is its initial or peak rate, or the largest value of a piecewise schedule; None if the schedule is of the user's
    own class, so that its peak cannot be read.
    """
    config: Mapping[str, Any] = schedule.get("config", {})
    if isinstance(config.get("values"), (list, tuple)):
        return SavedRate(float(max(config["values"])), "schedule", dict(schedule))
    rates = [float(config[name]) for name in INITIAL_RATES if isinstance(config.get(name), (int, float))]
    return SavedRate(max(rates, default=None), "schedule", dict(schedule))
