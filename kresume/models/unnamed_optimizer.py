"""Finds class and settings of an optimizer whose file holds only its variables.

saved, note = settle(state, model, "Adam", own=None)      # SavedOptimizer, "Adam: amsgrad=True assumed"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras

from kresume.errors import CheckpointError, UsageError
from kresume.models import optimizers, slot_forms
from kresume.models.layouts import rules_of
from kresume.values.state import SavedOptimizer, TrainState


def settle(
    state: TrainState,
    model: keras.Model,
    asked: str | None,
    own: SavedOptimizer | None,
    *,
    accumulate: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[SavedOptimizer, str]:
    """Returns a file's optimizer with its class and settings.

    The class is the user's, else that of the user's model function. The settings are those of that function, else those
    under which the stored variables fit.

    Args:
        state: the checkpoint; its optimizer has no class.
        model: built.
        asked: class requested by the user; None for the compiled one.
        own: the optimizer that the user's model function compiles, if any.
        accumulate: number of batches per update, if the user gives it.
        given: settings that the user gives anew; nothing is assumed about them.

    Returns:
        The optimizer, and a note on the settings that were assumed.

    Raises:
        CheckpointError: no class is named, or the variables are not of that class; the message says which would fit.
        UsageError: the file holds accumulated gradients, and the number of batches per update is not given.
    """
    stored = state.optimizer
    if stored is None:
        raise CheckpointError(f"{state.source} holds no optimizer state")
    evidence = rules_of(state).evidence
    weights = evidence.trained_weights(model, state)
    fitting = ", ".join(name.lower() for name in evidence.classes(state, weights)) or "none that kresume knows"
    name = asked or (own.class_name if own is not None else None)
    if name is None:
        raise CheckpointError(
            f"{state.source} does not name its optimizer: give --optimizer NAME (its state would fit: {fitting}), "
            "compile the model in the function that --model names, or start it fresh with --optimizer adamw:reset"
        )
    settings = dict(own.config or {}) if own is not None and own.class_name == name else None
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
            f"{len(weights):,} trainable weights; its state would fit: {fitting}. If other layers were frozen when it was "
            f"written, give the --model that freezes those, or start it fresh with --optimizer {name.lower()}:reset"
        )
    if settings is not None:
        return replace(stored, class_name=name, config=settings), ""
    if len(forms) > 1:
        shown = " or ".join(
            ", ".join(f"{key}={value}" for key, value in form.items()) or "its defaults" for form in forms
        )
        raise CheckpointError(
            f"{state.source} fits {name} with {shown}, and does not say which: compile the model, with its optimizer, in the "
            "function that --model names"
        )
    form = forms[0]
    if "gradient_accumulation_steps" in form:
        if accumulate is None:
            raise UsageError(
                f"{state.source} holds accumulated gradients and not how many batches make an update: give --accumulate N"
            )
        form = {**form, "gradient_accumulation_steps": accumulate}
    return replace(stored, class_name=name, config=form or None), _assumed(name, form, given or {})


def _assumed(name: str, form: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Describes the assumed settings: those found from slots, and those that leave no trace."""
    config = optimizers.make_optimizer(SavedOptimizer(name, dict(form), 0), 1e-3).get_config()
    silent = {
        "nesterov": "momentum" in form,
        "ema_momentum": "use_ema" in form,
        "weight_decay": config.get("weight_decay"),
    }
    words = {**form, **{key: config[key] for key, matters in silent.items() if matters and key in config}}
    said = ", ".join(f"{key}={value}" for key, value in words.items() if key not in given)
    return f"{name}: {said} assumed" if said else ""
