"""Defines `kresume.BackupAndRestore`: exact continuation for a user's own `fit` call.

    data = kresume.resumable(lambda position: my_dataset_from(position), steps_per_epoch=500)
    model.fit(data, epochs=20, callbacks=[kresume.BackupAndRestore("backup/", data=data)])

Arguments and behaviour are those of `keras.callbacks.BackupAndRestore`, with three differences. A backup is complete: seed
states, metrics, other callbacks and the position in the data. It is verified and becomes valid only when it is on disk. No
step runs twice.

The class below handles events in the order of `fit`. Other modules do the work:

- `backup_restore`, `backup_keras`, `why_ended`: restore a backup, also of Keras's own callback; why a training had ended.
- `own_state`, `backup_save`: collect the contents of a backup, and refuses weights that are not finite.
- `backup_files`: handles the files beside the snapshots, and their removal.
- `callback_state`, `callback_logs`: handle the other callbacks and their log files.
- `fit_call`, `script_record`: find the running `fit` and its data, and describe what the script trains.
- `fit_of_script`, `backup_arguments`: tell the fits of one script apart that share a folder; check the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras

from kresume import crash
from kresume.checkpoints import snapshot
from kresume.drop_in import (
    backup_files,
    backup_keras,
    backup_restore,
    backup_save,
    data_order,
    fit_call,
    fit_of_script,
    generators,
    own_state,
    script_record,
)
from kresume.drop_in.backup_arguments import check_arguments, check_model
from kresume.drop_in.backup_paths import PathsOfKeras
from kresume.drop_in.backup_place import Place
from kresume.drop_in.data_position import DataPosition
from kresume.drop_in.restore_target import Target
from kresume.drop_in.stream import Stream, stream_of
from kresume.lock import NAME as LOCK
from kresume.lock import Lock
from kresume.models import own_counts
from kresume.reporter import Reporter
from kresume.storage import atomic
from kresume.training.loop import callback_list, callback_state
from kresume.training.loop.callback_logs import CallbackLogs
from kresume.training.loop.writer import RunWriter
from kresume.training.snapshot_policy import Retention


class _Cut:
    """Marks our own early end of an epoch in `model.stop_training`; other callbacks set True."""


class BackupAndRestore(PathsOfKeras, keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Backs up a training, and restores it exactly when the same script runs again.

    Args:
        backup_dir: the folder of the backups, or an address (`gs://`, `s3://`). Keras's own backups in it are read if it
            has none of kresume.
        save_freq: `"epoch"`, or a number of batches.
        double_checkpoint: True also keeps the backup before the newest.
        delete_checkpoint: True removes the backups when `fit` ends; files that this class did not write are kept.
        data: the return value of `kresume.image_dataset` or `kresume.resumable` that `fit` is given too. With it,
            training continues in the middle of an epoch with the batches that were not drawn yet.
        strict: True refuses a number of batches as `save_freq` without `data`. Without `data` the order of the data is
            up to the caller: an interrupted epoch skips the batches that it has drawn and draws the rest. False accepts
            that, also for a callback that is given to `fit` again after `fit` raised. None accepts it too, but then
            repeats the epoch from its beginning after `fit` raised, as Keras does.
        on_new_data: what to do if the images of `image_dataset` changed since: `"next-epoch"` ends the interrupted
            epoch on the old list and begins the next one with the new list; `"error"` raises.

    Raises:
        UsageError: an argument is invalid.

    Scripts may read `backup_dir`, `_current_epoch`, `_last_batch_seen` and `training_metadata.json`, as with Keras's callback.
    """

    def __init__(
        self,
        backup_dir: str | Path,
        save_freq: int | str = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        *,
        data: Any = None,
        strict: bool | None = None,
        on_new_data: Literal["next-epoch", "error"] = "next-epoch",
    ) -> None:
        super().__init__()
        check_arguments(backup_dir, save_freq, data, strict, on_new_data)
        self.backup_dir = str(backup_dir)
        self.save_freq = save_freq
        self.double_checkpoint, self.delete_checkpoint = double_checkpoint, delete_checkpoint
        self.on_new_data, self.strict = on_new_data, strict
        self._stream: Stream | None = stream_of(data) if data is not None else None
        self._position = DataPosition(self._stream)
        self._reporter, self._lines = Reporter(), fit_of_script.calling_lines()
        self._place = Place(backup_dir, self._reporter)
        self._base = self._place.folder
        self._current_epoch = self._last_batch_seen = self._batches_seen_since_last_saving = 0
        self._total = self._begin_batch = self._drawn = 0
        self._resumed: Callable[[Sequence[Any]], None] | None = None
        self._compiled_rate: float | None = None
        self._at_epoch: dict[str, Any] | None = None
        self._cut: _Cut | None = None
        self._begun, self._ahead, self._continues, self._not_finite = False, False, False, ""
        self._left: dict[str, Any] = {}
        self._call: fit_call.FitCall | None = None
        self._list: Any = None
        self._lock: Lock | None = None
        self._trace = crash.Trace(self._base)
        self._writer: RunWriter | None = None
        self._logs: CallbackLogs | None = None
        self._forgetful: set[str] = set()
        self._find_folder()
        if self._stream is not None:
            backup_restore.move_data(self._folder, self._stream, on_new_data)

    # `fit` calls these, in this order.

    def set_model(self, model: Any) -> None:
        """Moves this callback to the end of the list: a backup must hold the others' latest state."""
        check_model(model)
        super().set_model(model)
        self._call = None
        self._look_at_fit()
        self._list = callback_list.list_that_calls(self)
        if self._list is not None:
            self._list.callbacks = [*self._others(), self]
            callback_list.let_all_hear(self._list, lambda: self._begin_batch, self._position.lent, self._first_drawn)

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the newest backup that is intact."""
        self._look_at_fit()
        if self._stream is not None:
            fit_call.check_steps_per_call(self._stream, int(self._model.steps_per_execution))
        elif self._call is not None:
            fit_call.check_repeatable(self._call, self._epochs() or 1)
        self._place.open()
        if note := self._find_folder():
            self._reporter.say(note)
        again, self._begun = self._begun, True
        self._begin_batch, self._resumed, self._cut, self._not_finite = 0, None, None, ""
        self._ahead = self._continues = False
        self._open_folder()
        backup_restore.build(self._model, self._stream, self._call)
        self._compiled_rate = backup_restore.rate_of(self._model)
        self._script = script_record.describe(self._model, self._call, self._others())  # JAX: before the first step
        left = self._left = backup_files.read_fit(self._folder)
        saved_logs = left.get("logs")
        if snapshot.list_snapshots(self._folder):
            saved_logs = self._restore(again=again)
        elif backup_keras.exists(self._folder):
            self._continue_at(backup_keras.restore(str(self._folder), self._model, self._epochs()))
        if self._stream is not None:
            self._position.wait(self._current_epoch, self._call.first if self._call is not None else 0)
            self._stream.save(self._folder)
        for note in data_order.at_first(self._call, self._stream) if not snapshot.list_snapshots(self._folder) else ():
            self._reporter.say(f"{self.backup_dir}: {note}")
        self._logs = backup_files.open_logs(
            self._folder, self._fit, left, saved_logs, self._others(), self._current_epoch, self._reporter.say
        )
        self._name_forgetful()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Moves the data to the position of the backup, and restores the interrupted epoch's averages."""
        self._current_epoch = epoch
        if self._call is not None and self._stream is None:
            self._call.begin_epoch(epoch, continues=self._continues)
        self._drawn = self._begin_batch
        self._last_batch_seen = max(0, self._drawn - 1)
        self._position.begin(epoch, self._begin_batch)
        if self._resumed is not None:
            # The other callbacks have begun this epoch twice, before the backup and now: the backup holds their first
            # state.
            self._resumed(self._others())
            self._resumed = None
        # Keras shuffles by them when the epoch's first batch is drawn, which an interrupted epoch does again.
        begins_again = self._call is not None and self._stream is None and not self._call.one_pass
        self._at_epoch = generators.capture() if begins_again else None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts steps, ends an interrupted epoch after its last step, and backs up when due."""
        steps, before = self._steps_of_epoch(), self._drawn
        last = batch if self._list is not None else self._begin_batch + batch  # Keras counts beyond the end of the data
        ends = steps is not None and not (self._call is not None and self._call.one_pass)
        self._last_batch_seen = min(last, max(before, (steps or 0) - 1)) if ends else last
        self._drawn = self._last_batch_seen + 1
        self._total += self._drawn - before
        self._batches_seen_since_last_saving += self._drawn - before
        at_end = steps is not None and self._drawn >= steps
        own_state.after_batch(self._model, self._others())
        if self._model.stop_training:
            pass  # another callback requested the end; after a kill it does so again
        elif at_end:
            counted = self._call.steps if self._call is not None else steps
            if self._begin_batch or steps != counted:
                self._cut = self._model.stop_training = _Cut()
                if self._call is not None and self._stream is None:
                    self._call.earlier.cut_short(self._current_epoch)
        elif self.save_freq != "epoch" and self._batches_seen_since_last_saving >= int(self.save_freq):
            self._back_up(self._current_epoch, self._drawn, logs)
        if self._writer is not None:
            self._writer.tell_of_stall()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Backs up the finished epoch after its validation.

        A backup that was due on the epoch's last step was postponed to this call.
        """
        if self._cut is not None and self._model.stop_training is self._cut:
            self._model.stop_training = False  # ours; another callback's True stays
        if self._call is not None:
            self._call.epoch_done(epoch)
            if self._cut is not None:
                self._call.end_cut_epoch()
            elif self._begin_batch:
                self._call.forget_length()
        self._cut = None
        self._begin_batch = 0
        self._current_epoch, self._last_batch_seen = epoch + 1, 0
        # A backup that stays is one of the end: given again, a finished fit must not train its last steps once more.
        last = not self.delete_checkpoint and (self._model.stop_training or epoch + 1 == self._epochs())
        if last or self.save_freq == "epoch" or self._batches_seen_since_last_saving >= int(self.save_freq):
            self._back_up(epoch + 1, 0, logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Waits for the disk, and removes the backups if requested, unless training broke down."""
        self._model._initial_epoch = None  # it would shift every later fit of this model
        if own_counts.counts_of(self._model.optimizer):
            own_counts.scale_to_one_count(self._model.optimizer)
            self._model.train_function = None  # it was traced with those counts
        if self._stream is not None:
            self._stream.release(self._current_epoch)
        if self._writer is not None:
            self._writer.join()
        removes = self.delete_checkpoint and not self._ahead
        if removes and (
            why := backup_save.why_kept(str(self._folder), self._model, logs, self._current_epoch, self._epochs())
        ):
            self._reporter.warn(why)
            removes = False
        if self._call is not None:
            self._call.ended("" if removes else str(self._folder))
        self._begun, self._call = False, None
        backup_files.end_fit(self._folder, self._total, removes=removes, stays=self._left if self._ahead else None)
        self._trace.end()
        if self._lock is not None:
            self._lock.release()
        if removes:
            backup_files.remove_empty(self._folder, self._base)
        if removes or (self._ahead and self.delete_checkpoint):  # kept backups are those of all fits at these lines
            fit_of_script.ended(self._base, self._fit)
        self._place.close()

    def _look_at_fit(self) -> None:
        """Finds the call of `fit`, and raises if the backups cannot follow its data."""
        if self._call is None:
            self._call = fit_call.find()
            if self._call is not None and self._stream is not None:
                fit_call.check_followed(self._call, self._stream)
        else:
            self._call.draws.between()  # other callbacks may have read the data as the training began

    def _first_drawn(self) -> None:
        self._position.begun()
        if self._call is not None:
            self._call.draws.resume()

    def _find_folder(self) -> str:
        """Finds the folder of this fit's backups; returns a line for the user if it is unusual."""
        self._fit = fit_of_script.this_fit(self._base, self._lines)
        self._folder, note = backup_files.folder_of(self._base, self._fit)
        return note

    def _open_folder(self) -> None:
        """Locks the folder, reports how the last process died, and starts the writer of backups."""
        backup_files.make_folder(self._folder, self.backup_dir)
        self._lock = Lock(self._base, way_on=f"removing {self._base / LOCK}", say=self._reporter.say)
        self._lock.acquire(again=True)
        atomic.remove_leftovers(self._folder, keep=LOCK)
        if (died := crash.found(self._base)) is not None:
            self._reporter.warn(died.tell("KERAS_BACKEND="))
        self._trace.begin()
        self._writer = RunWriter(
            self._folder,
            retention=Retention(2 if self.double_checkpoint else 1),
            guard=self._lock.check,
            on_failure=lambda text: self._reporter.warn(f"{text}: not written; training continues"),
            on_stall=lambda text: self._reporter.warn(f"{text}; training continues where it can"),
            on_commit=partial(backup_keras.take_over, self._folder),
        )

    def _restore(self, *, again: bool) -> Any:
        """Restores the newest intact backup; returns the recorded positions of the log files.

        Args:
            again: True if this callback is given to `fit` again after `fit` raised.
        """
        state = backup_restore.newest(self._folder, self._reporter.warn)
        target = Target(
            str(self._folder),
            self._model,
            self._others(),
            self._epochs(),
            self._compiled_rate,
            self._call,
            self._stream,
            self.on_new_data,
            self._script,
            self.delete_checkpoint,
            fit_of_script.of_this_process(self._left),
        )
        # Keras's callback repeats the epoch in which `fit` raised; so does this one, unless `strict` is given.
        epoch_again = again and self._stream is None and self.strict is None
        returned = self._left.get("returned") == state.step
        restored = backup_restore.restore(state, target, epoch_again=epoch_again, fit_returned=returned)
        self._continue_at(restored)
        return state.records.get("logs")

    def _continue_at(self, restored: backup_restore.Restored) -> None:
        self._total, self._current_epoch, self._begin_batch = restored.step, restored.epoch, restored.batch
        self._resumed, self._ahead = restored.as_before, restored.ahead
        self._continues = True
        self._model._initial_epoch = restored.initial_epoch
        self._model.stop_training |= restored.stopped  # as the training left it; its backups are not needed any more
        self._reporter.say(restored.line)

    def _name_forgetful(self) -> None:
        """Warns once of callbacks whose state is in no backup."""
        found = [name for name in callback_state.forgetful(self._others()) if name not in self._forgetful]
        if found:
            self._forgetful.update(found)
            self._reporter.warn(callback_state.how_to_remember(found))

    def _back_up(self, epoch: int, batch: int, logs: Mapping[str, Any] | None) -> None:
        """Copies the state out of the device and submits it to the writer."""
        if self._writer is None:
            return
        if reason := backup_save.broken(logs):
            self._tell_broken(reason)
            return
        self._name_forgetful()  # attributes may have been added in this step
        captured, extra = backup_save.capture(self._model, self._others(), self._call)
        records = {
            "phase": "training" if batch else "epoch",
            "epoch": epoch,
            "batch": batch,
            "best": None,
            "stopped": batch == 0 and bool(self._model.stop_training),
            "epochs": self._epochs(),
            "generators_at_epoch": self._at_epoch if batch else None,
            "logs": self._logs.positions() if self._logs is not None else {},
            "compiled_rate": self._compiled_rate,
            **self._script.records,
            "data": self._stream.identity() if self._stream is not None else None,
            "steps": self._call.steps if self._call is not None else None,
            "drawn": self._call.drawn() if self._call is not None else None,
            "passes": self._call.earlier.passes() if self._call is not None else None,
            **(self._call.held.records(within=batch > 0) if self._call is not None else {}),
            **captured,
        }
        try:
            self._writer.submit(
                self._total, partial(backup_save.read_finite, self._model), records, extra=extra, must=True
            )
        except backup_save.NotFinite:
            self._tell_broken("the weights are not finite")
            return
        self._not_finite = ""
        self._batches_seen_since_last_saving = 0

    def _tell_broken(self, reason: str) -> None:
        if not self._not_finite:
            self._reporter.warn(f"{self.backup_dir}: {reason} at step {self._total:,}: this state is not backed up")
        self._not_finite = reason

    def _others(self) -> list[Any]:
        return [callback for callback in self._list.callbacks if callback is not self] if self._list is not None else []

    def _epochs(self) -> int | None:
        return int(epochs) if (epochs := (self.params or {}).get("epochs")) is not None else None

    def _steps_of_epoch(self) -> int | None:
        if self._stream is not None:
            return self._stream.steps(self._current_epoch)
        if self._call is not None:
            return self._call.steps
        return int((self.params or {}).get("steps") or 0) or None
