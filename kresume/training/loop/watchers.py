"""Makes the callbacks for `--patience`, `--until` and for plateaus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras

from kresume.evaluation.gates import Condition, parse_conditions
from kresume.models.keras_metrics import better
from kresume.options.settings import DEFAULTS
from kresume.options.table import TrainConfig
from kresume.training.plan.judging import gates_of
from kresume.values.rate import RatePlan


class Until(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Ends training after the epoch in which every condition holds.

    Args:
        conditions: on the epoch's flat scores.
        say: called with the words for the user.
    """

    def __init__(self, conditions: Sequence[Condition], say: Callable[[str], None]) -> None:
        super().__init__()
        self._conditions = tuple(conditions)
        self._say = say

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Compares the scores of the epoch."""
        if all(condition.holds(logs or {}) for condition in self._conditions):
            self._say(f"reached {' and '.join(map(str, self._conditions))} in epoch {epoch + 1}")
            self._model.stop_training = True


def monitor_of(config: TrainConfig) -> tuple[str, Literal["max", "min"]] | None:
    """Returns `(metric, mode)` that chooses the best epoch; None if the last epoch is the result.

    Gates need one, too: if the last epoch fails them, the best one that meets them is the result.
    """
    if config.monitor is None and config.patience is None and not gates_of(config):
        return None
    name = config.monitor or DEFAULTS.monitor
    return name, better(name, config.metric or ())


def watchers(config: TrainConfig, rate: RatePlan, say: Callable[[str], None]) -> list[Any]:
    """Returns the callbacks for `--patience`, `--lr-schedule plateau` and `--until`."""
    watchers: list[Any] = []
    if rate.schedule == "plateau":
        watchers.append(keras.callbacks.ReduceLROnPlateau(monitor=DEFAULTS.monitor, factor=0.5, patience=3))
    if config.patience is not None:
        monitor = monitor_of(config)
        name, mode = monitor if monitor is not None else (DEFAULTS.monitor, "min")
        watchers.append(keras.callbacks.EarlyStopping(monitor=name, mode=mode, patience=config.patience))
    if config.until is not None:
        watchers.append(Until(parse_conditions(config.until, "until"), say))
    return watchers
