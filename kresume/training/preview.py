"""Says what `kresume train` with the same options would do: `kresume plan`.

print(make_plan(config, reporter))
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from kresume.backend import selection
from kresume.options.resolve import from_arguments
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.runs import Run
from kresume.spelling import as_argument, spelled
from kresume.training.adjust import adjusted, carry_others, grow
from kresume.training.plan.decide import decide, list_named, load_checkpoint, update_data
from kresume.training.plan.plan import Plan
from kresume.training.plan.teaching import take_teacher
from kresume.training.start import start_or_continue
from kresume.training.trial import estimate


@spelled(as_argument)
def plan(checkpoint: str | os.PathLike[str] | None = None, /, **arguments: Any) -> Plan:
    """Returns the plan of `kresume.resume` with the same arguments; writes nothing.

    Args:
        checkpoint: same as in `kresume.resume`.
        **arguments: same as in `kresume.resume`.

    Raises:
        KresumeError: `resume` would raise the same error.
    """
    quiet = bool(arguments.pop("quiet", False))
    return make_plan(from_arguments(checkpoint, arguments), Reporter(quiet=quiet))


@selection.policy_kept()
def make_plan(config: TrainConfig, reporter: Reporter) -> Plan:
    """Decides everything that `train` would decide with the same options; writes nothing.

    Raises:
        KresumeError: `train` would raise the same error.
    """
    start = start_or_continue(config)
    if start.run is not None:
        return _plan_of_continuation(start.run)
    sources = list_named(start, reporter, writes=False)
    loaded = load_checkpoint(start, sources, reporter)
    data = update_data(start, loaded, sources, reporter, writes=False)
    for quarantined in data.gathered.quarantine:
        reporter.say(f"would be quarantined: {quarantined.path}: {quarantined.reason}")
    draft = decide(start, loaded, data, reporter)
    teacher = take_teacher(draft)
    draft = grow(draft, reporter)
    with reporter.waiting("preparing a trial"):
        model, _ = adjusted(draft, config)
    carry_others(model, draft.loaded.parent, reporter)
    return replace(draft.plan, time=estimate(draft, model, teacher, start.config, reporter, writes=False))


def _plan_of_continuation(run: Run) -> Plan:
    """Returns the plan that an interrupted run has recorded."""
    from kresume.checkpoints import snapshot

    state, _ = snapshot.newest_snapshot(run.snapshots)
    record = run.record
    pinned = record.plan
    return Plan(
        action="continue",
        out=str(run.path),
        parent=f"its own snapshot at step {state.step or 0:,}",
        restored="",
        images=record.images,
        sides=pinned.sides,
        card=record.card,
        pixels_reason=pinned.pixels_reason,
        interpolation_reason=pinned.interpolation_reason,
        classes_reason=pinned.classes_reason,
        rate=record.rate,
        amount=record.amount,
        loss=pinned.loss,
        optimizer=pinned.optimizer,
        before=record.before,
        options=pinned.options,
        notes=(f"{state.step or 0:,} of the {record.amount.steps:,} steps are done",),
    )
