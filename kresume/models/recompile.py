"""Compiles a model as the file that `--model` names was compiled.

    compile_as(model, config.get("compile_config"), own, fresh=False)

A file of weights alone does not hold its loss and its optimizer's settings; the `.keras` file of the same training does. The
model is then used like one that a user's function compiles. The loss is made later, where its code and `--loss` are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from kresume.checkpoints.keras_arrays import DEFAULT_RATES, class_of, unwrapped
from kresume.errors import CheckpointError, ModelError
from kresume.models.optimizers import make_optimizer
from kresume.models.saved_loss import RecordedLoss, find_loss
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
