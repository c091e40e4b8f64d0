"""Compiles a model as the file that `--model` names was compiled.

    compile_as(model, config.get("compile_config"), own, fresh=False)

A file of weights alone does not hold its loss and its optimizer's settings; the `.keras` file of the same training does. The
model is then used like one that a user's function compiles. The loss is made later, where its code and `--loss` are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from kresume.backend import live_state
from kresume.checkpoints.keras_arrays import DEFAULT_RATES, class_of, unwrapped
from kresume.errors import CheckpointError, ModelError
from kresume.models import slots
from kresume.models.losses import compiled_by_function
from kresume.models.optimizers import describe, make_optimizer
from kresume.models.own_code import last_line
from kresume.models.saved_loss import RecordedLoss, find_loss, live_entry
from kresume.spelling import option
from kresume.storage.damage import interpreting
from kresume.values.state import SavedOptimizer


def compile_as(model: keras.Model, compiled: Any, own: Mapping[str, Any], *, fresh: bool) -> None:
    """Compiles a model with the optimizer, the loss and the steps per execution of a compile config.

    A class of optimizer that Keras does not know is left out, so that commands that do not train work.

    Args:
        model: a model that Keras built from an architecture.
        compiled: the compile config in the form of a `.keras` file; None or no mapping leaves the model as it is.
        own: custom classes by name.
        fresh: True for a new model. A file holds the rate at which its training ended, so a new one gets Keras's default of
            the class instead; a schedule begins at its start.

    Raises:
        ModelError: a setting does not have the expected form.
    """
    if not isinstance(compiled, Mapping) or type(model).compile is not keras.Model.compile:
        return  # a class that overrides `compile` expects its own arguments
    entry = find_loss(compiled)
    damaged = interpreting("the compile config of the architecture", ModelError)
    with damaged, keras.saving.custom_object_scope(own):
        optimizer = _optimizer(compiled.get("optimizer"), fresh)
    if optimizer is None and entry is None:
        return
    with interpreting("the compile config of the architecture", ModelError):
        model.compile(
            optimizer=optimizer,
            loss=RecordedLoss(entry) if entry is not None else None,
            loss_weights=compiled.get("loss_weights"),
            steps_per_execution=int(compiled.get("steps_per_execution") or 1),
            auto_scale_loss=False,
        )


def compile_alike(model: keras.Model, given: keras.Model, own: Mapping[str, Any]) -> None:
    """Compiles a model as another one with the same layers is compiled.

    Args:
        model: built.
        given: the other one, which stays as it is.
        own: custom classes by name.

    Raises:
        ModelError: its optimizer or its loss cannot be recorded, so a run could not continue.
    """
    try:
        optimizer = None
        if given.optimizer is not None:
            with keras.saving.custom_object_scope(own):
                optimizer = make_optimizer(describe(given.optimizer, given), rate_of(given.optimizer))
        entry = live_entry(given.loss)
    except (CheckpointError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"what {option('model')} is compiled with cannot be recorded ({last_line(error)}): register the classes with Keras "
            "(@keras.saving.register_keras_serializable()), with a get_config that returns every argument"
        ) from error
    config = compiled_by_function(given) or {}
    keras.Model.compile(  # a class that overrides `compile` expects its own arguments
        model,
        optimizer=optimizer,
        loss=RecordedLoss(entry) if entry is not None else None,
        loss_weights=config.get("loss_weights"),
        steps_per_execution=int(given.steps_per_execution or 1),
        auto_scale_loss=False,
    )


def rate_of(optimizer: Any) -> Any:
    """Returns the rate that an optimizer has now: a number, or a schedule."""
    rate = slots.rate_variable(optimizer)
    return live_state.inner(optimizer)._learning_rate if rate is None else float(live_state.host_array(rate.value))


def _optimizer(saved: Any, fresh: bool) -> Any:
    found = unwrapped(saved)
    if found is None:
        return None
    config = dict(found["config"])
    try:
        rate = config.get("learning_rate")
        if isinstance(rate, Mapping):
            rate = keras.saving.deserialize_keras_object(rate)
        elif fresh or rate is None:
            rate = DEFAULT_RATES.get(class_of(found), 1e-3)
        return make_optimizer(SavedOptimizer(class_of(found), config, 0), rate)
    except (CheckpointError, TypeError, ValueError):
        return None
