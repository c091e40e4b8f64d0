"""Optimizers by name or as a checkpoint had them, at a rate that is ours to set.

optimizer = make_optimizer(state.optimizer, 1e-4)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras

from kresume.checkpoints.state import SavedOptimizer, TrainState
from kresume.errors import CheckpointError, UsageError

NAMES = (
    "SGD", "RMSprop", "Adam", "AdamW", "Nadam", "Adamax", "Adagrad", "Adadelta", "Adafactor", "Ftrl", "Lion", "Lamb", "Muon",
)  # fmt: skip
SLOTS = {
    "SGD": ("momentums",),
    "RMSprop": ("_velocities",),
    "Adam": ("_momentums", "_velocities"),
    "AdamW": ("_momentums", "_velocities"),
    "Nadam": ("_momentums", "_velocities", "_u_product"),
    "Adamax": ("_m", "_u"),
    "Adagrad": ("_accumulators",),
    "Lion": ("_momentums",),
    "Lamb": ("_momentums", "_velocities"),
}


def class_name(name: str) -> str:
    """`"adamw"` -> `"AdamW"`.

    Raises:
        UsageError: Keras has no such optimizer.
    """
    found = {known.lower(): known for known in NAMES}.get(name.lower())
    if found is None:
        raise UsageError(f"--optimizer {name}: use keep, or one of {', '.join(known.lower() for known in NAMES)}")
    return found


def make_optimizer(saved: SavedOptimizer, learning_rate: Any) -> Any:
    """An optimizer of the saved class and config, at another rate.

    Args:
        saved: class and config; a config of None means Keras's defaults.
        learning_rate: a float or a Keras schedule.

    Raises:
        CheckpointError: Keras does not know the class.
    """
    if saved.class_name is None:
        raise CheckpointError("the checkpoint does not name its optimizer: give --optimizer NAME")
    config = dict(saved.config or {})
    config.pop("name", None)  # an auto-generated name of another process would shift the paths of the slots
    config["learning_rate"] = 1e-3  # a schedule's own config may be of a class that is not needed any more
    if isinstance(config.get("inner_optimizer"), Mapping):
        raise CheckpointError(
            "the checkpoint's optimizer is wrapped for loss scaling (mixed_float16), which this version does not restore: "
            "give --optimizer NAME:reset"
        )
    try:
        cls = keras.saving.get_registered_object(saved.class_name) or getattr(keras.optimizers, saved.class_name)
        optimizer = cls.from_config(config)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's optimizer {saved.class_name} cannot be built ({error}): register it with --import FILE.py, "
            "or start another fresh with --optimizer adamw:reset"
        ) from error
    optimizer.learning_rate = learning_rate
    return optimizer


def with_config(saved: SavedOptimizer, changes: Mapping[str, Any]) -> SavedOptimizer:
    """The same optimizer with other settings.

    Raises:
        UsageError: its class has no such setting.
    """
    if not changes:
        return saved
    default = make_optimizer(replace(saved, config=None), 1e-3).get_config()
    for name in changes:
        if name not in default:
            raise UsageError(f"{saved.class_name} has no setting {name}")
    return replace(saved, config={**(saved.config or {}), **changes})


def fitting(state: TrainState) -> list[str]:
    """The optimizers whose slots are those that a checkpoint without a name holds."""
    from kresume.checkpoints.tf_checkpoint import find_optimizer

    index = find_optimizer(state.graph) if state.graph else None
    if index is None:
        return []
    edges = {
        name
        for name, child in state.graph[index].children.items()
        if state.graph[child].children or state.graph[child].array
    }
    known = {slot for slots in SLOTS.values() for slot in slots}
    return [name for name, slots in SLOTS.items() if set(slots) == edges & known]
