"""Reads a run: its result, or `RUN@last`, `RUN@best`, `RUN@1200`; a folder of runs means its newest accepted one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from kresume import files, runs
from kresume.checkpoints import snapshot
from kresume.checkpoints.state import Card, SavedOptimizer, SavedRate, TrainState
from kresume.errors import CheckpointError


def split(path: str) -> tuple[Path, str]:
    """`"runs/2-signs@best"` -> (`runs/2-signs`, `"best"`); without `@`, or where such a file stands, the whole and ""."""
    whole = Path(path)
    if whole.exists() or "@" not in whole.name:
        return whole, ""
    plain, _, which = path.rpartition("@")
    return Path(plain), which


def accepts(path: str) -> bool:
    """Whether `path` names a run, one of its snapshots, or a folder of runs."""
    plain, _ = split(path)
    return runs.is_run(plain) or bool(runs.list_runs(plain))


def find_run(path: str) -> runs.Run | None:
    """The run that a path names (`RUN`, `RUN@best`); of a folder of runs the newest accepted one; None where it names none.

    Raises:
        CheckpointError: the folder holds runs, none of which was accepted.
    """
    plain, _ = split(path)
    if runs.is_run(plain):
        return runs.open_run(plain)
    inside = runs.list_runs(plain)
    accepted = [run for run in inside if run.status == "accepted"]
    if inside and not accepted:
        names = ", ".join(f"{run.path.name} ({run.status})" for run in inside)
        raise CheckpointError(f"no run in {plain} was accepted: {names}; name one of them to extend it all the same")
    return accepted[-1] if accepted else None


def read(path: str) -> TrainState:
    """Reads the state that a run stands for.

    Raises:
        CheckpointError: there is no such snapshot, or it is damaged.
    """
    run = find_run(path)
    if run is None:
        raise CheckpointError(f"no run at {path}")
    _, which = split(path)
    state = _snapshot(run, which)
    record = run.record
    optimizer = record["optimizer"]
    rate = record["rate"]
    return replace(
        state,
        source=path,
        format="run",
        architecture=files.read_json(run.path / "architecture.json"),
        compiled=_compiled(record["loss"]),
        optimizer=SavedOptimizer(
            optimizer["class_name"],
            optimizer["config"],
            sum(name.startswith("optimizer/") for name in state.arrays),
            bool(optimizer.get("loss_scale")),
        ),
        step=int(record["base_step"]) + int(state.step or 0),
        rate=SavedRate(float(rate["peak"]), "run", _schedule(optimizer["config"], state.records.get("clock"))),
        card=Card.from_dict(record["card"]),
        writer=f"kresume {record['kresume']}",
        written=str(record.get("finished") or record["created"]),
        records={**state.records, "paths": record.get("variables", {})},
    )


def _compiled(loss: dict[str, Any]) -> dict[str, Any]:
    """The compile config that a run's record stands for."""
    if loss.get("settings") is not None:
        return {"loss": loss["settings"], "loss_weights": loss.get("weight")}
    name = "".join(word.capitalize() for word in loss["kind"].split("_"))
    config = {key: loss[key] for key in ("from_logits", "label_smoothing")}
    return {"loss": {"class_name": name, "config": config}, "loss_weights": loss.get("weight")}


def _schedule(config: dict[str, Any], clock: list[float] | None) -> dict[str, Any] | None:
    """The run's schedule; of one whose images changed while it trained, with the time that it had reached."""
    rate = config.get("learning_rate")
    if not isinstance(rate, dict):
        return None
    return {**rate, "config": {**rate["config"], "base": clock}} if clock else rate


def _snapshot(run: runs.Run, which: str) -> TrainState:
    """The snapshot that a run or `RUN@which` means: its result, or the newest of an unfinished run."""
    steps = snapshot.list_snapshots(run.snapshots)
    result = run.result_step()
    if which == "" and result is not None:
        return snapshot.read_snapshot(snapshot.snapshot_path(run.snapshots, result))
    if which in {"", "last"}:
        state, _ = snapshot.newest_snapshot(run.snapshots)
        lines = runs.read_metrics(run.metrics)
        last = int(lines[-1]["step"]) if result is not None and lines else state.step
        if state.step != last:
            raise CheckpointError(
                f"{run.path}@last: the last step was {last:,}; a finished run keeps its result alone, the best epoch (step "
                f"{result:,}): use {run.path}"
            )
        return state
    if which == "best":
        best = run.best_step() if result is not None else _best_so_far(run)
        if best is None:
            raise CheckpointError(
                f"{run.path}@best: no monitor chose a best snapshot (--monitor NAME does); use {run.path}@last"
            )
        return snapshot.read_snapshot(snapshot.snapshot_path(run.snapshots, best))
    for step, path in reversed(steps):
        if which == str(step):
            return snapshot.read_snapshot(path)
    known = ", ".join(str(step) for step, _ in steps)
    best_too = ", best" if run.best_step() is not None or (result is None and _best_so_far(run) is not None) else ""
    raise CheckpointError(f"{run.path}@{which}: no such snapshot; there are last{best_too} and the steps {known}")


def _best_so_far(run: runs.Run) -> int | None:
    """The step of the best epoch of an unfinished run: its newest snapshot knows it."""
    pins = snapshot.pins(run.snapshots)
    return pins[max(pins)] if pins else None
