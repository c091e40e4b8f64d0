"""Finds the classes and settings under which Keras would have stored an optimizer's arrays.

    keras_classes(state, weights)            # ["Adam", "AdamW", "Lamb"]
    keras_forms("Adam", state, weights)      # [{"amsgrad": True}]

For files that hold the variables of an optimizer without its name. A form is one way in which a class keeps its slots,
given by the settings that differ from Keras's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kresume.checkpoints import graph_optimizer, keras_2_optimizers
from kresume.checkpoints.keras_arrays import OPTIMIZERS, optimizer_arrays
from kresume.models import slots
from kresume.values.state import TrainState

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
    "Adadelta": ("_accumulated_grads", "_accumulated_delta_vars"),
    "Ftrl": ("_accumulators", "_linears"),
    "Muon": ("momentums", "adam_velocities"),
}
ROUNDS = {
    "Adam": ("_momentums", "_velocities"),
    "AdamW": ("_momentums", "_velocities"),
    "Nadam": ("_momentums", "_velocities"),
    "Adamax": ("_m", "_u"),
    "Adagrad": ("_accumulators",),
    "Adadelta": ("_accumulated_grads", "_accumulated_delta_vars"),
    "Ftrl": ("_accumulators", "_linears"),
    "Lion": ("_momentums",),
    "Lamb": ("_momentums", "_velocities"),
    "ScheduleFreeAdamW": ("_momentums", "_velocities"),
    "Adafactor": ("_r", "_c", "_v"),
    "Muon": ("momentums", "adam_velocities"),
}
"""Slots in the order in which Keras creates them (pinned by a test)."""
SCALARS = {"Nadam": 1}
"""Number of scalars that a class keeps behind its slots."""
NEVER_NEGATIVE = frozenset(
    {"_velocities", "_velocity_hats", "_u", "_accumulators", "_accumulated_grads", "_r", "_c", "_v", "adam_velocities"}
)
ALIKE = 0.7
"""Least cosine between weights and their averages. Slots of other optimizers come nowhere near it."""


def variants(name: str) -> list[tuple[dict[str, Any], tuple[tuple[str, ...], ...]]]:
    """Lists the forms in which a class keeps slots.

    Returns:
        Per form, the settings that differ from Keras's defaults, and the slots in rounds. A round of two slots
        alternates between them from variable to variable, as Keras creates them. Empty for an unknown class.
    """
    own: list[tuple[dict[str, Any], tuple[tuple[str, ...], ...]]]
    if name == "SGD":
        own = [({}, ()), ({"momentum": 0.9}, (("momentums",),))]
    elif name == "RMSprop":
        velocity, momentum, centered = ("_velocities",), ("_momentums",), ("_average_gradients",)
        own = [
            ({}, (velocity,)),
            ({"momentum": 0.9}, (velocity, momentum)),
            ({"centered": True}, (velocity, centered)),
            ({"momentum": 0.9, "centered": True}, (velocity, momentum, centered)),
        ]
    elif name in ROUNDS:
        own = [({}, (ROUNDS[name],))]
        if name in {"Adam", "AdamW"}:
            own.append(({"amsgrad": True}, (ROUNDS[name], ("_velocity_hats",))))
    else:
        return []
    ema = ({"use_ema": True}, ((slots.AVERAGES,),))
    accumulate = ({"gradient_accumulation_steps": 2}, ((slots.ACCUMULATED,),))
    both = ({**ema[0], **accumulate[0]}, (*ema[1], *accumulate[1]))
    return [
        ({**changes, **more}, (*first, *rounds))
        for more, first in (({}, ()), ema, accumulate, both)
        for changes, rounds in own
    ]


def is_form(name: str, form: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Returns True if an optimizer with these settings keeps the slots of a form.

    Args:
        name: the class.
        form: the settings of one of `variants`.
        settings: a full config.
    """
    keys = {key for changes, _ in variants(name) for key in changes}
    return all(bool(settings.get(key)) == bool(form.get(key)) for key in keys)


