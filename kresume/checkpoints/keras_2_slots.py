"""Identifies the slots of old optimizers by their order, because their names say nothing.

    kinds(counts, shapes, "Adam", config)      # ["_iterations", "_momentums", "_momentums", "_velocities", ...]

Affects Keras 2.0 to 2.3, and `tf.keras` of TensorFlow 1.12 and earlier. Such slots are called
`training/Adam/Variable_3:0`, `training/Adam/m_3:0` or `param_3`. Their order is known: the update count, then all slots
of one kind in the order of the trainable weights, then all of the next kind.

Source: `keras/optimizers.py` of Keras 2.0.8, 2.1.6, 2.2.4 and 2.3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Shapes = Sequence[tuple[int, ...]]

COUNT, PRODUCT, NOTHING = "_iterations", "momentum_cache", "unused"
ROUNDS: Mapping[str, tuple[str, ...]] = {
    "RMSprop": ("_velocities", "_momentums", "_average_gradients"),
    "Adagrad": ("_accumulators",),
    "Adadelta": ("_accumulated_grads", "_accumulated_delta_vars"),
    "Adam": ("_momentums", "_velocities", "_velocity_hats"),
    "Adamax": ("_m", "_u"),
    "Nadam": ("_momentums", "_velocities"),
    "SGD": ("momentums",),
}
"""The slot kinds of each class in order; kinds that depend on a setting come last."""


def kinds(counts: Sequence[bool], shapes: Shapes, name: str, config: Mapping[str, Any]) -> list[str] | None:
    """Returns the attribute of Keras 3's optimizer for each array.

    Args:
        counts: for each array True if its name says that it counts updates.
        shapes: shapes of the arrays, in the file's order.
        name: the optimizer's class.
        config: its settings, with Keras 3's names.

    Returns:
        One attribute per array, `"unused"` for a placeholder. None if the arrays do not fit the class.
    """
    rounds = _rounds(name, config)
    if rounds is None:
        return None
    front = [COUNT] if counts and counts[0] else []
    rest = list(shapes[len(front) :])
    if name == "Nadam" and rest and rest[0] == ():
        front, rest = [*front, PRODUCT], rest[1:]
    if any(counts[1:]) or (not rounds and rest):
        return None
    if not rounds:
        return front
    if name == "Adam" and len(rounds) == 2 and _has_placeholders(rest):
        rounds = (*rounds, NOTHING)
    size, left = divmod(len(rest), len(rounds))
    parts = [rest[size * index : size * (index + 1)] for index in range(len(rounds))]
    if left or any(part != parts[0] for part, kind in zip(parts, rounds, strict=True) if kind != NOTHING):
        return None
    return [*front, *(kind for kind in rounds for _ in range(size))]


def _rounds(name: str, config: Mapping[str, Any]) -> tuple[str, ...] | None:
    if name not in ROUNDS:
        return None
    if name == "SGD":
        return ROUNDS[name] if config.get("momentum") else ()
    if name == "RMSprop":
        return ROUNDS[name][: 1 + bool(config.get("momentum")) + bool(config.get("centered"))]
    if name == "Adam":
        return ROUNDS[name] if config.get("amsgrad") else ROUNDS[name][:2]
    return ROUNDS[name]


def _has_placeholders(shapes: Shapes) -> bool:
    """Returns True for two equal thirds of shapes followed by a third of scalars.

    Adam without `amsgrad` writes such placeholders, of shape `(1,)`, since Keras 2.1.
    """
    third, left = divmod(len(shapes), 3)
    return not left and third > 0 and shapes[:third] == shapes[third:-third] and set(shapes[-third:]) == {(1,)}
