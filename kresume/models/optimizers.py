"""Optimizers by name or as a checkpoint had them, at a rate that is ours to set.

optimizer = make_optimizer(state.optimizer, 1e-4)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kresume import devices
from kresume.checkpoints import graph_optimizer, keras_2
from kresume.checkpoints.keras_arrays import OPTIMIZERS, optimizer_arrays
from kresume.checkpoints.state import SavedOptimizer, TrainState
from kresume.errors import CheckpointError, UsageError
from kresume.models import slots

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
"""How many numbers a class keeps behind its slots."""
NEVER_NEGATIVE = frozenset(
    {"_velocities", "_velocity_hats", "_u", "_accumulators", "_accumulated_grads", "_r", "_c", "_v", "adam_velocities"}
)
ALIKE = 0.7
"""The cosine between weights and what may be their averages. Another optimizer's slots come nowhere near it."""
ADAMS = frozenset({"Adam", "AdamW", "Nadam", "Adamax", "Lamb"})
BETAS = frozenset({"beta_1", "beta_2", "epsilon", "amsgrad"})
SHARED = frozenset(
    {"clipnorm", "global_clipnorm", "clipvalue", "use_ema", "ema_momentum", "ema_overwrite_frequency"}
    | {"gradient_accumulation_steps"}
)


def class_name(name: str) -> str:
    """`"adamw"` -> `"AdamW"`.

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
    """Reads `--optimizer` as (class, whether its state starts fresh); the class is None for `keep` and where nothing is given.

    Raises:
        UsageError: it is neither keep, NAME, NAME:keep nor NAME:reset.
    """
    name, _, way = (text or "keep").partition(":")
    if way not in {"", "keep", "reset"}:
        raise UsageError(f"--optimizer {text}: give keep, NAME, NAME:keep or NAME:reset")
    if name == "keep" and way == "reset":
        raise UsageError("--optimizer keep:reset contradicts itself: give NAME:reset, for example adamw:reset")
    return (None if name == "keep" else class_name(name)), way == "reset"


def says_same_weights(text: str | None) -> bool:
    """Tells whether `--optimizer` says that the weights which train now are those whose slots the checkpoint holds."""
    return text == "keep" or str(text).endswith(":keep")


def check_can_keep(state: TrainState, name: str) -> None:
    """Raises if the state of a checkpoint's optimizer has no meaning in Keras.

    Args:
        state: what was read.
        name: the class to start fresh with, for the message.

    Raises:
        CheckpointError: why not, and the way on.
    """
    if why := state.records.get("cannot_keep"):
        raise CheckpointError(
            f"{state.source}: its optimizer's state cannot be kept: {why}; start one fresh with --optimizer "
            f"{name.lower()}:reset"
        )


def make_optimizer(saved: SavedOptimizer, learning_rate: Any) -> Any:
    """An optimizer of the saved class and config, at another rate.

    Args:
        saved: class and config; a config of None means Keras's defaults. With `loss_scale` it comes wrapped for mixed_float16.
        learning_rate: a float or a Keras schedule.

    Raises:
        CheckpointError: Keras does not know the class.
    """
    if saved.class_name is None:
        raise CheckpointError("the checkpoint does not name its optimizer: give --optimizer NAME")
    config = dict(saved.config or {})
    config.pop("name", None)  # an auto-generated name of another process would shift the paths of the slots
    config["learning_rate"] = 1e-3  # a schedule's own config may be of a class that is not needed any more
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
    """The rate as the optimizer had it, a float or a schedule: the file's, else that of the user's own compile call.

    Args:
        state: what was read.
        saved: its optimizer, with the settings of the function that compiled it where the file holds none.

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
    """Class and config of a live optimizer: `make_optimizer` makes its like from them."""
    wrapped, optimizer = optimizer, devices.inner(optimizer)
    name = str(keras.saving.get_registered_name(type(optimizer)))
    config = dict(keras.saving.serialize_keras_object(optimizer)["config"])
    return SavedOptimizer(name, config, len(optimizer.variables), wrapped is not optimizer)


