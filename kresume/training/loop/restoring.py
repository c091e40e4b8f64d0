"""Restores the newest intact snapshot of an interrupted run into its session.

restore_newest(session)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kresume import runs
from kresume.backend import fingerprint, hosts
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError
from kresume.images.scans import FOLDER, epochs_begun
from kresume.lock import NAME as LOCK
from kresume.models import other_variables, structure
from kresume.models.statistics import stored
from kresume.spelling import option
from kresume.storage import atomic
from kresume.training.loop.callbacks import Resumption
from kresume.training.loop.fit import assign_state, groups_of
from kresume.training.loop.progress import Progress
from kresume.training.loop.scored import Scored
from kresume.values.state import TrainState

SNAPSHOT = "snapshot"
"""Under which the process that leads tells the others which snapshot it continues from."""

if TYPE_CHECKING:
    from kresume.training.loop.session import Session


def restore_newest(session: Session, *, continued: bool = True) -> None:
    """Restores the newest intact snapshot, and reports which one and why no newer one.

    Args:
        session: of an interrupted run.
        continued: False for a new run, of which there is nothing to say yet.

    Raises:
        CheckpointError: no snapshot is intact, or it belongs to another manifest.
    """
    run, reporter = session.run, session.reporter
    for folder in (run.path, run.snapshots, run.path / FOLDER):
        atomic.remove_leftovers(folder, keep=LOCK)  # the heartbeat writes it during this cleanup
    snapshot.undo_replacements(run.snapshots)
    with reporter.waiting(f"reading the newest snapshot of {run.path}"):
        state, skipped = snapshot.newest_snapshot(run.snapshots)
    for path, reason in skipped:
        reporter.warn(f"{path} is damaged ({reason}): continuing from the snapshot before it")
        run.event("snapshot damaged", path=str(Path(path).name), reason=reason)
        snapshot.set_aside(Path(path))
    hosts.announce(SNAPSHOT, Path(state.source).name)
    session.progress = progress = Progress.from_records(state.records)
    begun = epochs_begun(state.records)
    for scan in session.changes.recorded(begun):
        session.passes.change(scan.epoch - 1, scan.applied_to(session.passes.manifest))
    if state.records["manifest"] != session.passes.digest:
        raise CheckpointError(
            f"{run.manifest} is not the manifest that the snapshots were taken with: restore it from a copy"
        )
    session.thawing.restore(begun)
    with reporter.waiting("restoring it"):
        assign_state(session.model, state)
    groups = groups_of(state)
    for note in other_variables.restore(session.model, state.records, groups):
        reporter.say(note)
    session.scored = Scored(progress.step, stored(session.model, state))
    session.resumption = Resumption(
        callbacks=state.records["callbacks"],
        callback_arrays=groups.get("callbacks", ()),
        metrics=groups["metrics"] if progress.phase in {"training", "scoring"} else None,
    )
    session.not_finite = state.records.get(snapshot.NOT_FINITE, snapshot.broken_arrays(groups, allowed=()))
    # If an epoch only repeats its scoring, its line is not lost.
    lost = len(runs.read_metrics(run.metrics)) - progress.lines - (progress.phase == "scoring")
    session.writer.keep(progress.lines, progress.step)
    for step, best in snapshot.best_steps(run.snapshots).items():
        session.writer.remember(step, best)
    if not continued:
        session.run = run.update(fingerprint=fingerprint.fingerprint())  # it was decided by one process alone
        return
    session.run = run.update(status="running")
    _say_where(session, state, lost)


def _say_where(session: Session, state: TrainState, lost: int) -> None:
    """Says from where the run continues and what is repeated."""
    changed = fingerprint.differences(state.records["fingerprint"], fingerprint.fingerprint())
    if changed:
        held = session.settings
        augments = held.augment != "none" or held.mixup or held.cutmix or held.rand_augment or held.erase
        others = []
        if augments and any(each.startswith("processes ") for each in changed):
            others.append("augmented in another way: each process draws for its share")
        draws = any(structure.SEED in str(variable.path) for variable in session.model.variables)
        if draws and any(each.startswith("backend ") for each in changed):
            others.append("layers such as dropout draw other numbers, because each backend has its own")
        session.reporter.say(
            f"this is another machine or version ({'; '.join(changed)}): same {'images' if others else 'data'} and steps, "
            f"{'; '.join(others) or 'last digits may differ'}"
        )
        session.run.event("continued elsewhere", changes=changed)
    where = {"training": "", "scoring": ", scoring pending", "epoch": "", "done": ", training done"}
    progress, boundaries = session.progress, session.passes.boundaries
    session.reporter.say(
        f"continuing at step {progress.step:,} of {boundaries[-1]:,}, epoch {min(progress.epoch + 1, len(boundaries))} of "
        f"{len(boundaries)}{where[progress.phase]}"
    )
    if lost > 0:
        alike = "" if changed else ", with the same result"
        session.reporter.say(
            f"the process before had scored {lost:,} epoch{'s' * (lost > 1)} after its last snapshot: what came after it is "
            f"repeated{alike} ({option('snapshot-every', 'N')} takes one more often; SIGTERM and Ctrl-C lose nothing)"
        )
