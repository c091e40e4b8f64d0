"""Sets a model to weights between those of an earlier state and its own.

    between = Between(model, earlier)
    between.assign(0.25)            # a quarter of the earlier weights, three quarters of its own
    between.assign(0.0)             # its own again, bit for bit

Such an average of the weights before and after a fine-tuning is that of WiSE-FT (Wortsman et al. 2022,
https://arxiv.org/abs/2109.01903). Averages that the optimizer keeps (EMA) are mixed in the same way. Its slots stay as they
are.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.errors import CheckpointError
from kresume.models import match_groups
from kresume.models.averages import pairs_of, uses_averages
from kresume.values.state import TrainState


class Between:
    """The weights between an earlier state of a model and the weights that it has now.

    Args:
        model: built; its weights of this moment are its own.
        earlier: a snapshot of the same model; other layers may have been frozen in it.

    Raises:
        CheckpointError: the snapshot has no array for a weight, or one of another shape.
    """

    def __init__(self, model: keras.Model, earlier: TrainState) -> None:
        self._model = model
        arrays = _earlier(model, earlier)
        self._variables = [variable for variable, _ in arrays]
        self._earlier = [array for _, array in arrays]
        self._own = [np.array(live_state.host_array(variable.value)) for variable in self._variables]

    def assign(self, share: float) -> None:
        """Assigns `own + share * (earlier - own)`; what is equal in both keeps its bits.

        Args:
            share: of the earlier weights, from 0 to 1.
        """
        mixed = [_mixed(own, earlier, share) for own, earlier in zip(self._own, self._earlier, strict=True)]
        live_state.assign(self._variables, mixed)
        live_state.renew_constants(self._model)


def _mixed(own: np.ndarray, earlier: np.ndarray, share: float) -> np.ndarray:
    """Returns the average; the own value where both are equal, or one is infinite, as in a mask."""
    if not share:
        return own
    wide, other = own.astype(np.float64), earlier.astype(np.float64)
    moves = np.isfinite(wide) & np.isfinite(other) & (wide != other)
    step = np.subtract(other, wide, out=np.zeros_like(wide), where=moves)
    return np.where(moves, (wide + share * step).astype(own.dtype), own)


def _earlier(model: keras.Model, state: TrainState) -> list[tuple[Any, np.ndarray]]:
    """Returns each variable that is mixed with its earlier array: weights and averages that are floats."""
    names = match_groups.match_weights(model, state)
    found = [(variable, names.get(id(variable))) for variable in model.weights]
    if uses_averages(model):
        slots = match_groups.match_optimizer(model, model.optimizer, state, names).names
        # A weight that was frozen then had no average: it was its own.
        found += [
            (average, slots.get(id(average), names.get(id(weight)))) for weight, average in pairs_of(model.optimizer)
        ]
    result = []
    for variable, name in found:
        if not keras.backend.is_float_dtype(variable.dtype):
            continue
        array = state.arrays.get(name) if name is not None else None
        if array is None or array.shape != tuple(variable.shape):
            shape = "no array" if array is None else f"an array of shape {array.shape}"
            raise CheckpointError(
                f"{state.source} has {shape} for {variable.path} of shape {tuple(variable.shape)}: the code of the model "
                "changed since the run began"
            )
        result.append((variable, array))
    return result
