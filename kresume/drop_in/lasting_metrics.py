"""Restores metrics that count over all epochs.

    notes = restore(model, call, arrays)        # after the model, before the first epoch of this process begins

Keras resets all metrics when an epoch begins. A class of the user's whose `reset_state` does nothing, or does not
reset everything, goes on: it is restored between two epochs, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.drop_in.fit_call import FitCall
from kresume.training.loop.fit import build_from_spec


def restore(model: Any, call: FitCall | None, arrays: Sequence[np.ndarray]) -> list[str]:
    """Assigns the metrics, and lets each reset what it resets when an epoch begins.

    Args:
        model: built and compiled.
        call: the running `fit`, None if it was not found.
        arrays: the metrics of the backup.

    Returns:
        A note for the user if they cannot be restored.
    """
    named = sorted({metric.name for metric in metrics_of(model) if _resets_by_code_of_the_user(metric)})
    if not named:
        return []
    if call is not None and len(model.metrics_variables) != len(arrays):
        build_from_spec(model, call.spec_of_batches())  # TensorFlow's trainer builds them in the first step
    variables = model.metrics_variables
    if [tuple(variable.shape) for variable in variables] != [array.shape for array in arrays]:
        return [
            f"metrics with a reset_state of their own ({', '.join(named)}) begin anew: the backup has other metrics"
        ]
    live_state.assign(variables, arrays)
    model.reset_metrics()
    return []


def metrics_of(model: Any) -> list[Any]:
    """Returns the metrics of a model, also those that `compile` was given and no step has built."""
    compiled = getattr(model, "_compile_metrics", None)
    given = [getattr(compiled, name, None) for name in ("_user_metrics", "_user_weighted_metrics")]
    return [*model.metrics, *(each for each in keras.tree.flatten(given) if isinstance(each, keras.metrics.Metric))]


def _resets_by_code_of_the_user(metric: Any) -> bool:
    return not type(metric).reset_state.__module__.startswith("keras.")
