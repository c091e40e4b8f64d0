"""`kresume.BackupAndRestore`: exact continuation for a user's own `fit` call.

    data = kresume.resumable(lambda position: my_dataset_from(position), steps_per_epoch=500)
    model.fit(data, epochs=20, callbacks=[kresume.BackupAndRestore("backup/", data=data)])

The arguments and the habits are those of `keras.callbacks.BackupAndRestore`. What is different: a backup is complete (seed
states, metrics, the other callbacks' memory and the place in the data are in it), verified by digest, written off the
training thread and durable before it counts; no step runs twice.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kresume import crash, devices, files
from kresume.checkpoints import snapshot, weights_file
from kresume.checkpoints.hdf5 import read_arrays
from kresume.checkpoints.state import TrainState
from kresume.errors import CheckpointError, UsageError
from kresume.images.stream import Stream, stream_of
from kresume.lock import NAME as LOCK
from kresume.lock import Lock
from kresume.models import match_slots, own_counts, structure
from kresume.models.restore import restore_optimizer
from kresume.progress import Reporter
from kresume.training import callback_state, fit_call, other_optimizers
from kresume.training.callback_logs import CallbackLogs, this_process
from kresume.training.fit import assign_state, build_from_spec, groups_of
from kresume.training.snapshots import RunWriter, wait_for_writers

METADATA = "training_metadata.json"
FIT = "fit.json"
KERAS_WEIGHTS = "latest.weights.h5"
KERAS_PREVIOUS = ".bkp"
ASIDE = ".taken-over"


class _Cut:
    """What stands in `model.stop_training` while we end an epoch early: true, and told apart from another's True."""


class _NotFinite(Exception):
    """Raised instead of a backup that nobody could train on from."""


