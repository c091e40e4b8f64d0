"""Makes the callbacks for `--patience`, `--until` and for plateaus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras

from kresume.evaluation.gates import Condition, parse_conditions
from kresume.models.keras_metrics import better
from kresume.options.settings import DEFAULTS
from kresume.options.table import TrainConfig
from kresume.spelling import counted
from kresume.training.plan.judging import gates_of
from kresume.values.rate import RatePlan


class Until(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Ends training after the epoch in which every condition holds.

    Args:
        conditions: on the epoch's flat scores.

    Attributes:
        reached: which conditions held, and when, in words; empty until then.
    """

    def __init__(self, conditions: Sequence[Condition]) -> None:
        super().__init__()
        self._conditions = tuple(conditions)
        self.reached = ""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Compares the scores of the epoch."""
        if all(condition.holds(logs or {}) for condition in self._conditions):
            self.reached = f"reached {' and '.join(map(str, self._conditions))} in epoch {epoch + 1}"
            self._model.stop_training = True


def monitor_of(config: TrainConfig) -> tuple[str, Literal["max", "min"]] | None:
    """Returns `(metric, mode)` that chooses the best epoch; None if the last epoch is the result.

    Gates need one, too: if the last epoch fails them, the best one that meets them is the result.
    """
    if config.monitor is None and config.patience is None and not gates_of(config):
        return None
    name = config.monitor or DEFAULTS.monitor
    return name, better(name, config.metric or ())


def why_ended(watchers: Sequence[Any]) -> list[str]:
    """Says which of the callbacks ended training before its last epoch, and why; empty if none did."""
    found = [each.reached for each in watchers if isinstance(each, Until) and each.reached]
    return found + [
        f"no better {each.monitor} for {counted(each.patience, 'epoch')}: stopped after epoch {each.stopped_epoch + 1}"
        for each in watchers
        if isinstance(each, keras.callbacks.EarlyStopping) and each.stopped_epoch
    ]


def watchers(config: TrainConfig, rate: RatePlan) -> list[Any]:
    """Returns the callbacks for `--patience`, `--lr-schedule plateau` and `--until`."""
    watchers: list[Any] = []
    if rate.schedule == "plateau":
        watchers.append(keras.callbacks.ReduceLROnPlateau(monitor=DEFAULTS.monitor, factor=0.5, patience=3))
    if config.patience is not None:
        monitor = monitor_of(config)
        name, mode = monitor if monitor is not None else (DEFAULTS.monitor, "min")
        watchers.append(keras.callbacks.EarlyStopping(monitor=name, mode=mode, patience=config.patience))
    if config.until is not None:
        watchers.append(Until(parse_conditions(config.until, "until")))
    return watchers
