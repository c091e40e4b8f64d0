"""Defines the callbacks of a run, in list order: cutter, narrator, scorer, Keras's own, keeper.

The narrator is in `narrator.py`.

Keras's own `fit` trains. The cutter ends each epoch at its boundary. The scorer adds the scores of old, new and all
images to the epoch's logs, so that EarlyStopping or ReduceLROnPlateau after it can monitor them. The keeper records
progress and takes the snapshots.

No callback reads `self.model` or a value of `logs` in each step: under JAX either one costs a synchronisation. The list
that calls them does not either: see `fit.BegunOnce`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import keras

from kresume.backend import hosts, live_state
from kresume.errors import NotFinite, Stopped, TrainingError
from kresume.models import other_variables
from kresume.models.statistics import GROUP, Statistics
from kresume.spelling import option
from kresume.training.loop import callback_state
from kresume.training.loop.progress import Progress
from kresume.training.loop.stop import StopRequest
from kresume.training.loop.writer import RunWriter
from kresume.training.snapshot_policy import Cadence, Due, Since

LOSS_READ_SECONDS = 0.5


class Cutter(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Ends each epoch at its boundary. First in the list; epoch lengths differ by a step.

    Keras reads `stop_training` after each batch, calls `on_epoch_end`, and reads it again. Set before and reset in
    `on_epoch_end`, it ends the epoch but not the training.

    Args:
        boundaries: the step at which each epoch ends.
        step: the step at which this process starts.
    """

    def __init__(self, boundaries: Sequence[int], step: int) -> None:
        super().__init__()
        self.boundaries = boundaries
        self.step = step
        self._cut = False
        self._remaining = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Counts the remaining steps of this epoch."""
        self._remaining = self.boundaries[epoch] - max(self.step, self.boundaries[epoch - 1] if epoch else 0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Requests the end of the epoch at its last step."""
        if batch + 1 >= self._remaining:
            self._model.stop_training = self._cut = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Withdraws the request, so that the next epoch begins."""
        if self._cut:
            self._model.stop_training = self._cut = False


class Scorer(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Scores the validation images after each epoch, and logs the scores by flat names.

    Args:
        score: scores the live model; returns the nested scores and their flat form.
    """

    def __init__(self, score: Callable[[], tuple[dict[str, Any], dict[str, float]]]) -> None:
        super().__init__()
        self.score = score
        self.scores: dict[str, Any] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Scores and updates `logs`, which Keras passes to the callbacks after this one."""
        self.scores, flat = self.score()
        if logs is not None:
            logs.update(flat)


@dataclass
class Resumption:
    """State that the keeper restores to callbacks and metrics in a process that continues."""

    callbacks: Mapping[str, Any] = field(default_factory=dict)
    callback_arrays: Sequence[Any] = ()
    metrics: Sequence[Any] | None = None


class Keeper(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Counts steps, writes the epoch's line, takes snapshots, stops on a signal. Last in the list.

    Args:
        progress: the progress at the start of this process; updated in place.
        boundaries: the step at which each epoch ends.
        steps_per_execution: steps that Keras runs between two calls of a batch callback.
        writer: writes snapshots and lines on its thread.
        cadence: how often a snapshot is due.
        stop: set by signals.
        line: makes the epoch's line from (epoch, logs, steps per second).
        monitor: `(name, "max" | "min")`, or None if the last snapshot is the result.
        resumption: state to restore when training begins.
        records: returns further records for a snapshot.
        before_epoch: called between two epochs with the number of completed epochs; returns True if the images changed
            and the dataset must be rebuilt.
        within: returns True if the scores of this epoch meet the gates, so that it may be the best.
        scored_with: returns the statistics of batch normalisation with which this step was scored.
        tell: called with Keras's logs twice a second, when their values are known anyway.
        advise: returns what to try after the loss or the state has broken, from the step of the last good snapshot.

    Attributes:
        images_changed: True ends the current `fit`, but not the training.
    """

    def __init__(
        self,
        *,
        progress: Progress,
        boundaries: Sequence[int],
        steps_per_execution: int,
        writer: RunWriter,
        cadence: Cadence,
        stop: StopRequest,
        line: Callable[[int, Mapping[str, Any], float | None], dict[str, Any]],
        monitor: tuple[str, Literal["max", "min"]] | None,
        resumption: Resumption,
        records: Callable[[], Mapping[str, Any]],
        before_epoch: Callable[[int], bool] = lambda epochs: False,
        within: Callable[[], bool] = lambda: True,
        scored_with: Callable[[], Statistics] = dict,
        tell: Callable[[Any], object] = lambda logs: None,
        advise: Callable[[int], str] = lambda good: "",
    ) -> None:
        super().__init__()
        self.progress = progress
        self.boundaries = boundaries
        self.steps_per_execution = steps_per_execution
        self.writer = writer
        self.cadence = cadence
        self.stop = stop
        self.line = line
        self.monitor = monitor
        self.resumption = resumption
        self.records = records
        self.before_epoch = before_epoch
        self.within = within
        self.scored_with = scored_with
        self.tell = tell
        self.advise = advise
        self.images_changed = False
        self.others: Sequence[Any] = ()
        self._assign_metrics = resumption.metrics is not None
        self._since_step = progress.step
        self._since_epoch = progress.epoch
        self._since_time = time.monotonic()
        self._loss_read = time.monotonic()
        self._began_at = self._loss_good_step = progress.step
        self._epoch_began = (time.monotonic(), progress.step)
        self._compiled = False
        self.steps_per_second: float | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the state of the other callbacks, after their own resets."""
        callback_state.apply(self.others, self.resumption.callbacks, list(self.resumption.callback_arrays))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Restores the epoch's averages once, after Keras has reset them."""
        self.give_metrics_back()
        self._epoch_began = (time.monotonic(), self.progress.step)

    def give_metrics_back(self) -> None:
        """Assigns the metric variables of the restored snapshot, once."""
        if self._assign_metrics:
            self._assign_metrics = False
            live_state.assign(self._model.metrics_variables, list(self.resumption.metrics or ()))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts steps, and takes a snapshot if one is due."""
        progress = self.progress
        progress.step += self.steps_per_execution
        at_end = progress.step == self.boundaries[progress.epoch]
        progress.phase = "scoring" if at_end else "training"
        if at_end:
            self._check_loss(logs)  # waits for the step, whose time counts
        now = time.monotonic()
        if not self._compiled:  # the first step of a process is no measure of the others
            self._compiled, self._epoch_began = True, (now, progress.step)
        elif at_end:
            self.steps_per_second = self.speed(now)
        if now - self._loss_read >= LOSS_READ_SECONDS:
            self._check_loss(logs)
            self.tell(logs)
            self._loss_read = now
            self.writer.check()
        if self.stop.signal is not None:
            self.snapshot(logs, must=True)
            self.writer.join()
            raise self._stopped()
        self._take(self.cadence.after_step(self._since(now)), logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch's line, then its snapshot if one is due."""
        progress = self.progress
        self._check_loss(logs)
        self.writer.put_line(self.line(epoch, logs or {}, self.steps_per_second))
        progress.lines += 1
        progress.epoch = epoch + 1
        progress.stopped_early = bool(self._model.stop_training)
        last = progress.stopped_early or progress.epoch == len(self.boundaries)
        progress.phase = "done" if last else "epoch"
        best = self._is_best(epoch, logs or {})
        stopping = self.stop.signal is not None
        self._take(self.cadence.after_epoch(self._since(time.monotonic()), urgent=best or last or stopping), logs)
        if stopping and not last:
            self.writer.join()
            raise self._stopped()
        if not last and self.before_epoch(progress.epoch):
            self._model.stop_training = self.images_changed = True

    def speed(self, now: float) -> float | None:
        """Returns the steps per second of this epoch; None before its second step.

        Args:
            now: of `time.monotonic()`.
        """
        began, first = self._epoch_began
        return (self.progress.step - first) / max(now - began, 1e-9) if self.progress.step > first else None

    def snapshot(self, logs: Any, *, must: bool) -> None:
        """Takes a snapshot; while the disk is busy, waits if `must`, else does nothing."""
        self._check_loss(logs)
        facts, arrays = callback_state.capture(self.others)
        statistics = self.scored_with()
        records = {**self.records(), **self.progress.as_dict(), "callbacks": facts, GROUP: list(statistics)}
        model = self._model
        names, values = other_variables.capture(model)
        if names:
            records[other_variables.GROUP] = names
        extra = {"callbacks": arrays, GROUP: list(statistics.values()), other_variables.GROUP: values}
        taken = self.writer.submit(
            self.progress.step,
            lambda buffers: live_state.read_state(model, buffers),
            records,
            extra={group: found for group, found in extra.items() if found},
            must=must,
        )
        if taken:
            self._since_step, self._since_epoch = self.progress.step, self.progress.epoch
            self._since_time = time.monotonic()

    def _since(self, now: float) -> Since:
        return Since(
            steps=self.progress.step - self._since_step,
            epochs=self.progress.epoch - self._since_epoch,
            seconds=now - self._since_time,
        )

    def _take(self, due: Due, logs: Any) -> None:
        if due != "no":
            self.snapshot(logs, must=due == "now")

    def _is_best(self, epoch: int, logs: Mapping[str, Any]) -> bool:
        if self.monitor is None:
            return False
        name, mode = self.monitor
        if name not in logs:
            known = ", ".join(sorted(key for key in logs if not key.startswith("classes.")))
            raise TrainingError(f"{option('monitor', name)}: no such metric in this run; known are {known}")
        value, best = float(logs[name]), self.progress.best
        if not math.isfinite(value) or not self.within():
            return False  # after one that is not finite no later value could be better
        if best is not None and not (value > best["value"] if mode == "max" else value < best["value"]):
            return False
        self.progress.best = {"step": self.progress.step, "epoch": epoch, "value": value}
        return True

    def _check_loss(self, logs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None or not hosts.this().leads:  # the process that leads reads it, when its clock says
            return
        if math.isfinite(float(loss)):
            self._loss_good_step = self.progress.step
            return
        raise self.broke(f"the loss became {float(loss)}", self._loss_good_step, self.progress.step)

    def explain(self, error: NotFinite) -> TrainingError:
        """Returns the error for the user in place of one that names arrays of a snapshot."""
        names = live_state.names_of(self._model, error.names)
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        return self.broke(f"{names[0]}{more} became NaN or infinite", self.last_good(), error.step)

    def broke(self, what: str, after: int, until: int) -> TrainingError:
        self.writer.wait()  # the snapshot on its way to the disk may be good
        good = self.last_good()
        return TrainingError(
            f"{what} between steps {after:,} and {until:,}; the last good snapshot is that of step {good:,}"
            f"{self.advise(good)}"
        )

    def last_good(self) -> int:
        """Returns the step of the newest snapshot, whose whole state was checked."""
        return self._began_at if self.writer.committed is None else self.writer.committed

    def _stopped(self) -> Stopped:
        what = "Ctrl-C" if self.stop.exit_code == 130 else "SIGTERM"
        return Stopped(f"stopped by {what} at step {self.progress.step:,}, {self.what_is_safe()}", self.stop.exit_code)

    def what_is_safe(self) -> str:
        """Describes whether the snapshot of this step is on disk; call after waiting for the writer."""
        if self.writer.committed == self.progress.step:
            return "snapshot written"
        last = "the one it began with" if self.writer.committed is None else f"step {self.writer.committed:,}"
        return f"its snapshot could NOT be written, the last good one is {last}"
