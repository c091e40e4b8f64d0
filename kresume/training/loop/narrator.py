"""Tells the reporter how far a training is: the first step, then twice a second, then each epoch.

Nothing here reads a value that the keeper does not read anyway: under JAX each read of a step's values waits for that step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from kresume.backend import live_state
from kresume.images.waiting import Waiting
from kresume.models.schedules import rate_at
from kresume.reporter import Board, Moment, Reporter
from kresume.training.loop.progress import Progress


class Narrator(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Shows the progress of a training. First after the cutter, so that no scorer runs before it.

    Use it as a context manager around `fit`.

    Args:
        reporter: shows it.
        progress: how far the run is.
        boundaries: the step at which each epoch ends; the list may change.
        batch_size: images per step.
        steps_per_execution: steps that Keras runs between two calls of a batch callback.
        iterations: the optimizer's count at the start of the run.
        speed: returns the steps per second of this epoch.
        committed: returns the step of the newest snapshot on disk.
        waiting: measures the share of time that steps wait for images.
    """

    def __init__(
        self,
        reporter: Reporter,
        progress: Progress,
        boundaries: Sequence[int],
        *,
        batch_size: int,
        steps_per_execution: int,
        iterations: int,
        speed: Callable[[float], float | None],
        committed: Callable[[], int | None],
        waiting: Waiting,
    ) -> None:
        super().__init__()
        self._reporter = reporter
        self._progress = progress
        self._boundaries = boundaries
        self._batch_size = batch_size
        self._steps_per_execution = steps_per_execution
        self._iterations = iterations
        self._speed = speed
        self._committed = committed
        self._waiting = waiting
        self._shown = contextlib.ExitStack()
        self._first_step = contextlib.ExitStack()
        self._compiling = False
        self._rate: float | None = None
        self._board: Board | None = None

    def __enter__(self) -> Narrator:
        self._board = self._shown.enter_context(self._reporter.training(len(self._boundaries)))
        if self._progress.phase != "scoring":
            self._begin_compiling()
        return self

    def __exit__(self, *_: object) -> None:
        self._first_step.close()
        self._shown.close()

    def _begin_compiling(self) -> None:
        self._compiling = True
        self._first_step.enter_context(self._reporter.waiting("compiling the first step"))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins to measure the waiting, and reads a rate that no schedule sets.

        Such a rate changes between epochs only.
        """
        self._waiting.start()
        optimizer = live_state.inner(self._model.optimizer)
        scheduled = isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)
        self._rate = None if scheduled else float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes when a step is done; the keeper, which is later in the list, counts it."""
        self._waiting.step_done(self._progress.step + self._steps_per_execution)
        if self._compiling:
            self._compiling = False
            self._first_step.close()

    def waiting_share(self) -> float | None:
        """Returns the share of time that the steps of this epoch waited for images; None if unknown."""
        return self._waiting.share_since_start()

    def row(self, line: Mapping[str, Any], text: str) -> None:
        """Shows a finished epoch.

        Args:
            line: its line of `metrics.jsonl`.
            text: the same in words.
        """
        if self._board is not None:
            self._board.row(line, text)

    def tell(self, logs: Mapping[str, Any] | None) -> Moment:
        """Shows the moment, and returns it.

        Args:
            logs: Keras's logs of a step that is done: their values were read just now.
        """
        self._waiting.caught_up()
        moment = self._moment(logs or {})
        if self._board is not None:
            self._board(moment)
        return moment

    def _moment(self, logs: Mapping[str, Any]) -> Moment:
        progress, boundaries = self._progress, self._boundaries
        first = boundaries[progress.epoch - 1] if progress.epoch else 0
        speed = self._speed(time.monotonic())
        rate = self._rate
        if rate is None:
            rate = rate_at(self._model.optimizer, self._iterations + progress.step)
        return Moment(
            epoch=progress.epoch + 1,
            epochs=len(boundaries),
            step=progress.step - first,
            steps=boundaries[progress.epoch] - first,
            done=progress.step,
            total=boundaries[-1],
            images_per_second=speed * self._batch_size if speed else None,
            seconds_left=(boundaries[-1] - progress.step) / speed if speed else None,
            loss=_number(logs.get("loss")),
            accuracy=_number(logs.get("accuracy")),
            rate=rate,
            data_share=self._waiting.share(),
            snapshot=self._committed(),
        )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
