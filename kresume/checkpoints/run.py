"""Reads a run: its result, or the snapshot that `RUN@last`, `RUN@best` or `RUN@1200` names.

A folder of runs stands for its newest accepted run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.addresses import is_remote
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, KresumeError
from kresume.spelling import option
from kresume.staging.fetch import here
from kresume.storage.damage import interpreting
from kresume.values.loss import Loss
from kresume.values.state import EARLIER_STEPS, SavedRate, TrainState


def split(path: str) -> tuple[Path, str]:
    """Splits `"runs/2-signs@best"` into the run's path and `"best"`.

    Without `@`, or if a file of that whole name exists, returns the whole path and an empty string. A run at an address is
    fetched first.
    """
    path = here(path)
    whole = Path(path)
    if whole.exists() or "@" not in whole.name:
        return whole, ""
    plain, _, which = path.rpartition("@")
    return Path(plain), which


def accepts(path: str) -> bool:
    """Returns True if `path` names a run, a snapshot or a folder of runs."""
    plain, _ = split(path)
    return runs.is_run(plain) or bool(runs.folders_of(plain))


def find_run(path: str) -> runs.Run | None:
    """Returns the run that `RUN`, `RUN@best` or a folder of runs names.

    For a folder of runs, returns the newest accepted one. Returns None if `path` names no run.

    Raises:
        CheckpointError: if the folder holds runs and none of them was accepted, or one that cannot be read may be the newest.
    """
    plain, _ = split(path)
    if runs.is_run(plain):
        return runs.open_run(plain)
    listed = runs.list_runs(plain)
    accepted = [run for run in listed.runs if run.status == "accepted"]
    newest = accepted[-1] if accepted else None
    for other in listed.unreadable:
        if _may_be_newest(other, newest):
            instead = f", or give {option('from', str(newest.path))}, the newest that can be read" if newest else ""
            raise CheckpointError(
                f"{other.reason}, or move {other.path} elsewhere{instead}: it may be the newest accepted run in {plain}"
            )
    if listed.runs and newest is None:
        names = ", ".join(f"{run.path.name} ({run.status})" for run in listed.runs)
        raise CheckpointError(f"no run in {plain} was accepted: {names}; give one of them to extend it anyway")
    return newest


def recorded_classes(path: str) -> tuple[str, ...]:
    """Returns the classes that a run records; empty if `path` names no run on this machine."""
    if is_remote(path):
        return ()
    try:
        run = find_run(path)
    except KresumeError:
        return ()  # whoever reads the checkpoint says why
    return tuple(run.record.card.classes) if run is not None else ()


def _may_be_newest(other: runs.Unreadable, newest: runs.Run | None) -> bool:
    """Returns False if an unreadable run is certainly older than the newest accepted one, or not accepted."""
    if not other.has_result:
        return False
    return newest is None or not other.begun or other.begun > newest.record.created


def describe_unreadable(path: str) -> str:
    """Returns which runs of the folder that `path` names could not be read; empty if there are none."""
    plain, _ = split(path)
    left_out = [] if runs.is_run(plain) else runs.list_runs(plain).unreadable
    return f"left out, because it cannot be read: {'; '.join(each.reason for each in left_out)}" if left_out else ""


def named(path: str) -> str:
    """Returns `runs/2-signs` for a folder `runs/` that stands for this run; else the path itself."""
    plain, which = split(path)
    run = None if runs.is_run(plain) else find_run(path)
    return path if run is None else f"{run.path}{f'@{which}' * bool(which)}"


def read(path: str) -> TrainState:
    """Reads the result of a run, or the snapshot that the path names.

    Raises:
        CheckpointError: if there is no such run or snapshot, or the snapshot is damaged.
    """
    run = find_run(path)
    if run is None:
        raise CheckpointError(f"no run at {path}")
    _, which = split(path)
    state = _snapshot(run, which)
    record = run.record
    with interpreting(f"{run.path / runs.RECORD}: the loss or the optimizer", CheckpointError):
        compiled = _compiled(record.loss)
        schedule = _schedule(record.optimizer.config or {}, state.records.get("clock"))
    return replace(
        state,
        source=path,
        format="run",
        architecture=run.read_architecture(),
        compiled=compiled,
        optimizer=replace(record.optimizer, variables=sum(name.startswith("optimizer/") for name in state.arrays)),
        step=record.base_step + int(state.step or 0),
        rate=SavedRate(record.rate.peak, "run", schedule, record.rate.lowered_from),
        card=record.card,
        writer=f"kresume {record.kresume}",
        written=record.finished or record.created,
        records={
            **state.records,
            EARLIER_STEPS: record.base_step,
            "paths": record.variables,
            "unreadable_runs": describe_unreadable(path),
        },
    )


def _compiled(loss: Loss) -> dict[str, Any]:
    """Returns the compile config that corresponds to the loss in a run's record."""
    if loss.settings is not None:
        return {"loss": loss.settings, "loss_weights": loss.weight}
    name = "".join(word.capitalize() for word in loss.kind.split("_"))
    config = {"from_logits": loss.from_logits, "label_smoothing": loss.label_smoothing}
    return {"loss": {"class_name": name, "config": config}, "loss_weights": loss.weight}


def _schedule(config: Mapping[str, Any], clock: list[float] | None) -> dict[str, Any] | None:
    """Returns the run's schedule as a Keras config; None for a float rate.

    If the images changed while the run trained, the config contains the schedule time reached so far (`base`).
    """
    rate = config.get("learning_rate")
    if not isinstance(rate, dict):
        return None
    return {**rate, "config": {**rate["config"], "base": clock}} if clock else rate


def _snapshot(run: runs.Run, which: str) -> TrainState:
    """Returns the snapshot that a run or `RUN@which` names.

    Without `which`: the run's result, or the newest snapshot of an unfinished run.
    """
    steps = snapshot.list_snapshots(run.snapshots)
    result = run.result_step()
    if which == "" and result is not None:
        return snapshot.read_snapshot(snapshot.snapshot_path(run.result_snapshots, result))
    if which in {"", "last"}:
        state, _ = snapshot.newest_snapshot(run.snapshots)
        lines = runs.read_metrics(run.metrics)
        with interpreting(str(run.metrics), CheckpointError):
            last = int(lines[-1]["step"]) if result is not None and lines else state.step
        if state.step != last:
            instead = run.path if run.result_snapshots == run.snapshots else f"{run.path}@best"
            raise CheckpointError(
                f"{run.path}@last: the last step, {last:,}, is no longer stored; a finished run keeps only its result, the "
                f"best epoch (step {result:,}): use {instead}"
            )
        return state
    if which == "best":
        best = run.best_step() if result is not None else _best_so_far(run)
        if best is None:
            raise CheckpointError(
                f"{run.path}@best: the run has no best snapshot, because {run.why_no_best()}: use {run.path}@last"
            )
        return snapshot.read_snapshot(snapshot.snapshot_path(run.snapshots, best))
    for step, path in reversed(steps):
        if which == str(step):
            return snapshot.read_snapshot(path)
    known = ", ".join(str(step) for step, _ in steps)
    best_too = ", best" if run.best_step() is not None or (result is None and _best_so_far(run) is not None) else ""
    raise CheckpointError(f"{run.path}@{which}: no such snapshot; the run has last{best_too} and the steps {known}")


def _best_so_far(run: runs.Run) -> int | None:
    """Returns the step of an unfinished run's best epoch, recorded in its newest snapshot."""
    best = snapshot.best_steps(run.snapshots)
    return best[max(best)] if best else None
