"""Restores a backup into the `fit` that begins, and decides where training continues.

    move_data(folder, stream, on_new_data)         # before fit, which reads the length of the backup's epoch
    state = newest(folder, reporter.warn)          # damaged ones are set aside
    restored = restore(state, target, ...)         # weights, optimizer, other callbacks, rate, data
    restored.line                                  # "backup/: continuing at step 1,200 (epoch 3, batch 40)"

The script is the user's, and it may have changed since the backup. A model that does not match is refused. A new
learning rate in `compile` wins over the rate of the backup. A training that a callback ended stays ended, until
something that the callback judged by has changed: more epochs, new images, more patience.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kresume.backend import fingerprint, live_state
from kresume.checkpoints import snapshot
from kresume.drop_in import (
    code_changes,
    data_order,
    generators,
    lasting_metrics,
    optimizer_changes,
    other_optimizers,
    own_state,
    script_record,
)
from kresume.drop_in.fit_call import FitCall
from kresume.drop_in.restore_target import Target
from kresume.drop_in.stream import Stream
from kresume.drop_in.why_ended import why_ended
from kresume.errors import CheckpointError, UsageError
from kresume.training.loop import callback_state
from kresume.training.loop.fit import assign_state, build_from_spec, groups_of
from kresume.values.state import TrainState

ALL_DAMAGED = "restore one from a copy, or remove the folder to start again (double_checkpoint=True keeps one more)"
"""The way on if no backup can be read."""
ANOTHER_FOLDER = "give another folder to start again"
"""The way on if the model is another one."""


@dataclass(frozen=True)
class Restored:
    """The position at which training continues.

    Attributes:
        step: the number of steps trained.
        epoch: the index of the epoch that is trained next.
        batch: the number of its batches that were trained.
        initial_epoch: the epoch at which Keras must begin; the last one if nothing is left to train.
        line: the line that is printed.
        as_before: called with the other callbacks once the interrupted epoch has begun; restores that epoch's state.
            None between epochs.
        ahead: True if the backup is ahead of the requested epochs.
        stopped: True if a callback had ended the training, and nothing is left to train.
    """

    step: int
    epoch: int
    batch: int
    initial_epoch: int | None
    line: str
    as_before: Callable[[Sequence[Any]], None] | None = None
    ahead: bool = False
    stopped: bool = False


def move_data(folder: Path, stream: Stream, on_new_data: Literal["next-epoch", "error"]) -> None:
    """Moves the data to the newest backup's position, before `fit` reads the epoch's length."""
    if not snapshot.list_snapshots(folder):
        return
    state, _ = snapshot.newest_snapshot(folder, ALL_DAMAGED)
    records = state.records
    if records["data"] is not None:
        epoch, batch = int(records["epoch"]), int(records["batch"])
        with _naming(folder):
            stream.adopt(folder, records["data"], epoch, batch, on_new_data)
        # A script may read the data before `fit`, as it did at its first start.
        stream.release(0 if stream.same_list(0, epoch) else epoch)


@contextmanager
def _naming(folder: str | Path, way_on: str = "") -> Iterator[None]:
    """Names the folder of the backups in an error about one of them, and the way on if the error has none."""
    try:
        yield
    except (CheckpointError, UsageError) as error:
        kind = UsageError if isinstance(error, UsageError) else CheckpointError
        more = f"; {way_on}" if way_on not in str(error) else ""
        raise kind(f"{folder}: {error}{more}") from error


def build(model: Any, stream: Stream | None, call: FitCall | None) -> None:
    """Builds the optimizer and the metrics, because a backup is restored into existing variables.

    Raises:
        UsageError: a layer is not built.
    """
    # A layer that is not called (a head of another configuration, augmentation in train_step) is never built, nor are parts of
    # preprocessing layers that were adapted.
    spec = stream.element_spec if stream is not None else None
    if not model.built and spec is None:
        raise UsageError(
            f"BackupAndRestore needs a built model, and {model.name} is none yet: call it on a batch, or give it an Input, "
            "before fit (data= builds it)"
        )
    own_state.begin(model)
    build_from_spec(model, call.spec() if call is not None and spec is not None else spec)


def newest(folder: Path, warn: Callable[[str], None]) -> TrainState:
    """Reads the newest intact backup; sets damaged ones aside and warns of them.

    Raises:
        CheckpointError: all are damaged.
    """
    state, skipped = snapshot.newest_snapshot(folder, ALL_DAMAGED)
    for path, reason in skipped:
        warn(f"{path} is damaged ({reason}): continuing from the one before")
        snapshot.set_aside(path)
    return state


def restore(state: TrainState, target: Target, *, epoch_again: bool, fit_returned: bool) -> Restored:
    """Restores the model, its optimizers, the other callbacks and the data.

    Args:
        state: the backup.
        target: the `fit` to restore into.
        epoch_again: True repeats an interrupted epoch from its beginning instead of continuing in its middle.
        fit_returned: True if the `fit` that wrote the backup returned afterwards.

    Raises:
        CheckpointError: the model or an optimizer does not match.
        UsageError: the data do not match.
    """
    records, groups, model = state.records, groups_of(state), target.model
    step, epoch, batch = int(state.step or 0), int(records["epoch"]), int(records["batch"])
    from_its_beginning = bool(batch and epoch_again)
    if from_its_beginning:
        batch = 0
    if target.call is not None:
        target.call.lived_through(target.backup_dir)
        target.call.pass_by_validations(epoch if target.epochs is None else min(epoch, target.epochs))
        target.call.validations.seek(records.get("validation"))
    messages = _skip_batches(records, target, batch)
    if target.call is not None and not messages and not target.call.earlier.drawn_here:
        target.call.held.restore(records, validated=epoch > target.call.validations.first_due())
    if messages:
        epoch, batch = epoch + 1, 0
    begins_again = data_order.after_restart(records, target.call, target.stream)
    # Without the data's structure the metrics cannot be built before the first step: their averages start fresh.
    averages = batch > 0 and target.stream is not None and not _has_other_metrics(records, target)
    with _naming(target.backup_dir, ANOTHER_FOLDER):
        moved = assign_state(model, state, metrics=averages, same_weights=False, way_on=ANOTHER_FOLDER)
    messages += lasting_metrics.restore(model, target.call, groups.get("metrics", ()))
    messages += own_state.restore(model, target.callbacks, records, groups)
    messages += callback_state.apply(target.callbacks, records["callbacks"], groups.get("callbacks", []))
    messages += optimizer_changes.describe(records.get("optimizer"), target.script.optimizer)
    messages += [*moved, *_keep_compiled_rate(model, target.compiled_rate, records.get("compiled_rate"))]
    with _naming(target.backup_dir):
        messages += other_optimizers.restore(model, records.get("other_optimizers"), groups.get("other_optimizers", []))
    as_before = partial(_restore_again, target, records, groups, rate_of(model), averages)
    messages += _of_machine(records)
    new_images = _adopt_data(records, target, epoch, batch)
    messages += [new_images] if new_images else []
    ended = why_ended(records, target, step, bool(new_images), fit_returned, messages)
    within = f", batch {batch:,}" if batch else " from its beginning" if from_its_beginning else ""
    where = f"epoch {epoch + 1}{within}"
    ahead = target.epochs is not None and (epoch, batch) > (target.epochs, 0)
    if not (batch or ahead or from_its_beginning):
        generators.restore(records.get("generators"))
    messages[:0] = _of_this_process(records) if target.again and not ended else []
    messages += [] if ended else filter(None, [begins_again, data_order.of_validation(target.call)])
    messages += [] if ended else _of_script(records, target, fit_returned)
    if batch and target.stream is not None and not (averages or ended):
        messages.append("the metrics of the interrupted epoch cover its rest alone")
    if batch and target.stream is None and not ended:
        messages.append(_of_skipped(batch, begins_again))
    doing = f"nothing is left to train: {ended}" if ended else f"continuing at step {step:,} ({where})"
    return Restored(
        step,
        epoch,
        batch,
        target.epochs if ended else epoch,
        "; ".join([f"{target.backup_dir}: {doing}", *messages]),
        as_before if batch else None,
        ahead,
        bool(ended and records["stopped"] and not ahead),
    )


def _after_skipping(records: Mapping[str, Any], call: FitCall) -> None:
    """Restores the global generators behind the batches that were drawn again.

    One from which a `PyDataset` draws is where it was in the training: threads drew ahead when the backup was made.
    """
    state, before = dict(records.get("generators") or {}), records.get("generators_at_epoch")
    if state and before and isinstance(call.x, keras.utils.PyDataset):
        now, shuffled = generators.capture(), before["python"]
        if call.iterator.data_adapter.shuffle and call.steps:
            shuffled = generators.after_shuffle(before, call.steps)["python"]
        state["python"] = state["python"] if now["python"] == shuffled else now["python"]
        if "numpy" in state and now.get("numpy") != before.get("numpy"):
            del state["numpy"]
    generators.restore(state)


def _restore_again(
    target: Target,
    records: Mapping[str, Any],
    groups: Mapping[str, Sequence[np.ndarray]],
    rate: float | None,
    averages: bool,
    callbacks: Sequence[Any],
) -> None:
    """Restores what other callbacks changed when they heard that the interrupted epoch begins.

    Args:
        target: the `fit` whose model was restored.
        records: of the backup.
        groups: its arrays.
        rate: the learning rate, None if a schedule gives it.
        averages: True restores the averages of its metrics.
        callbacks: all other callbacks of `fit`.
    """
    model = target.model
    if target.call is not None and not target.call.earlier.drawn_here:
        target.call.held.restore(records)
    generators.restore(records.get("generators_at_epoch") or records.get("generators"))
    own_state.restore(model, callbacks, records, groups)
    callback_state.apply(callbacks, records["callbacks"], groups.get("callbacks", []))
    if rate is not None:
        live_state.inner(model.optimizer).learning_rate = rate
    if averages:
        live_state.assign(model.metrics_variables, groups["metrics"])


def _of_this_process(records: Mapping[str, Any]) -> list[str]:
    """Returns a message if a `fit` of this process left the backup and did not finish."""
    if records["stopped"] or int(records["epoch"]) >= int(records.get("epochs") or 0):
        return []
    return [
        "this is the backup of an earlier fit of this process, which did not finish (if this is another training, the next "
        "fold or trial, give each a folder of its own, or remove this one, to begin anew)"
    ]


def _of_script(records: Mapping[str, Any], target: Target, fit_returned: bool) -> list[str]:
    """Returns a message if the script trains something else than the backup was made of."""
    if fit_returned and target.again:
        return []
    before, now = records.get(script_record.RECORD), target.script.records[script_record.RECORD]
    same_model = target.again and target.script.used  # whose attributes training may have changed
    return code_changes.message(before, now, layers=not same_model, finished=fit_returned)


def _has_other_metrics(records: Mapping[str, Any], target: Target) -> bool:
    """Tests whether the script compiles other metrics than the backup has averages of."""
    return code_changes.other_metrics(records.get(script_record.RECORD), target.script.records[script_record.RECORD])


def _of_machine(records: Mapping[str, Any]) -> list[str]:
    """Returns a message if the backup is of another machine or version."""
    changed = fingerprint.differences(records["fingerprint"], fingerprint.fingerprint())
    return (
        [f"another machine or version ({'; '.join(changed)}): the last digits of results may differ"] if changed else []
    )


def _of_skipped(batch: int, begins_again: str) -> str:
    """Returns a message about the metrics of an interrupted epoch without `data=`, and about its batches."""
    metrics = "its training metrics cover the others alone"
    drawn = f"the {batch:,} batches that it drew are" if batch > 1 else "the batch that it drew is"
    skipped = f"{drawn} skipped in the order that the data have now"
    return metrics if begins_again else f"{skipped}, and {metrics} (data= continues both)"


def rate_of(model: Any) -> float | None:
    """Returns the learning rate; None if a schedule gives it.

    Under mixed_float16 a second optimizer wraps the one that trains; its own rate means nothing.
    """
    rate = getattr(live_state.inner(model.optimizer), "_learning_rate", None)
    return float(live_state.host_array(rate.value)) if isinstance(rate, keras.Variable) else None


def _skip_batches(records: Mapping[str, Any], target: Target, batch: int) -> list[str]:
    """Skips the batches of the user's own data that the interrupted epoch has drawn.

    Returns:
        A message for the user if no batch of the epoch is left; empty if training continues within it.

    Raises:
        UsageError: the length of an epoch has changed.
    """
    call = target.call
    if call is None:
        return []
    epoch, passes = int(records["epoch"]), int(records.get("passes") or 1)
    left = target.epochs is None or (epoch, batch) < (target.epochs, 0)
    if target.stream is None:  # where nothing is left, a later fit finds the data as the finished one left them
        call.earlier.pass_by(epoch if left else target.epochs or 0)
        call.earlier.pass_by_passes(passes - 1 if left else passes if epoch == target.epochs else 0)
    if not call.earlier.drawn_here:
        over = call.one_pass and left
        call.draws.continue_from(records.get("draws"), within=batch > 0, over=over)
    if target.stream is not None or not left:
        return []
    before, now = records.get("steps"), call.steps
    if batch and before != now and "steps" in records:
        raise UsageError(
            f"{target.backup_dir}: the interrupted epoch had {before or 'an unknown number of'} batches, but now fit counts "
            f"{now or 'an unknown number'}: give the same data and batch size, or another folder to start again"
        )
    drawn = records.get("drawn") if batch or not records["batch"] else None
    goes_on = call.begin_behind(batch, drawn, partial(_after_skipping, records, call))
    call.draws.catch_up()
    if goes_on:
        return []
    call.draws.resume()
    call.validations.pass_by(epoch + 1, reads=call.draws.are_late)  # the order of later ones is as if it had been done
    return ["the interrupted epoch has no batches left: its validation and its entry in the history are skipped"]


def _adopt_data(records: Mapping[str, Any], target: Target, epoch: int, batch: int) -> str:
    """Restores the state of the data.

    Returns:
        A message about new images; empty if there are none.

    Raises:
        UsageError: the interrupted epoch was trained with `data=` and now is not, or the other way round.
    """
    stream = target.stream
    if stream is not None and records["data"] is not None:
        with _naming(target.backup_dir):
            note = stream.adopt(Path(target.backup_dir), records["data"], epoch, batch, target.on_new_data)
        unless = f", so it is not trained unless fit(epochs=...) is more than {target.epochs}"
        return note + unless * bool(note and batch and epoch + 1 == target.epochs)
    if (stream is None) != (records["data"] is None) and batch:
        raise UsageError(
            f"{target.backup_dir} was interrupted in the middle of an epoch {'without' if stream else 'with'} data=: "
            f"{'leave it out' if stream else 'give it'} again, or give another folder to start again"
        )
    return ""


def _keep_compiled_rate(model: Any, compiled: float | None, before: float | None) -> list[str]:
    """Sets the rate of `compile` again if the script changed it since the backup.

    A changed rate is taken as the user's intent.

    Args:
        model: the restored model.
        compiled: the rate that `compile` set now.
        before: the rate that it had set when the backup was written.

    Returns:
        A message for the user if the rate was changed.
    """
    restored = rate_of(model)
    if compiled is None or before is None or restored is None or math.isclose(compiled, before, rel_tol=1e-6):
        return []
    live_state.inner(model.optimizer).learning_rate = compiled
    return [f"rate: {restored:g} (backup) -> {compiled:g} (compile)"]
