"""Saves and restores the variables and random generators that the user's code keeps for itself.

    records, groups = capture(model, callbacks)             # for a backup
    notes = restore(model, callbacks, records, groups)

Beside the model and what it consists of, an optimizer, a metric and a callback may hold some, or use them by a closure or a
global name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.drop_in.lasting_metrics import metrics_of
from kresume.models import other_variables
from kresume.training.loop import callback_state


def capture(model: Any, callbacks: Sequence[Any]) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Reads the state.

    Args:
        model: the model in training.
        callbacks: all other callbacks of `fit`.

    Returns:
        `(records, groups)`: JSON values for `meta.json`, and groups of arrays by name.
    """
    names, values = other_variables.capture(model, _owners(model, callbacks))
    return {other_variables.GROUP: names}, {other_variables.GROUP: values}


def restore(
    model: Any, callbacks: Sequence[Any], records: Mapping[str, Any], groups: Mapping[str, Sequence[np.ndarray]]
) -> list[str]:
    """Sets the state that `capture` read; returns notes for the user.

    Args:
        model: restored.
        callbacks: all other callbacks of `fit`.
        records: of the backup.
        groups: its arrays.
    """
    return other_variables.restore(model, records, groups, _owners(model, callbacks))


def _owners(model: Any, callbacks: Sequence[Any]) -> list[tuple[str, Any]]:
    """Returns the objects beside the model that may hold or use some, with their addresses."""
    optimizers = [model.optimizer, live_state.inner(model.optimizer)] if model.optimizer is not None else []
    metrics = [each for each in metrics_of(model) if isinstance(each, keras.metrics.Metric)]
    return [
        *((f"optimizer[{index}]", each) for index, each in enumerate(optimizers)),
        *((f"metrics[{index}]", each) for index, each in enumerate(metrics)),
        *((f"callbacks.{name}", callback) for name, callback in callback_state.named(callbacks)),
    ]
