"""Creates the run directory, whole or not at all: record, images, and a snapshot of step 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kresume import runs
from kresume.addresses import relative
from kresume.backend import fingerprint, live_state
from kresume.checkpoints import sealed_arrays, snapshot
from kresume.checkpoints.files import describe_files
from kresume.errors import RunError
from kresume.evaluation import answers
from kresume.images.away import away_digest, write_away
from kresume.images.prepare import write_quarantine
from kresume.options.given import given, to_command
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.storage import atomic, locations, refusals, sealed
from kresume.training.loop.progress import Progress
from kresume.training.plan.draft import Draft
from kresume.training.plan.images import not_used
from kresume.training.plan.teaching import Teacher
from kresume.training.start import Start
from kresume.values.record import ParentRecord, PlanWords, RunRecord
from kresume.version import __version__

MOST_LISTED = 100
"""Rows of a list of files that the record keeps."""


def create_run(start: Start, draft: Draft, held: Mapping[str, np.ndarray], teacher: Teacher | None) -> runs.Run:
    """Creates the run directory.

    Args:
        start: where the run will be.
        draft: what was decided; its model is adjusted.
        held: slots of layers that are frozen for the first epochs.
        teacher: the parent as it predicts, if it teaches the run.

    Raises:
        RunError: the directory cannot be written, or another process created a run there at the same moment.
    """
    record = _record(start, draft)
    try:
        if start.aside:
            runs.move_aside(start.path)
        elif start.path.exists():
            start.path.rmdir()  # it is empty; `start_or_continue` refuses any other folder
        atomic.remove_abandoned(start.path.parent, start.path.name)
        with atomic.new_directory(start.path) as temporary:
            _fill(temporary, record, draft)
            if held:
                sealed_arrays.write(temporary / runs.HELD, held)
            if teacher is not None:
                sealed_arrays.write(temporary / runs.TEACHER, teacher.arrays)
                sealed.write(temporary / runs.TEACHER_ARCHITECTURE, teacher.architecture)
    except OSError as error:
        if runs.is_run(start.path):
            raise RunError(
                f"another process created a run at {start.path} at the same moment: run the command again; it says which "
                "process trains it, or continues it"
            ) from error
        raise RunError(
            f"a run cannot be created at {start.path} ({refusals.reason(error)}): {refusals.way_on(error)} another folder with "
            f"{option('out')}"
        ) from error
    return runs.open_run(start.path)


def _fill(folder: Path, record: RunRecord, draft: Draft) -> None:
    """Writes the files of a new run."""
    from kresume.models import architecture, other_variables, structure

    model = draft.loaded.live.model
    state = live_state.read_state(model)
    names, values = other_variables.capture(model)
    beside = {other_variables.GROUP: names} if names else {}
    runs.write_record(folder, record)
    if draft.before.answers is not None:
        answers.write(folder / runs.ANSWERS / "before.parquet", draft.before.answers)
    draft.data.gathered.manifest.write(folder / "images.parquet")
    write_away(folder, draft.data.gathered.merge.away)
    write_quarantine(folder / "quarantine.csv", draft.data.gathered.quarantine)
    sealed.write(folder / runs.ARCHITECTURE, architecture.serialize(model))
    snapshot.write_snapshot(
        folder / "snapshots",
        0,
        {**state, other_variables.GROUP: values} if names else state,
        {
            **beside,
            snapshot.NOT_FINITE: snapshot.broken_arrays(state, allowed=()),
            "manifest": record.manifest,
            "fingerprint": record.fingerprint,
            "seed": record.seed,
            **Progress().as_dict(),
            "callbacks": {},
            structure.RECORD: structure.describe(model),
        },
    )


def _record(start: Start, draft: Draft) -> RunRecord:
    """Returns the record of a run that was just decided."""
    import keras

    from kresume.models.optimizers import describe

    plan, config, parent, model = draft.plan, start.config, draft.loaded.parent, draft.loaded.live.model
    return RunRecord(
        kresume=__version__,
        status="running",
        created=runs.now(),
        command=to_command(start.given),
        generation=draft.loaded.generation,
        parent=None
        if parent is None
        else ParentRecord(
            path=relative(parent.run.path if parent.run else str(config.from_), start.path),
            format=parent.state.format,
            step=parent.state.step,
            digest=snapshot.digest_of(parent.state.arrays),
            files=describe_files(parent.state, parent.run),
        ),
        given=given(start.given),
        options=given(rooted(config)),
        seed=settings_of(config).seed,
        backend=keras.config.backend(),
        fingerprint=fingerprint.fingerprint(),
        card=replace(plan.card, lineage={}),
        loss=draft.loaded.loss,
        optimizer=describe(model.optimizer),
        rate=plan.rate,
        amount=plan.amount,
        iterations=draft.loaded.live.iterations,
        variables={
            group: [variable.path for variable in variables]
            for group, variables in live_state.variables_of(model).items()
            if group in {"trainable", "non_trainable"}
        },
        base_step=(parent.state.step or 0) if parent is not None else 0,
        images={**plan.images, "added": plan.images["new"]},
        manifest=draft.data.gathered.manifest.digest(),
        dropped=draft.data.gathered.dropped,
        away=away_digest(draft.data.gathered.merge.away),
        not_used=not_used(draft.data.sources, draft.data.gathered.manifest),
        before=plan.before,
        statistics=settings_of(config).bn_stats,
        balance=plan.balance,
        freezing=draft.freezing,
        teaching=draft.teaching,
        restored=plan.restored,
        notes=tuple(plan.notes),
        merged=_merged(draft),
        time=plan.time,
        new_classes=draft.loaded.growth.new if draft.loaded.growth else (),
        plan=PlanWords(
            sides=plan.sides,
            pixels_reason=plan.pixels_reason,
            interpolation_reason=plan.interpolation_reason,
            classes_reason=plan.classes_reason,
            loss=plan.loss,
            optimizer=plan.optimizer,
            options=dict(plan.options),
        ),
    )


def _merged(draft: Draft) -> dict[str, Any]:
    """Returns what merging the images found, cut to the first rows."""
    facts = draft.data.gathered.merge.facts
    leaks = [*((leak.path, leak.near, leak.outcome) for leak in facts.leaks), *facts.both]
    lists = {"leaks": leaks, "conflicts": list(facts.conflicts), "relabels": list(facts.relabels)}
    counts = {f"{name}_count": len(rows) for name, rows in lists.items()}
    return {**{name: [list(row) for row in rows[:MOST_LISTED]] for name, rows in lists.items()}, **counts}


def rooted(config: TrainConfig) -> TrainConfig:
    """Makes source paths absolute, so that a run can continue from another folder."""

    def rooted(paths: Sequence[str] | None) -> tuple[str, ...] | None:
        return tuple(locations.absolute(path) for path in paths) if paths else None

    return config.model_copy(update={name: rooted(getattr(config, name)) for name in ("data", "add", "val")})