class BackupAndRestore(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Backs up a training and restores it when the same script is run again, exactly.

    Args:
        backup_dir: the folder of the backups. Keras's own backups in it are read where ours are not there yet.
        save_freq: `"epoch"`, or a number of batches.
        double_checkpoint: keep the backup before the newest too.
        delete_checkpoint: remove the backups when `fit` ends; only what was written by this class is removed.
        data: what `kresume.image_dataset` or `kresume.resumable` returned, the same that `fit` is given: then training
            continues in the middle of an epoch with the batches that were not drawn yet.
        strict: True refuses a number of batches as `save_freq` without `data`, where the order of the data is the caller's:
            an interrupted epoch draws as many batches as it still has behind those that it drew. False is the same, also
            for a callback that is given to `fit` again after `fit` raised: None then begins the epoch again, as Keras does.
        on_new_data: what to do when the images of `image_dataset` changed since: `"next-epoch"` ends the interrupted epoch
            on its old list and begins the next with the new one; `"error"` raises.

    Raises:
        UsageError: an argument that cannot be meant.

    Scripts may read `backup_dir`, `_current_epoch`, `_last_batch_seen` and the file `training_metadata.json`
    (`{"epoch", "batch"}`), as of Keras's callback.
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
        if not backup_dir:
            raise UsageError("Empty `backup_dir` argument passed (it is empty or None): give the folder of the backups")
        if save_freq != "epoch" and (isinstance(save_freq, bool) or not isinstance(save_freq, int) or save_freq < 1):
            raise UsageError(
                f"Invalid value for argument `save_freq`. Received: save_freq={save_freq!r}: give 'epoch' or a number of "
                "batches of at least 1"
            )
        if save_freq != "epoch" and data is None and strict:
            raise UsageError(
                f"save_freq={save_freq} needs data=: without it nobody knows which batches an interrupted epoch has drawn. "
                "Give data=kresume.resumable(...) or kresume.image_dataset(...), save_freq='epoch', or leave strict out"
            )
        if on_new_data not in {"next-epoch", "error"}:
            raise UsageError(f"on_new_data={on_new_data!r}: give 'next-epoch' or 'error'")
        self.backup_dir = str(backup_dir)
        self.save_freq = save_freq
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        self.on_new_data = on_new_data
        self.strict = strict
        self._stream: Stream | None = stream_of(data) if data is not None else None
        self._folder = Path(backup_dir)
        self._reporter = Reporter()
        self._current_epoch = 0
        self._last_batch_seen = 0
        self._batches_seen_since_last_saving = 0
        self._total = 0
        self._begin_batch = 0
        self._resumed: Callable[[], None] | None = None
        self._compiled_rate: float | None = None
        self._optimizer: dict[str, Any] = {}
        self._cut: _Cut | None = None
        self._drawn = 0
        self._begun = False
        self._not_finite = ""
        self._call: fit_call.FitCall | None = None
        self._list: Any = None
        self._lock: Lock | None = None
        self._trace = crash.Trace(self._folder)
        self._writer: RunWriter | None = None
        self._logs: CallbackLogs | None = None
        self._forgetful: set[str] = set()
        wait_for_writers(self._folder)
        self._find_place()

    # What scripts read of Keras's callback.

    def _file_of(self, which: int, name: str, theirs: str) -> str:
        """The file of our newest backup (-1) or of the one before (-2); Keras's own where there is none of ours."""
        wait_for_writers(self._folder)
        ours = snapshot.list_snapshots(self._folder)
        return str(ours[which][1] / name if len(ours) >= -which else self._folder / theirs)

    @property
    def _weights_path(self) -> str:
        return self._file_of(-1, snapshot.ARRAYS, KERAS_WEIGHTS)

    @property
    def _training_metadata_path(self) -> str:
        return str(self._folder / METADATA)

    @property
    def _prev_weights_path(self) -> str:
        return self._file_of(-2, snapshot.ARRAYS, f"{KERAS_WEIGHTS}{KERAS_PREVIOUS}")

    @property
    def _prev_training_metadata_path(self) -> str:
        return self._file_of(-2, snapshot.META, f"{METADATA}{KERAS_PREVIOUS}")

    # What `fit` calls, in its order.

    def set_model(self, model: Any) -> None:
        """Takes the last place in the list: what the others will have done by then is in the backup."""
        super().set_model(model)
        self._call = None
        self._look_at_fit()
        self._list = callback_state.list_that_calls(self)
        if self._list is not None:
            self._list.callbacks = [*self._others(), self]
            callback_state.let_all_hear(self._list)

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the newest backup that verifies."""
        model = self._model
        self._look_at_fit()
        if self._call is not None and self._stream is None:
            fit_call.check_repeatable(self._call, self._epochs() or 1)
        per_call = int(model.steps_per_execution)
        if self._stream is not None and self._stream.longest() % per_call:
            raise UsageError(
                f"an epoch has {self._stream.longest()} steps, and Keras runs {per_call} per call (steps_per_execution): give "
                "a number that divides it"
            )
        wait_for_writers(self._folder)
        again, self._begun = self._begun, True
        self._begin_batch, self._resumed, self._cut, self._not_finite = 0, None, None, ""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self._folder, way_on=f"removing {self._folder / LOCK}", say=self._reporter.say)
        self._lock.acquire(again=True)
        files.remove_leftovers(self._folder)
        if (died := crash.found(self._folder)) is not None:
            self._reporter.warn(died.tell("KERAS_BACKEND="))
        self._trace.begin()
        self._writer = RunWriter(
            self._folder,
            keep=2 if self.double_checkpoint else 1,
            guard=self._lock.check,
            on_failure=lambda text: self._reporter.warn(f"{text}: not written; training goes on"),
            on_stall=lambda text: self._reporter.warn(f"{text}; training goes on where it can"),
            on_commit=self._committed,
        )
        if not all(layer.built for layer in model._flatten_layers()):
            raise UsageError(
                "BackupAndRestore restores into a built model: call it on a batch, or give it an Input, before fit"
            )
        spec = self._stream.element_spec if self._stream is not None else None
        build_from_spec(model, self._call.spec() if self._call is not None and spec is not None else spec)
        self._compiled_rate = self._rate()
        # Now, while the rate can be read: under JAX the variables are empty between two steps.
        self._optimizer = keras.saving.serialize_keras_object(model.optimizer)
        left = self._left_by_fit()
        logs = left.get("logs")
        if snapshot.list_snapshots(self._folder):
            state, skipped = snapshot.newest_snapshot(self._folder)
            for path, reason in skipped:
                self._reporter.warn(f"{path} is damaged ({reason}): going on from the one before")
                snapshot.set_aside(path)
            self._restore(state, again=again, fit_returned=left.get("returned") == state.step)
            logs = state.records.get("logs")
        elif (self._folder / KERAS_WEIGHTS).is_file():
            self._restore_keras()
        if self._stream is not None:
            self._stream.seek(self._current_epoch, self._begin_batch)
            self._stream.save(self._folder)
        elif snapshot.list_snapshots(self._folder) == []:
            self._reporter.say(
                f"{self.backup_dir}: the order of the data is the caller's (data= makes it part of the backup)"
            )
        self._open_logs(logs, left)
        self._name_forgetful()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Makes the data begin where training stands, and gives the interrupted epoch its averages back."""
        self._current_epoch = epoch
        self._drawn = self._begin_batch
        self._last_batch_seen = max(0, self._drawn - 1)
        if self._stream is not None:
            self._stream.seek(epoch, self._begin_batch)
        if self._resumed is not None:
            # The others began this epoch once before the backup, and now again: what they did then is in it.
            self._resumed()
            self._resumed = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts, ends an interrupted epoch where it ends, and backs up where that is due."""
        count = int(self._model.steps_per_execution)
        self._total += count
        self._last_batch_seen = self._begin_batch + batch  # an index, as Keras's
        self._drawn = self._last_batch_seen + 1
        self._batches_seen_since_last_saving += count
        steps = self._steps_of_epoch()
        at_end = steps is not None and self._drawn >= steps
        if self._model.stop_training:
            pass  # another callback has asked for the end: that stands, and what leads to it comes again after a kill
        elif at_end:
            counted = self._call.steps if self._call is not None else steps
            if self._begin_batch or steps != counted:
                self._cut = self._model.stop_training = _Cut()
        elif self.save_freq != "epoch" and self._batches_seen_since_last_saving >= int(self.save_freq):
            self._back_up(self._current_epoch, self._drawn, logs)
        if self._writer is not None:
            self._writer.tell_of_stall()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Backs up the finished epoch. A backup due on its last step was put off to here: validation is done by now."""
        if self._cut is not None and self._model.stop_training is self._cut:
            self._model.stop_training = False  # ours; where another callback has asked for the end meanwhile it stands
        if self._call is not None and self._cut is not None:
            self._call.end_cut_epoch()
        elif self._call is not None and self._begin_batch:
            self._call.forget_length()
        self._cut = None
        self._begin_batch = 0
        self._current_epoch, self._last_batch_seen = epoch + 1, 0
        if self.save_freq == "epoch" or self._batches_seen_since_last_saving >= int(self.save_freq):
            self._back_up(epoch + 1, 0, logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Waits for the disk; removes our backups if asked to, unless training broke down."""
        self._model._initial_epoch = None  # it would shift every later fit of this model
        if own_counts.counts_of(self._model.optimizer):
            own_counts.mature(self._model.optimizer)
            self._model.train_function = None  # it was traced with those counts
        if self._stream is not None:
            self._stream.release(self._current_epoch)
        if self._writer is not None:
            self._writer.join()
        self._begun, self._call = False, None
        removes = self.delete_checkpoint and self._ended_well(logs)
        if removes:
            self._remove()
        else:
            files.write_json(self._folder / FIT, {**self._left_by_fit(), "returned": self._total})
        self._trace.end()
        if self._lock is not None:
            self._lock.release()
        if removes and self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    # How.

    def _find_place(self) -> None:
        """Moves the data to where the newest backup stands before `fit` asks how long an epoch is."""
        if self._stream is not None and snapshot.list_snapshots(self._folder):
            state, _ = snapshot.newest_snapshot(self._folder)
            records = state.records
            if records["data"] is not None:
                epoch, batch = int(records["epoch"]), int(records["batch"])
                self._stream.adopt(self._folder, records["data"], epoch, batch, self.on_new_data)
                self._stream.seek(epoch, batch)
                self._stream.recount()

    def _left_by_fit(self) -> dict[str, Any]:
        """What the last `fit` with this folder left: its processes, its logs at the beginning, the step it returned at."""
        path = self._folder / FIT
        left: dict[str, Any] = files.read_json(path) if path.is_file() else {}
        return left

    def _open_logs(self, saved: Mapping[str, Any] | None, left: Mapping[str, Any]) -> None:
        """Brings the callbacks' log files to where training begins, and records that this process writes them now."""
        processes = left.get("processes", [])
        self._logs = CallbackLogs(self._others(), self._reporter.say)
        self._logs.begin(saved, processes, self._current_epoch)
        begun = {
            "processes": sorted({*processes, this_process()}),
            "logs": left.get("logs") or self._logs.positions(),
            "returned": None,
        }
        files.write_json(self._folder / FIT, begun)

    def _name_forgetful(self) -> None:
        """Says once which callbacks remember something that is in no backup."""
        found = [name for name in callback_state.forgetful(self._others()) if name not in self._forgetful]
        if found:
            self._forgetful.update(found)
            self._reporter.warn(
                f"{'; '.join(found)}: no get_state and set_state, so what it remembers begins anew when training is "
                "continued. If that matters, add the methods get_state(self), which returns a dictionary of numbers, strings, "
                "lists and numpy arrays, and set_state(self, state); a LambdaCallback takes both as arguments"
            )

    def _others(self) -> list[Any]:
        return [callback for callback in self._list.callbacks if callback is not self] if self._list is not None else []

    def _look_at_fit(self) -> None:
        """Finds what `fit` was given, and refuses what the backups could not follow."""
        if self._call is None:
            self._call = fit_call.find()
            if self._call is not None and self._stream is not None:
                fit_call.check_followed(self._call, self._stream)

    def _epochs(self) -> int | None:
        epochs = (self.params or {}).get("epochs")
        return int(epochs) if epochs is not None else None

    def _steps_of_epoch(self) -> int | None:
        if self._stream is not None:
            return self._stream.steps(self._current_epoch)
        if self._call is not None:
            return self._call.steps
        steps = (self.params or {}).get("steps")
        return int(steps) if steps else None

    def _inner_optimizer(self) -> Any:
        """The one that trains: mixed_float16 wraps it for loss scaling, with a rate of its own that means nothing."""
        return devices.inner(self._model.optimizer)

    def _rate(self) -> float | None:
        rate = getattr(self._inner_optimizer(), "_learning_rate", None)
        return float(devices.host_array(rate.value)) if isinstance(rate, keras.Variable) else None

    def _read_finite(self, buffers: Any) -> Any:
        """Reads the live state, unless nobody could train on from it."""
        groups = devices.read_state(self._model, buffers)
        if not all(map(snapshot.is_finite, groups["trainable"])):
            raise _NotFinite
        return groups

    def _broken(self, logs: Mapping[str, Any] | None) -> str:
        """Says what is not finite, from the loss that Keras reports; empty if it is."""
        loss = (logs or {}).get("loss")
        return "" if loss is None or math.isfinite(loss) else f"the loss is {float(loss)}"

    def _tell_broken(self, what: str) -> None:
        if not self._not_finite:
            self._reporter.warn(f"{self.backup_dir}: {what} at step {self._total:,}: no backup of it is kept")
        self._not_finite = what

    def _ended_well(self, logs: Mapping[str, Any] | None) -> bool:
        """Whether training is done, so that its backups have served; says why they stay if it is not."""
        epochs = self._epochs()
        what = self._broken(logs)
        if not what:
            state = devices.read_state(self._model)
            finite = all(map(snapshot.is_finite, state["trainable"])) and not any(
                array.dtype.kind == "f" and np.isnan(array).any() for array in state["non_trainable"]
            )
            what = "" if finite else "the weights are not finite"
        if not what and epochs is not None and self._current_epoch < epochs and not self._model.stop_training:
            what = f"fit ended after {self._current_epoch} of {epochs} epochs"
        kept = snapshot.list_snapshots(self._folder)
        if what and kept:
            self._reporter.warn(
                f"{self.backup_dir}: {what}, so the backups stay. The newest is of step {kept[-1][0]:,}: run again to go on "
                "from it (a rate given to compile takes effect), or remove the folder to begin anew"
            )
        return not (what and kept)

    def _back_up(self, epoch: int, batch: int, logs: Mapping[str, Any] | None) -> None:
        if self._writer is None:
            return
        what = self._broken(logs)
        if what:
            self._tell_broken(what)
            return
        self._name_forgetful()  # an attribute may be as young as this step
        facts, arrays = callback_state.capture(self._others())
        model = self._model
        others, slots = other_optimizers.capture(model)
        records = {
            "phase": "training" if batch else "epoch",
            "epoch": epoch,
            "batch": batch,
            "best": None,
            "callbacks": facts,
            "other_optimizers": others,
            "stopped": batch == 0 and bool(model.stop_training),
            "epochs": self._epochs(),
            "logs": self._logs.positions() if self._logs is not None else {},
            "compiled_rate": self._compiled_rate,
            "optimizer": self._optimizer,
            "data": self._stream.identity() if self._stream is not None else None,
            "steps": self._call.steps if self._call is not None else None,
            "drawn": self._call.drawn() if self._call is not None else None,
            "fingerprint": devices.fingerprint(),
            structure.RECORD: structure.describe(model),
        }
        try:
            self._writer.submit(
                self._total,
                self._read_finite,
                records,
                extra={name: given for name, given in (("callbacks", arrays), ("other_optimizers", slots)) if given},
                must=True,
            )
        except _NotFinite:
            self._tell_broken("the weights are not finite")
            return
        self._not_finite = ""
        self._batches_seen_since_last_saving = 0

    def _committed(self, records: Mapping[str, Any]) -> None:
        """A backup is on the disk: only now may the file that scripts look at say so."""
        if (self._folder / KERAS_WEIGHTS).is_file():
            # Keras's own backup has served; beside ours it would be taken for a newer one some day.
            for ending in ("", KERAS_PREVIOUS):
                for name in (f"{KERAS_WEIGHTS}{ending}", f"{METADATA}{ending}"):
                    path = self._folder / name
                    if path.is_file():
                        path.rename(path.with_name(f"{name}{ASIDE}"))
        files.write_json(self._folder / METADATA, {"epoch": records["epoch"], "batch": records["batch"]})

    def _restore(self, state: TrainState, *, again: bool, fit_returned: bool) -> None:
        records, groups, model = state.records, groups_of(state), self._model
        self._total, epoch, batch = int(state.step or 0), int(records["epoch"]), int(records["batch"])
        from_its_beginning = bool(batch and again and self._stream is None and self.strict is None)
        if from_its_beginning:
            batch = 0  # as Keras's callback, which a `fit` that raised in this process is given again
        told = self._find_batch(records, batch)
        if told:
            epoch, batch = epoch + 1, 0
        # Without the data's structure the metrics cannot be built before the first step: their averages begin fresh.
        averages = batch > 0 and self._stream is not None
        moved = assign_state(
            model, state, metrics=averages, same_weights=False, way_on="give another folder to begin again"
        )
        callback_state.apply(self._others(), records["callbacks"], groups.get("callbacks", []))
        told += [*moved, *self._keep_asked_rate(records.get("compiled_rate"))]
        told += other_optimizers.restore(model, records.get("other_optimizers"), groups.get("other_optimizers", []))
        if batch:
            rate = self._rate()

            def as_before() -> None:
                callback_state.apply(self._others(), records["callbacks"], groups.get("callbacks", []))
                if rate is not None:
                    self._inner_optimizer().learning_rate = rate
                if averages:
                    devices.assign(model.metrics_variables, groups["metrics"])

            self._resumed = as_before
        changed = devices.differences(records["fingerprint"], devices.fingerprint())
        if changed:
            told.append(f"another machine or version ({'; '.join(changed)}): last digits may differ")
        new_images = ""
        if self._stream is not None and records["data"] is not None:
            new_images = self._stream.adopt(self._folder, records["data"], epoch, batch, self.on_new_data)
            told += [new_images] if new_images else []
        elif (self._stream is None) != (records["data"] is None) and batch:
            raise UsageError(
                f"{self.backup_dir} was interrupted in the middle of an epoch {'without' if self._stream else 'with'} data=: "
                "give it as it was, or another folder to begin again"
            )
        self._begin_batch = batch
        self._current_epoch = epoch
        ended = self._why_ended(records, bool(new_images), fit_returned, told)
        model._initial_epoch = self._epochs() if ended else epoch
        where = f"epoch {epoch + 1}" + (f", batch {batch:,}" if batch else ", again" if from_its_beginning else "")
        doing = f"nothing is trained: {ended}" if ended else f"continuing at step {self._total:,} ({where})"
        self._reporter.say("; ".join([f"{self.backup_dir}: {doing}", *told]))

    def _why_ended(self, records: Mapping[str, Any], new_images: bool, fit_returned: bool, told: list[str]) -> str:
        """Says why no epoch is left and what to change; empty if there is one.

        A callback had perhaps ended training. That holds until something which it was judged by has changed.
        """
        done, epochs, before = int(records["epoch"]), self._epochs(), records.get("epochs")
        if epochs is not None and done >= epochs:
            return f"all {epochs} epochs are done (step {self._total:,}); give fit(epochs=...) more than {done} to train on"
        if not records["stopped"]:
            return ""
        others, end = self._others(), f"after epoch {done} of {epochs} (step {self._total:,})"
        if new_images or (before is not None and epochs is not None and epochs > before):
            callback_state.take_back_stop(others, renew=True)
            changed = "new images came" if new_images else f"{epochs} epochs are asked for, {before} were"
            told.append(
                f"a callback had ended it, but {changed}: the patience of EarlyStopping begins anew, its best stays"
            )
            return ""
        if callback_state.stopped_by_patience(records["callbacks"]):
            if callback_state.out_of_patience(others):
                return (
                    f"EarlyStopping ended it {end}; give it more patience, fit more epochs, or new images, to train on"
                )
            callback_state.take_back_stop(others, renew=False)
            told.append("EarlyStopping had ended it, but has more patience now")
            return ""
        if fit_returned:
            told.append("a callback had ended it, and may end it again")
            return ""
        return f"a callback ended it {end}, and it died before fit returned, as it does now; run it again to train on"

    def _find_batch(self, records: Mapping[str, Any], batch: int) -> list[str]:
        """Moves data that are not ours behind the batches that the interrupted epoch drew.

        Returns:
            What a person should know where no batch of the epoch is left; empty where training goes on within it.

        Raises:
            UsageError: an epoch has another length now.
        """
        if self._call is None or self._stream is not None:
            return []
        before, now = records.get("steps"), self._call.steps
        if batch and before != now and "steps" in records:
            raise UsageError(
                f"{self.backup_dir}: the interrupted epoch had {before or 'an unknown number of'} batches, and fit counts "
                f"{now or 'an unknown number'} now: give the same data and batch size, or another folder to begin again"
            )
        if self._call.begin_behind(batch, records.get("drawn") if batch or not records["batch"] else None):
            return []
        return ["the interrupted epoch has no batch left: its validation and its line in the history are left out"]

    def _keep_asked_rate(self, before: float | None) -> list[str]:
        """A rate that the script changed since the backup is a wish: it wins over the one in the backup."""
        asked, restored = self._compiled_rate, self._rate()
        if asked is None or before is None or restored is None or math.isclose(asked, before, rel_tol=1e-6):
            return []
        self._inner_optimizer().learning_rate = asked
        return [f"rate: {restored:g} (backup) -> {asked:g} (compile)"]

    def _restore_keras(self) -> None:
        """Keras's own backup: weights, optimizer and epoch; where the pair is damaged, the pair before it."""
        reasons = []
        for ending in ("", KERAS_PREVIOUS):
            weights, metadata = self._folder / f"{KERAS_WEIGHTS}{ending}", self._folder / f"{METADATA}{ending}"
            if not weights.is_file():
                continue
            try:
                epoch = int(json.loads(metadata.read_text(encoding="utf-8"))["epoch"]) if metadata.is_file() else 0
                told = self._load_keras_weights(weights)
            except (OSError, ValueError, KeyError, TypeError) as error:
                reasons.append(f"{weights.name}: {' '.join(str(error).split())[:200]}")
                continue
            self._model._initial_epoch = self._current_epoch = epoch
            self._total = int(devices.host_array(self._model.optimizer.iterations.value))
            ended = self._why_ended({"epoch": epoch, "stopped": False}, False, False, [])
            doing = (
                f"nothing is trained after Keras's own backup: {ended}"
                if ended
                else "continuing from Keras's own backup"
            )
            self._reporter.say(
                f"{self.backup_dir}: {doing} ({weights.name}) at epoch {epoch + 1}; seed states, "
                f"metrics and the callbacks' memory are not in it and begin fresh{told}; its files are kept as *{ASIDE}"
            )
            return
        raise CheckpointError(
            f"Keras's backup in {self.backup_dir} cannot be read ({'; '.join(reasons)}): restore it from a copy, or remove the "
            "folder to begin again"
        )

    def _load_keras_weights(self, weights: Path) -> str:
        """Loads the file as Keras does, then gives the optimizer what is its own: Keras takes slots by their order alone.

        Returns:
            What a user should know, as a part of a line.
        """
        optimizer = self._model.optimizer
        fresh = [np.array(variable.value, copy=True) for variable in optimizer.variables]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            self._load_as_keras(weights)
        state = weights_file.state_of(str(weights), read_arrays(weights.read_bytes(), str(weights)), "")
        everything = len(structure.can_train(self._model)) == len(devices.inner(optimizer)._trainable_variables)
        if everything and len(match_slots.ordered(state)) == len(fresh):
            return ""
        devices.assign(optimizer.variables, fresh)
        told = restore_optimizer(self._model, state)
        return f"; {told}" if told else ""

    def _load_as_keras(self, weights: Path) -> None:
        if weights.name.endswith(KERAS_PREVIOUS):  # Keras looks at the ending
            with files.temporary_copy(weights, ".weights.h5") as copy:
                self._model.load_weights(copy)
        else:
            self._model.load_weights(weights)

    def _remove(self) -> None:
        snapshot.prune_snapshots(self._folder, 0, set())
        for name in (snapshot.LATEST, METADATA, FIT):
            (self._folder / name).unlink(missing_ok=True)
        for path in self._folder.glob("images-*.parquet"):
            path.unlink(missing_ok=True)
