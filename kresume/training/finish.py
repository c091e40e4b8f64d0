"""Writes the result of a run: `model.keras`, `evaluation.json`, answers, the record, the report.

All of it can be repeated: if a process is killed while writing the result, the next one writes it again from the snapshot.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from kresume import runs
from kresume.backend import programs
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, ImagesError
from kresume.evaluation import answers
from kresume.evaluation.verdict import Pair
from kresume.images.scans import manifest_of
from kresume.storage import atomic
from kresume.training.closing import TrainResult, closing_facts
from kresume.values.record import Best, ParentRecord, Result

if TYPE_CHECKING:
    from kresume.training.loop.session import Session


def finish(session: Session) -> TrainResult:
    """Writes the result of a trained run and returns what `kresume train` prints last.

    Args:
        session: training is done.
    """
    from kresume.models.hub_graph import holds_hub
    from kresume.training.loop.teaching import forget_teacher

    with session.reporter.waiting(f"writing the result of {session.run.path}"):
        finished, result, pair = _write_result(session)
    # The run is finished when its page is written: a process that dies before leaves a run that the same command continues.
    with session.reporter.waiting(f"writing {session.run.path / 'report.html'}"):
        report = _write_report(session, finished)
    session.lock.check()  # a machine that slept may have lost the run to another
    session.run = run = session.run.update(**finished)
    run.event("finished", step=result.step, which=result.which)
    session.writer.close(run.status)
    snapshot.prune_snapshots(run.snapshots, 0, {result.step})
    forget_teacher(run)
    programs.forget(run.path)
    return TrainResult(
        run=str(run.path),
        status=run.status,
        step=result.step,
        epochs=session.progress.epoch,
        before=run.record.before,
        after=result.scores,
        failures=tuple(session.failures),
        failed=tuple(run.record.failed),
        parent=_parent_of(run) if run.record.failed else "",
        feed=_feed(session, short=True),
        report=report,
        needs="keras-hub" if holds_hub(session.model) else "",
        **closing_facts(run, pair),
    )


def _feed(session: Session, *, short: bool = False) -> str:
    """Returns the line of plain Keras that feeds the result as it was trained."""
    from kresume.models.plain_keras import line_of

    return line_of(session.model, session.run.record.card, session.passes.manifest, short=short)


def _write_report(session: Session, finished: Mapping[str, Any]) -> str:
    """Writes `report.html` and returns its path; empty if it could not be written.

    The run is finished without it, and `kresume report` writes it at any time.

    Args:
        session: its result is written.
        finished: the fields of `run.json` with which it is finished.
    """
    from kresume.reports.page.write import NAME, write_run

    try:
        return str(write_run(runs.Run(session.run.path, replace(session.run.record, **finished))).path)
    except Exception as error:  # any fault: it must not cost a night's training its result
        again = f"kresume report {shlex.quote(str(session.run.path))}"
        session.writer.record_failure(NAME, f"{type(error).__name__}: {error}; write it with: {again}")
        return ""


def _write_result(session: Session) -> tuple[dict[str, Any], Result, Pair | None]:
    """Writes the result: `model.keras`, `evaluation.json`, the answers.

    Returns:
        The fields of `run.json` with which the run is finished, its result, and the answers of its parent and its result;
        None if one of them is unknown.
    """
    from kresume.models import averages
    from kresume.models.save import save_model
    from kresume.models.statistics import used
    from kresume.training.averaging import average

    session.writer.finish()
    session.lock.check()  # a machine that slept may have lost the run to another
    lines = runs.read_metrics(session.run.metrics)
    before = session.run.record.before
    last_failed = session.gates.failures(lines[-1], before)
    best = _take_best(session) if last_failed or not _only_for_gates(session) else None
    step = int(best["step"]) if best is not None else session.progress.step
    scores = next(line for line in reversed(lines) if line["step"] == step)
    scores = {name: scores[name] for name in ("all", "old", "new", "classes")}
    averaged = average(session, step, scores)
    scores = scores if averaged is None else averaged.scores
    pair = _write_answers(session, step)
    failed = session.gates.failures(scores, before, pair)
    record = session.run.record
    lineage = {
        "run": session.run.path.name,
        "generation": session.run.generation,
        "step": step,
        "total_step": record.base_step + step,
        "parent": _without_files(record.parent),
        "manifest": _digest_of(session, best),
        **({"average": averaged.share} if averaged is not None else {}),
    }
    card = replace(record.card, lineage=lineage)
    rate = record.rate
    with averages.averaged(session.model), used(session.model, session.scored.statistics_of(step)):
        save_model(
            session.model,
            session.run.model,
            card,
            rate.peak,
            {"step": record.base_step + step, "peak": rate.peak, "feed": _feed(session)},
            session.loss,
        )
    session.lock.check()
    atomic.write_json(session.run.path / "evaluation.json", {"before": record.before, "after": scores, "step": step})
    which: Literal["best", "last"] = "best" if best is not None else "last"
    result = Result(step, which, scores, 0.0 if averaged is None else averaged.share)
    finished = {
        "status": "rejected" if failed else "accepted",
        "failed": failed,
        "result": result,
        "best": None if best is None else Best(**best),
        "images": {**record.images, **session.counts()},
        "finished": runs.now(),
    }
    return finished, result, pair


def _write_answers(session: Session, step: int) -> Pair | None:
    """Writes the result's answers to the validation images, if there are any.

    Returns:
        The answers of the parent and of the result; None if one of them is unknown.
    """
    from kresume.training.loop.scored import answers_of

    if not len(session.manifest.val_rows()):
        return None
    path = session.run.answers("after")
    try:
        found = answers_of(session, step)
        before = answers.read(session.run.answers("before"))
    except ImagesError as error:  # the drive of the images is gone; the model and its scores are not
        session.writer.record_failure(str(path), str(error))
        return None
    session.lock.check()
    answers.write(path, found)
    return None if before is None else Pair(before, found, session.run.generation)


def _only_for_gates(session: Session) -> bool:
    """Returns True if a best epoch is only sought in case that the last one fails a gate."""
    return session.config.monitor is None and session.config.patience is None


def _without_files(parent: ParentRecord | None) -> dict[str, Any] | None:
    """Returns the parent for the model card: its digest is enough where its files are not."""
    return {name: value for name, value in asdict(parent).items() if name != "files"} if parent else None


def _parent_of(run: runs.Run) -> str:
    """Returns the path of the parent run; empty if it was no run."""
    path = run.parent_path()
    return str(path) if path is not None and runs.is_run(path) else ""


def _digest_of(session: Session, best: Mapping[str, Any] | None) -> str:
    """Returns the digest of the images that the result was trained on."""
    if best is None or session.passes.manifest is session.manifest:
        return session.passes.digest
    return manifest_of(session.run.path, int(best["epoch"]) + 1).digest()


def _take_best(session: Session) -> dict[str, Any] | None:
    """Loads the best epoch's state into the model, if the result is not the last step.

    Returns:
        The best epoch's record, or None if the last step is the result.
    """
    from kresume.models.statistics import stored
    from kresume.training.loop.fit import assign_state
    from kresume.training.loop.scored import Scored

    best = session.progress.best
    if best is None or int(best["step"]) == session.progress.step:
        return best
    try:
        state = snapshot.read_snapshot(snapshot.snapshot_path(session.run.snapshots, int(best["step"])))
    except CheckpointError as error:
        # The disk refused the snapshot or damaged it later: the run records which result it has instead.
        session.writer.record_failure(
            f"the best epoch (step {int(best['step']):,})", f"{error}: the result is the last step"
        )
        return None
    assign_state(session.model, state, same_weights=not session.thawing.was_frozen(int(best["epoch"])))
    session.scored = Scored(int(best["step"]), stored(session.model, state))
    return best