def fitting_variants(name: str, arrays: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Returns the settings under which a class would have stored exactly these arrays.

    Args:
        name: the class.
        arrays: an optimizer's variables in order, its count of iterations first.
        weights: the trainable weights that were stored with them.

    Returns:
        Changes to Keras's defaults, one mapping per form that fits. In such a form the shapes agree in order, no square
        is negative, and only averages of weights resemble the weights.
    """
    found = []
    for changes, rounds in variants(name):
        expected = slot_shapes(name, rounds, [tuple(weight.shape) for weight in weights])
        for scalars in (2, 1) if len(arrays) > 1 and arrays[1].shape == () and arrays[1].dtype.kind == "f" else (1,):
            rest = arrays[scalars:]
            if [shape for _, shape in expected] == [tuple(array.shape) for array in rest]:
                kinds = [kind for kind, _ in expected]
                if _may_hold(changes, list(zip(kinds, rest, strict=True)), weights):
                    found.append(changes)
                break
    return found


def slot_shapes(
    name: str, rounds: Sequence[Sequence[str]], weights: Sequence[tuple[int, ...]]
) -> list[tuple[str, tuple[int, ...]]]:
    """Returns kind and shape of each variable behind count and rate, in creation order.

    Args:
        name: the class.
        rounds: slots in rounds, from `variants`.
        weights: the shapes of the trainable weights.
    """
    listed = [
        (kind, shape)
        for kinds in rounds
        for weight in weights
        for kind in kinds
        if (shape := _slot_shape(kind, weight)) is not None
    ]
    return listed + [("", ())] * SCALARS.get(name, 0)


def _slot_shape(kind: str, weight: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the shape of a weight's slot; None if there is no such slot.

    Adafactor keeps sums over rows and columns, and an unused scalar for a vector. Muon keeps no squares for a matrix.
    """
    if kind in {"_r", "_c"}:
        return () if len(weight) < 2 else weight[:-1] if kind == "_r" else (*weight[:-2], weight[-1])
    return None if kind == "adam_velocities" and len(weight) == 2 else weight


def _may_hold(
    changes: Mapping[str, Any], listed: Sequence[tuple[str, np.ndarray]], weights: Sequence[np.ndarray]
) -> bool:
    """Returns True if arrays of the right shapes can be a form's slots.

    No square may be negative, and averages of weights must resemble the weights.
    """
    if any(kind in NEVER_NEGATIVE and float(array.min(initial=0)) < 0 for kind, array in listed):
        return False
    if not listed or not weights:
        return True
    first = [array for _, array in listed[: len(weights)]]
    return _alike(first, weights) == ("use_ema" in changes)


def _alike(arrays: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> bool:
    """Returns True if the arrays can be averages of the weights.

    Averages point in the same direction as the weights; slots and gradients do not.
    """
    if [array.shape for array in arrays] != [weight.shape for weight in weights]:
        return False
    one, other = (np.concatenate([np.ravel(array).astype("float64") for array in group]) for group in (arrays, weights))
    return bool(one @ other > ALIKE * np.linalg.norm(one) * np.linalg.norm(other))


def keras_classes(state: TrainState, weights: Sequence[np.ndarray]) -> list[str]:
    """Returns the classes that could have written a file of Keras's saving library.

    Args:
        state: of the layout `"keras"`.
        weights: its trainable weights.
    """
    arrays = optimizer_arrays(state.arrays)
    return [name for name in OPTIMIZERS if fitting_variants(name, arrays, weights)]


def keras_forms(name: str, state: TrainState, weights: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Returns the settings under which a class would have written a file of Keras's saving library.

    Args:
        name: the class.
        state: of the layout `"keras"`.
        weights: its trainable weights.
    """
    return fitting_variants(name, optimizer_arrays(state.arrays), weights)


def graph_classes(state: TrainState, weights: Sequence[np.ndarray] = ()) -> list[str]:
    """Returns the classes that could have written an object graph.

    Args:
        state: of the layout `"graph"`.
        weights: not needed, because the graph names the slots.
    """
    index = graph_optimizer.find_optimizer(state.graph)
    if index is None:
        return []
    names = graph_optimizer.slot_names(state.graph, index)
    if graph_optimizer.style(state.graph[index]) == "legacy":
        return [
            name
            for name, kinds in SLOTS.items()
            if {keras_2_optimizers.SLOTS.get(name, {}).get(kind) for kind in names} == set(kinds)
        ]
    known = {slot for kinds in SLOTS.values() for slot in kinds}
    return [name for name, kinds in SLOTS.items() if set(kinds) == names & known]


def graph_forms(name: str, state: TrainState, weights: Sequence[np.ndarray] = ()) -> list[dict[str, Any]]:
    """Returns the settings under which a class would have written an object graph.

    There is at most one form.

    Args:
        name: the class.
        state: of the layout `"graph"`.
        weights: not needed, because the graph names the slots.
    """
    index = graph_optimizer.find_optimizer(state.graph)
    if index is None:
        return []
    names = graph_optimizer.slot_names(state.graph, index)
    if graph_optimizer.style(state.graph[index]) == "legacy":
        names = {keras_2_optimizers.SLOTS.get(name, {}).get(kind, kind) for kind in names}
    forms = [
        (changes, {kind for kinds in rounds for kind in kinds})
        for changes, rounds in variants(name)
        if "gradient_accumulation_steps" not in changes
    ]
    known = {kind for _, kinds in forms for kind in kinds}
    return [changes for changes, kinds in forms if kinds == names & known][:1]
