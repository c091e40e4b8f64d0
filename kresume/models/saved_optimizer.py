"""Revives the optimizer of a checkpoint: its class and settings, its rate, its variables.

    saved, note = name_optimizer(state, model, asked="Adam")      # SavedOptimizer, "Adam: amsgrad=True, ... assumed"
    optimizer = build_optimizer(model, state, saved)              # with as many variables as the file stores

Training, evaluation and export start here. Some files hold the variables of an optimizer and not its name; then the
user, the user's model function and the variables themselves say what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from kresume.backend import live_state
from kresume.errors import CheckpointError, UsageError
from kresume.models import optimizers, schedules, slot_forms
from kresume.models.layouts import rules_of
from kresume.spelling import option
from kresume.values.state import SavedOptimizer, TrainState

SHOWN_ELSEWHERE = {"learning_rate", "ema_momentum", "initial_accumulator_value"}
"""Numbers that are no assumed settings: the rate is in the file, the others matter with averages or before the first step."""
UNUSED_RATE = 1e-3
"""The rate of an optimizer that gets its own before it trains."""


def describe_compiled(optimizer: Any | None, model: keras.Model | None = None) -> SavedOptimizer | None:
    """Returns class and config of the optimizer that a user's function compiled, if any.

    Args:
        optimizer: of Keras, None for none.
        model: the model that it will train.
    """
    return optimizers.describe(optimizer, model) if optimizer is not None else None


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
            f"{state.source}: its optimizer's state cannot be kept: {why}; start one fresh with "
            f"{option('optimizer', f'{name.lower()}:reset')}"
        )


def name_optimizer(
    state: TrainState,
    model: keras.Model,
    asked: str | None,
    own: SavedOptimizer | None = None,
    *,
    accumulate: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[SavedOptimizer, str]:
    """Returns a checkpoint's optimizer with its class and settings.

    The file's own class and settings come first. If it has none, the class is the user's, else that of the user's model
    function; the settings are those of that function, else those under which the stored variables fit.

    Args:
        state: the checkpoint.
        model: built.
        asked: class requested by the user; None for the compiled one.
        own: the optimizer that the user's model function compiles, if any.
        accumulate: number of batches per update, if the user gives it.
        given: settings that the user gives anew; nothing is assumed about them.

    Returns:
        The optimizer, and a note on the settings that were assumed.

    Raises:
        CheckpointError: the file holds no optimizer state, no class is named, or the variables are not of that class;
            the message says which would fit.
        UsageError: the file holds accumulated gradients, and the number of batches per update is not given.
    """
    stored = state.optimizer
    if stored is None:
        raise CheckpointError(f"{state.source} holds no optimizer state")
    if stored.class_name is not None:
        return stored, ""
    evidence = rules_of(state).evidence
    weights = evidence.trained_weights(model, state)
    fitting = ", ".join(name.lower() for name in evidence.classes(state, weights)) or "none that kresume knows"
    name = asked or (own.class_name if own is not None else None)
    if name is None:
        raise CheckpointError(
            f"{state.source} does not name its optimizer: give {option('optimizer', 'NAME')} (its state would fit: {fitting}), "
            f"compile the model in the function of {option('model')}, or start it fresh with "
            f"{option('optimizer', 'NAME:reset')}"
        )
    settings = dict(own.config or {}) if own is not None and own.class_name == name else None
    if stored.config is not None:
        return replace(stored, class_name=name, config=_of_either(stored.config, name, settings, state.source)), ""
    forms = evidence.forms(name, state, weights)
    if not evidence.decisive and settings is None and forms:
        return replace(stored, class_name=name, config=forms[0] or None), _assumed(name, forms[0], given or {})
    if not evidence.decisive or (settings is not None and not slot_forms.variants(name)):
        return replace(stored, class_name=name, config=settings), ""
    if settings is not None:
        forms = [form for form in forms if slot_forms.is_form(name, form, settings)]
    elif accumulate is None:
        # Accumulated gradients have the shapes of a momentum. They are rare, and the user would name the option.
        forms = [form for form in forms if "gradient_accumulation_steps" not in form] or forms
    if not forms:
        compiled = " as the model's function compiles it" if settings is not None else ""
        raise CheckpointError(
            f"{state.source} holds {stored.variables:,} optimizer variables, which are not those of {name}{compiled} for "
            f"{len(weights):,} trainable weights; its state would fit: {fitting}. If layers were frozen when it was "
            f"written, name them with {option('freeze', 'PATTERN')} or freeze them in the function of {option('model')}; "
            f"otherwise start it fresh with {option('optimizer', f'{name.lower()}:reset')}"
        )
    if settings is not None:
        return replace(stored, class_name=name, config=settings), ""
    form = _only_form(forms, name, state.source, accumulate)
    return replace(stored, class_name=name, config=form or None), _assumed(name, form, given or {})


def coupled_decay(state: TrainState, name: str) -> float:
    """Returns the weight decay that an optimizer adds to the gradient, which Keras cannot; 0 if none.

    Args:
        state: the checkpoint.
        name: the class of its optimizer, as the user says it where the file does not.
    """
    stored = state.optimizer
    if stored is not None and stored.class_name is None and stored.config is not None and name == "Adam":
        return float(stored.config["weight_decay"])
    return float(state.records.get("coupled_decay") or 0.0)


def _of_either(found: Mapping[str, Any], name: str, own: Mapping[str, Any] | None, source: str) -> dict[str, Any]:
    """Returns the settings of a file that Adam and AdamW write alike; Adam's decay is in the gradient.

    Raises:
        CheckpointError: the class is another one.
    """
    if name not in {"Adam", "AdamW"}:
        raise CheckpointError(
            f"{source} holds the state of Adam or AdamW, not of {name}: give {option('optimizer', 'adam')} or "
            f"{option('optimizer', 'adamw')}, whichever the script used, or {option('optimizer', f'{name.lower()}:reset')}"
        )
    settings = {key: value for key, value in found.items() if key != "weight_decay" or name == "AdamW"}
    return {**(own or {}), **settings}


def _only_form(forms: Sequence[dict[str, Any]], name: str, source: str, accumulate: int | None) -> dict[str, Any]:
    """Returns the only settings that fit, with the user's number of batches per update.

    Raises:
        CheckpointError: several settings fit.
        UsageError: the number of batches per update is needed and not given.
    """
    if len(forms) > 1:
        shown = " or ".join(
            ", ".join(f"{key}={value}" for key, value in form.items()) or "its defaults" for form in forms
        )
        raise CheckpointError(
            f"{source} fits {name} with {shown}, and does not record which: compile the model, with its optimizer, in the "
            f"function of {option('model')}"
        )
    form = forms[0]
    if "gradient_accumulation_steps" not in form:
        return form
    if accumulate is None:
        raise UsageError(
            f"{source} holds accumulated gradients, but not the number of batches per update: give {option('accumulate')}"
        )
    return {**form, "gradient_accumulation_steps": accumulate}


def _assumed(name: str, form: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Describes the assumed settings: those found from slots, and Keras's for what leaves no trace."""
    config = optimizers.make_optimizer(SavedOptimizer(name, dict(form), 0), 1e-3).get_config()
    silent = {"nesterov": "momentum" in form, "ema_momentum": "use_ema" in form}
    numbers = {
        key: value
        for key, value in config.items()
        if type(value) in (int, float) and key not in SHOWN_ELSEWHERE and (key != "momentum" or value)
    }
    words = {**form, **{key: config[key] for key, matters in silent.items() if matters and key in config}, **numbers}
    said = [
        f"{key}={value:g}" if type(value) is float else f"{key}={value}"
        for key, value in words.items()
        if key not in given
    ]
    return f"{name}: {', '.join([*said, 'no clipping'])} assumed"


