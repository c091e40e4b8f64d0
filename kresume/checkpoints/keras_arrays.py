"""What the arrays say that Keras's saving library wrote: which are the optimizer's, the step, the rate.

    arrays = tidy(read_arrays(data, path))
    step_of(arrays), rate_of(compiled, arrays), optimizer_of(compiled, arrays)

The optimizer's variables stand at `optimizer/vars/0..n`: its count of iterations first, then the rate unless it was a
schedule, then averages, accumulators and slots in the order in which its class makes them. A loss-scaled optimizer
(mixed_float16) stands there twice: whole, four variables of the scaling first, and once more under `optimizer/inner_optimizer`.

Source: `keras/src/saving/saving_lib.py` and `optimizers/loss_scale_optimizer.py` of Keras 3.15.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kresume.checkpoints.state import SavedOptimizer, SavedRate
from kresume.errors import CheckpointError

OPTIMIZER = "optimizer/vars/"
INNER = "optimizer/inner_optimizer/vars/"
LOSS_SCALE = "LossScaleOptimizer"
KERAS_2_LAYERS = "_layer_checkpoint_dependencies/"
KERAS_2_ATTENTION = re.compile(r"/_(query|key|value|output)_dense/")
OPTIMIZERS = (
    "SGD", "RMSprop", "Adam", "AdamW", "Nadam", "Adamax", "Adagrad", "Adadelta", "Adafactor", "Ftrl", "Lion", "Lamb", "Muon",
)  # fmt: skip
"""The classes of Keras 3 that a name alone can begin: ScheduleFreeAdamW begins as the weights, MultiOptimizer is a map."""
DEFAULT_RATES = {"SGD": 0.01}
"""The rate of each class that is given none; 0.001 where it is not here (pinned by a test)."""
INITIAL_RATES = ("initial_learning_rate", "peak", "warmup_target", "max_lr")


def tidy(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by the names that Keras 3 gives them; Keras 2 wrote the same tree with other words for some of its parts."""
    names = (name.replace(KERAS_2_LAYERS, "layers/") for name in arrays)
    names = (KERAS_2_ATTENTION.sub(r"/\1_dense/", name) for name in names)
    return dict(zip(names, arrays.values(), strict=True))


def optimizer_arrays(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The optimizer's variables in order, without those of loss scaling around it; empty if the file has none."""
    prefix = INNER if any(name.startswith(INNER) for name in arrays) else OPTIMIZER
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return [found[key] for key in sorted(found, key=lambda key: (len(key), key))]


def optimizer_of(compiled: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray]) -> SavedOptimizer | None:
    """Class and config from the compile config, where there is one; None if the file holds no optimizer state.

    Under `mixed_float16` Keras wraps the optimizer by itself and its compile config says nothing of it: the arrays do.
    """
    count = len(optimizer_arrays(arrays))
    if not count:
        return None
    scaled = any(name.startswith(INNER) for name in arrays)
    saved = unwrapped((compiled or {}).get("optimizer"))
    if saved is None:
        return SavedOptimizer(None, None, count, scaled)
    return SavedOptimizer(class_of(saved), dict(saved["config"]), count, scaled)


def class_of(saved: Mapping[str, Any]) -> str:
    """The name by which Keras finds a serialized optimizer's class: a user's own is registered as `package>name`."""
    registered, name = str(saved.get("registered_name") or ""), str(saved["class_name"])
    package, mark, tail = (registered if ">" in registered else name).rpartition(">")
    # Keras 2 and its add-ons registered what Keras 3 knows by its plain name.
    return (
        tail if not mark or (tail in OPTIMIZERS and package in {"Custom", "Keras", "Addons"}) else f"{package}>{tail}"
    )


def by_name(name: str) -> dict[str, Any] | None:
    """The optimizer that `compile("adam")` means, with the rate that it then has; None if Keras has none of that name."""
    found = {known.lower(): known for known in OPTIMIZERS}.get(name.lower())
    return {"class_name": found, "config": {"learning_rate": DEFAULT_RATES.get(found, 1e-3)}} if found else None


def unwrapped(saved: Any) -> Mapping[str, Any] | None:
    """A serialized optimizer without the loss scaling around it; None if it is none."""
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
    """The optimizer's count of iterations."""
    found = optimizer_arrays(arrays)
    return int(found[0]) if found and found[0].shape == () and found[0].dtype.kind in "iu" else None


def rate_of(
    compiled: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray], peak: float | None = None
) -> SavedRate | None:
    """The rate: our recorded peak, else the compile config's schedule, else the float that training ended with.

    Args:
        compiled: Keras's compile config.
        arrays: of the file.
        peak: what a file of ours recorded.
    """
    config: Mapping[str, Any] = (unwrapped((compiled or {}).get("optimizer")) or {}).get("config", {})
    rate = config.get("learning_rate")
    if isinstance(rate, Mapping):
        return rate_of_schedule(rate)
    if peak is not None:
        return SavedRate(float(peak), "run")
    # The variable is what the training really ended with; the config is what it was compiled with.
    found = optimizer_arrays(arrays)
    if len(found) > 1 and found[1].shape == () and found[1].dtype.kind == "f":
        return SavedRate(float(found[1]), "float")
    return SavedRate(float(rate), "float") if isinstance(rate, (int, float)) else None


def rate_of_schedule(schedule: Mapping[str, Any]) -> SavedRate:
    """The rate that a serialized Keras schedule stands for: its initial or peak rate, the largest value of a piecewise one.

    Raises:
        CheckpointError: it is of a class of the user's own, whose peak cannot be read.
    """
    config: Mapping[str, Any] = schedule.get("config", {})
    if isinstance(config.get("values"), (list, tuple)):
        return SavedRate(float(max(config["values"])), "schedule", dict(schedule))
    rates = [float(config[name]) for name in INITIAL_RATES if isinstance(config.get(name), (int, float))]
    if not rates:
        raise CheckpointError(
            f"the checkpoint's learning rate is a schedule of its own class ({schedule.get('class_name')}), whose peak "
            "cannot be read: give --lr"
        )
    return SavedRate(max(rates), "schedule", dict(schedule))