def with_config(saved: SavedOptimizer, changes: Mapping[str, Any]) -> SavedOptimizer:
    """The same optimizer with other settings.

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
    """Another class with the settings that both have: clipping, averages, accumulation, and the decay of shared averages.

    Args:
        saved: what the checkpoint had.
        name: the other class.
    """
    default = make_optimizer(SavedOptimizer(name, None, 0), 1e-3).get_config()
    shared = SHARED | (BETAS if {saved.class_name, name} <= ADAMS else frozenset())
    config = {key: value for key, value in (saved.config or {}).items() if key in shared and key in default}
    return replace(saved, class_name=name, config=config)


def comparable_rates(one: str | None, other: str | None) -> bool:
    """Whether a rate of one class means about the same to the other."""
    return one == other or {one, other} <= ADAMS


def variants(name: str) -> list[tuple[dict[str, Any], tuple[tuple[str, ...], ...]]]:
    """The forms in which a class keeps slots: the settings that differ from Keras's defaults, and its slots in rounds.

    A round of two slots alternates between them from variable to variable, as Keras creates them.
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
    """Whether an optimizer with these settings keeps the slots of a form (one of `variants`).

    Args:
        name: the class.
        form: the settings that differ from Keras's defaults.
        settings: a full config.
    """
    keys = {key for changes, _ in variants(name) for key in changes}
    return all(bool(settings.get(key)) == bool(form.get(key)) for key in keys)


def fitting_variants(name: str, arrays: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """The settings of a class under which it would have stored exactly these arrays.

    Args:
        name: the class.
        arrays: an optimizer's variables in order, its count of iterations first.
        weights: the trainable weights that were stored with them.

    Returns:
        Changes to Keras's defaults, one mapping per form that fits: shapes in order, no negative square, and averages of
        weights that are like the weights.
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
    """Kind and shape of each variable that a class keeps behind its count and its rate, in the order in which Keras makes them.

    Args:
        name: the class.
        rounds: of `variants`.
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
    """Adafactor keeps sums over rows and columns, and an idle number for a vector; Muon no squares for a matrix."""
    if kind in {"_r", "_c"}:
        return () if len(weight) < 2 else weight[:-1] if kind == "_r" else (*weight[:-2], weight[-1])
    return None if kind == "adam_velocities" and len(weight) == 2 else weight


def _may_hold(
    changes: Mapping[str, Any], listed: Sequence[tuple[str, np.ndarray]], weights: Sequence[np.ndarray]
) -> bool:
    """Says if arrays of the right shapes can be the slots of a form: no negative square, and averages like the weights."""
    if any(kind in NEVER_NEGATIVE and float(array.min(initial=0)) < 0 for kind, array in listed):
        return False
    if not listed or not weights:
        return True
    first = [array for _, array in listed[: len(weights)]]
    return _alike(first, weights) == ("use_ema" in changes)


def _alike(arrays: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> bool:
    """Whether these are averages of the weights: they point the same way, which slots and gradients do not."""
    if [array.shape for array in arrays] != [weight.shape for weight in weights]:
        return False
    one, other = (np.concatenate([np.ravel(array).astype("float64") for array in group]) for group in (arrays, weights))
    return bool(one @ other > ALIKE * np.linalg.norm(one) * np.linalg.norm(other))


def graph_form(name: str, state: TrainState) -> dict[str, Any] | None:
    """The settings of a class under which it keeps the slots that an object graph names; None if there are none.

    Args:
        name: the class.
        state: of the layout `"graph"`.
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
    """The optimizers whose slots are those that a checkpoint without a name holds.

    Args:
        state: what was read.
        weights: the trainable weights that it holds, for formats whose optimizer is a bare list of arrays.
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