def named_or_compiled(state: TrainState, compiled: Any | None) -> SavedOptimizer | None:
    """Returns a checkpoint's optimizer if its class is known, for a model that only predicts.

    The class is the file's, else the compiled one.

    Args:
        state: the checkpoint.
        compiled: the optimizer that the user's model function compiled, if any.

    Returns:
        None if the file has no optimizer state, or its class is unknown.
    """
    stored = state.optimizer
    if stored is None or stored.class_name is not None:
        return stored
    own = describe_compiled(compiled)
    return replace(stored, class_name=own.class_name, config=own.config) if own is not None else None


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
        return schedules.deserialize(found)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the schedule {found.get('class_name')} in {state.source} is not known to Keras: register it with "
            f"{option('import', 'FILE.py')}"
        ) from error


def build_optimizer(
    model: Any,
    state: TrainState,
    saved: SavedOptimizer,
    *,
    weights: Sequence[Any] | None = None,
    portable: bool = False,
) -> Any:
    """Builds a checkpoint's optimizer on a model.

    It has as many variables as the file stores for it.

    Args:
        model: built.
        state: the checkpoint.
        saved: the optimizer's class and settings.
        weights: the weights that it trains; None for the model's trainable variables.
        portable: True for an optimizer that is written with its rate. A schedule of kresume is replaced by one of Keras, for
            a model that must load where kresume is not installed. A schedule has no variable, a float rate has one, so it
            stays a schedule. False for one whose rate is set later: a schedule of an unknown class is replaced, too.

    Raises:
        CheckpointError: Keras does not know the optimizer's class, or that of a schedule that has to be written.
    """
    schedule = state.rate.schedule if state.rate is not None else None
    if portable and state.rate is not None and schedule and str(schedule.get("registered_name")).startswith("kresume>"):
        rate: Any = _held(state.rate.value or 0.0)
    else:
        try:
            rate = rate_as_saved(state, saved)
        except CheckpointError:
            if portable:
                raise
            rate = _held(UNUSED_RATE)
    trained = list(weights) if weights is not None else model.trainable_variables
    optimizer = optimizers.make_optimizer(saved, rate)
    optimizer.build(trained)
    stored = state.optimizer.variables if state.optimizer is not None and rules_of(state).numbered else 0
    if state.rate is None and isinstance(rate, float) and stored == len(live_state.inner(optimizer).variables) - 1:
        # The writer's rate was a schedule, which has no variable: the numbers of all others are lower by one.
        optimizer = optimizers.make_optimizer(saved, _held(rate))
        optimizer.build(trained)
    return optimizer


def _held(rate: float) -> Any:
    """Returns a schedule of Keras that holds a rate: unlike a float, it makes no variable."""
    return keras.optimizers.schedules.ExponentialDecay(rate, 1, 1.0)
