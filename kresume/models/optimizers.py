"""Creates optimizers by name or as a checkpoint had them, at a given rate.

optimizer = make_optimizer(state.optimizer, 1e-4)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.checkpoints import graph_optimizer, keras_2
from kresume.checkpoints.keras_arrays import OPTIMIZERS, optimizer_arrays
from kresume.errors import CheckpointError, UsageError
from kresume.models import slots
from kresume.values.state import SavedOptimizer, TrainState

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
ADAMS = frozenset({"Adam", "AdamW", "Nadam", "Adamax", "Lamb"})
BETAS = frozenset({"beta_1", "beta_2", "epsilon", "amsgrad"})
SHARED = frozenset(
    {"clipnorm", "global_clipnorm", "clipvalue", "use_ema", "ema_momentum", "ema_overwrite_frequency"}
    | {"gradient_accumulation_steps"}
)


def class_name(name: str) -> str:
    """Converts `"adamw"` to `"AdamW"`.

    Raises:
        UsageError: Keras has no such optimizer.
    """
    found = {known.lower(): known for known in OPTIMIZERS}.get(name.lower())
    if found is None:
        raise UsageError(
            f"--optimizer {name}: use keep, or one of {', '.join(known.lower() for known in OPTIMIZERS)}; any other class is "
            "taken as the function that --model names compiles it"
        )
    return found


def parse_choice(text: str | None) -> tuple[str | None, bool]:
    """Parses the value of `--optimizer`.

    Returns:
        The class, which is None for `keep` and if nothing is given, and True if its state starts fresh.

    Raises:
        UsageError: the text is not keep, NAME, NAME:keep or NAME:reset.
    """
    name, _, way = (text or "keep").partition(":")
    if way not in {"", "keep", "reset"}:
        raise UsageError(f"--optimizer {text}: give keep, NAME, NAME:keep or NAME:reset")
    if name == "keep" and way == "reset":
        raise UsageError("--optimizer keep:reset contradicts itself: give NAME:reset, for example adamw:reset")
    return (None if name == "keep" else class_name(name)), way == "reset"


def says_same_weights(text: str | None) -> bool:
    """Returns True if `--optimizer` states that the slots belong to the weights trainable now."""
    return text == "keep" or str(text).endswith(":keep")


def check_can_keep(state: TrainState, name: str) -> None:
    """Raises if the state of a checkpoint's optimizer has no meaning in Keras.

    Args:
        state: the checkpoint.
        name: the class to start fresh with, for the message.

    Raises:
        CheckpointError: the state cannot be kept; the message says why and what to give.
    """
    if why := state.records.get("cannot_keep"):
        raise CheckpointError(
            f"{state.source}: its optimizer's state cannot be kept: {why}; start one fresh with --optimizer "
            f"{name.lower()}:reset"
        )


def make_optimizer(saved: SavedOptimizer, learning_rate: Any) -> Any:
    """Creates an optimizer of the saved class and config, at another rate.

    Args:
        saved: class and config; a config of None means Keras's defaults. With `loss_scale`, the optimizer is wrapped
            for mixed_float16.
        learning_rate: a float or a Keras schedule.

    Raises:
        CheckpointError: Keras does not know the class.
    """
    if saved.class_name is None:
        raise CheckpointError("the checkpoint does not name its optimizer: give --optimizer NAME")
    config = dict(saved.config or {})
    config.pop("name", None)  # an auto-generated name of another process would shift the paths of the slots
    config["learning_rate"] = 1e-3  # the saved schedule may be of a class that is no longer needed
    try:
        cls = keras.saving.get_registered_object(saved.class_name) or getattr(keras.optimizers, saved.class_name)
        optimizer = cls.from_config(config)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's optimizer {saved.class_name} cannot be built ({error}): register it with --import FILE.py, "
            "or start another fresh with --optimizer adamw:reset"
        ) from error
    optimizer.learning_rate = learning_rate
    return keras.optimizers.LossScaleOptimizer(optimizer) if saved.loss_scale else optimizer


def rate_as_saved(state: TrainState, saved: SavedOptimizer) -> Any:
    """Returns the optimizer's rate, a float or a schedule.

    The file's rate comes first, then that of the user's own compile call, then 1e-3.

    Args:
        state: the checkpoint.
        saved: its optimizer; if the file holds no settings, with those of the function that compiled it.

    Raises:
        CheckpointError: Keras does not know the class of the schedule.
    """
    rate = state.rate
    found: Any = rate.schedule or rate.value if rate is not None else (saved.config or {}).get("learning_rate")
    if not isinstance(found, Mapping):
        return float(found) if isinstance(found, (int, float)) else 1e-3
    try:
        return keras.optimizers.schedules.deserialize(dict(found))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the schedule {found.get('class_name')} in {state.source} is not known to Keras: register it with --import "
            "FILE.py"
        ) from error


def describe(optimizer: Any) -> SavedOptimizer:
    """Returns the class and config of a live optimizer, as `make_optimizer` expects them."""
    wrapped, optimizer = optimizer, live_state.inner(optimizer)
    name = str(keras.saving.get_registered_name(type(optimizer)))
    config = dict(keras.saving.serialize_keras_object(optimizer)["config"])
    return SavedOptimizer(name, config, len(optimizer.variables), wrapped is not optimizer)


def with_config(saved: SavedOptimizer, changes: Mapping[str, Any]) -> SavedOptimizer:
    """Returns the optimizer with some settings changed.

    Raises:
        UsageError: its class has no such setting.
    """
    if not changes:
        return saved
    default = make_optimizer(replace(saved, config=None, loss_scale=False), 1e-3).get_config()
    for name in changes:
        if name not in default:
            raise UsageError(f"{saved.class_name} has no setting {name}")
    return replace(saved, config={**(saved.config or {}), **changes})


def into(saved: SavedOptimizer, name: str) -> SavedOptimizer:
    """Changes an optimizer's class and keeps the settings that both classes have.

    These are clipping, averages (EMA) and accumulation; between classes of the Adam family also the betas, epsilon and
    amsgrad.

    Args:
        saved: the checkpoint's optimizer.
        name: the other class.
    """
    default = make_optimizer(SavedOptimizer(name, None, 0), 1e-3).get_config()
    shared = SHARED | (BETAS if {saved.class_name, name} <= ADAMS else frozenset())
    config = {key: value for key, value in (saved.config or {}).items() if key in shared and key in default}
    return replace(saved, class_name=name, config=config)


def comparable_rates(one: str | None, other: str | None) -> bool:
    """Returns True if a rate means about the same to both classes."""
    return one == other or {one, other} <= ADAMS


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


def graph_form(name: str, state: TrainState) -> dict[str, Any] | None:
    """Returns the settings under which a class keeps an object graph's slots.

    Args:
        name: the class.
        state: of the layout `"graph"`.

    Returns:
        Changes to Keras's defaults; None if no settings fit.
    """
    index = graph_optimizer.find_optimizer(state.graph)
    if index is None:
        return None
    names = graph_optimizer.slot_names(state.graph, index)
    if graph_optimizer.style(state.graph[index]) == "legacy":
        names = {keras_2.SLOTS.get(name, {}).get(kind, kind) for kind in names}
    forms = [
        (changes, {kind for kinds in rounds for kind in kinds})
        for changes, rounds in variants(name)
        if "gradient_accumulation_steps" not in changes
    ]
    known = {kind for _, kinds in forms for kind in kinds}
    return next((changes for changes, kinds in forms if kinds == names & known), None)


def fitting(state: TrainState, weights: Sequence[np.ndarray] = ()) -> list[str]:
    """Returns the optimizers whose slots a checkpoint without an optimizer name could hold.

    Args:
        state: the checkpoint.
        weights: its trainable weights, for formats that store the optimizer as a plain list of arrays.
    """
    if state.layout == "keras":
        arrays = optimizer_arrays(state.arrays)
        return [name for name in OPTIMIZERS if fitting_variants(name, arrays, weights)]
    index = graph_optimizer.find_optimizer(state.graph) if state.graph else None
    if index is None:
        return []
    names = graph_optimizer.slot_names(state.graph, index)
    if graph_optimizer.style(state.graph[index]) == "legacy":
        return [
            name
            for name, kinds in SLOTS.items()
            if {keras_2.SLOTS.get(name, {}).get(kind) for kind in names} == set(kinds)
        ]
    known = {slot for kinds in SLOTS.values() for slot in kinds}
    return [name for name, kinds in SLOTS.items() if set(kinds) == names & known]
