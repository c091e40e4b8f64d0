"""Trains a run: load the checkpoint, update the data, adjust the parameters, resume, monitor.

    result = train(config, reporter)        # the command line
    run = resume("ckpt/", data=["old/"], add=["new/"], lr=1e-4, epochs=5)      # Python

Read `train` from top to bottom; each call leads to a module of its own. A run starts as one directory that holds every
decision and a snapshot of step 0. From there on, new runs and interrupted runs follow the same path.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kresume import crash, runs
from kresume.backend import fingerprint, live_state, selection
from kresume.checkpoints import snapshot
from kresume.errors import KresumeError, RunError, Stopped
from kresume.images.prepare import write_quarantine
from kresume.images.scans import remembered
from kresume.lock import Lock
from kresume.options.given import code_of, given, to_command
from kresume.options.resolve import from_arguments
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import as_argument, spelled
from kresume.storage import atomic, locations
from kresume.training.gather import came_since, not_used
from kresume.training.loop.progress import Progress
from kresume.training.plan.decide import Draft, make_draft
from kresume.training.plan.parent import wanted_optimizer
from kresume.training.plan.plan import describe_scores
from kresume.training.plan.rate import keras_rate
from kresume.training.start import Opening, open_out
from kresume.values.amount import Amount
from kresume.values.card import Card
from kresume.values.record import ParentRecord, PlanWords, RunRecord
from kresume.version import __version__

ARCHITECTURE = "architecture.json"


@dataclass(frozen=True)
class TrainResult:
    """Result of a finished run, which `kresume train` prints last.

    Attributes:
        run: the run directory.
        status: `"accepted"` or `"rejected"`.
        step: the step of the result.
        epochs: the number of epochs trained.
        before: the parent's scores, None for a new model.
        after: the result's scores.
        failures: descriptions of snapshots and records that could not be written.
        feed: the line of plain Keras code that feeds the result as it was trained.
    """

    run: str
    status: str
    step: int
    epochs: int
    before: Mapping[str, Any] | None
    after: Mapping[str, Any]
    failures: tuple[str, ...] = ()
    feed: str = ""

    @property
    def exit_code(self) -> int:
        """Returns 0, or 5 if something could not be written."""
        return 5 if self.failures else 0

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**vars(self), "failures": list(self.failures), "exit_code": self.exit_code}

    def __str__(self) -> str:
        epochs = f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        lines = [f"{self.run}: {self.status}, {epochs}, result is step {self.step:,}"]
        if self.before:
            lines.append(f"before: {describe_scores(self.before)}")
        lines.append(f"after:  {describe_scores(self.after)}")
        lines.append(f"model:  {Path(self.run) / 'model.keras'}")
        if self.feed:
            lines.append(f"feed:   {self.feed}")
        lines += [f"not written: {failure}" for failure in self.failures]
        return "\n".join(lines)


@spelled(as_argument)
def resume(checkpoint: str | os.PathLike[str] | None = None, /, **arguments: Any) -> runs.Run:
    """Extends a checkpoint, or trains a new model without one, and returns the finished run.

    Args:
        checkpoint: same as `--from`: a run, a `.keras` file, a checkpoint directory or prefix; None for a new model.
        **arguments: the options of `kresume train` with underscores, for example `data=["old/"]`, `add=["new/"]`,
            `lr=1e-4`, `epochs=5`; `quiet=True` prints nothing.

    Returns:
        The finished run.

    Raises:
        KresumeError: the run cannot be started or finished; the message says why and what to do.
    """
    quiet = bool(arguments.pop("quiet", False))
    result = train(from_arguments(checkpoint, arguments), Reporter(quiet=quiet))
    return runs.open_run(result.run)


def train(config: TrainConfig, reporter: Reporter) -> TrainResult:
    """Trains a new run, or continues an interrupted one to its end.

    Args:
        config: the options of this command.
        reporter: prints what was decided, and progress.

    Returns:
        The scores of the result and what could not be written.

    Raises:
        Stopped: a signal requested it; a snapshot was written, and the same command continues.
        KresumeError: the run cannot be started or finished; the message says why and what to do.
    """
    opening = open_out(config)
    reporter.say(f"run:      {opening.path}{_where_it_dies(opening.path)}")
    if opening.run is not None:
        return _continue(opening.run, opening, reporter)
    draft = make_draft(opening, reporter, writes=True)
    reporter.say(str(draft.plan).partition("\n")[2])
    model = _adjust(draft, opening.config)
    run = _create(opening, draft, model)
    for quarantined in draft.gathered.quarantine:
        reporter.say(f"set aside: {quarantined.path}: {quarantined.reason}")
    return _carry_on(run, model, opening, reporter, continued=False)


def _where_it_dies(path: Path) -> str:
    """Returns a warning if the run is on Colab's own disk, which dies with the session."""
    colab = "COLAB_RELEASE_TAG" in os.environ
    mounted = str(path.resolve()).startswith("/content/drive/")
    if not colab or mounted:
        return ""
    return "\nwarning: this disk dies with the Colab session; put --out on a mounted drive (/content/drive/...)"


def _adjust(draft: Draft, config: TrainConfig) -> Any:
    """Gives the restored model a new optimizer with the planned rate; copies every slot and `iterations`."""
    from kresume.models import averages, optimizers, slots
    from kresume.training import schedules

    live = draft.live
    wanted = wanted_optimizer(live.saved, config)
    optimizer = optimizers.make_optimizer(wanted, keras_rate(draft.plan.rate, live.iterations))
    _compile(live.model, optimizer, draft.loss, draft.plan.card, draft.plan.amount, config)
    slots.carry(live.optimizer, live.model.optimizer)
    if averages.uses_averages(live.model) and not live_state.inner(live.optimizer).use_ema:
        averages.start_from_weights(live.model)
    schedules.wind(live.model.optimizer)
    return live.model


def _compile(model: Any, optimizer: Any, loss: Any, card: Card, amount: Amount, config: TrainConfig) -> None:
    from kresume.training.loop import fit

    predict, made = getattr(model, "predict_function", None), _how_it_runs(model)
    model.compile(
        optimizer=optimizer,  # wrapped for loss scaling if the layers need it, whatever the global policy says
        loss=loss.keras_loss(),
        loss_weights=loss.weight,
        metrics=[*loss.keras_metrics(), *(config.metric or ())],
        auto_scale_loss=False,
        steps_per_execution=amount.steps_per_execution,
    )
    if made == _how_it_runs(model):
        # Keep the function that scoring the parent traced: tracing again takes seconds.
        model.predict_function = predict
    classes, batch_size = len(card.classes), amount.batch_size
    labels, dtype = ((batch_size, classes), "float32") if loss.one_hot else ((batch_size,), "int32")
    fit.build(model, (batch_size, *card.input_shape), labels, dtype)


def _how_it_runs(model: Any) -> tuple[Any, ...]:
    """Returns the settings on which Keras's compiled functions depend."""
    return model.jit_compile, model.run_eagerly, model.steps_per_execution


def _create(opening: Opening, draft: Draft, model: Any) -> runs.Run:
    """Creates the run directory atomically: decisions, images and a snapshot of step 0."""
    import keras

    from kresume.models import structure
    from kresume.models.optimizers import describe

    plan, config, parent = draft.plan, opening.config, draft.parent
    record = RunRecord(
        kresume=__version__,
        status="running",
        created=runs.now(),
        command=to_command(opening.given),
        generation=draft.generation,
        parent=None
        if parent is None
        else ParentRecord(
            path=os.path.relpath(parent.run.path if parent.run else str(config.from_), opening.path),
            format=parent.state.format,
            step=parent.state.step,
            digest=snapshot.digest_of(parent.state.arrays),
        ),
        given=given(opening.given),
        options=given(_rooted(config)),
        seed=settings_of(config).seed,
        backend=keras.config.backend(),
        fingerprint=fingerprint.fingerprint(),
        card=replace(plan.card, lineage={}),
        loss=draft.loss,
        optimizer=describe(model.optimizer),
        rate=plan.rate,
        amount=plan.amount,
        iterations=draft.live.iterations,
        variables={
            group: [variable.path for variable in variables]
            for group, variables in live_state.variables_of(model).items()
            if group in {"trainable", "non_trainable"}
        },
        base_step=(parent.state.step or 0) if parent is not None else 0,
        images={**plan.images, "added": plan.images["new"]},
        manifest=draft.gathered.manifest.digest(),
        dropped=draft.gathered.dropped,
        not_used=not_used(draft.sources, draft.gathered.manifest),
        before=plan.before,
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
    try:
        if opening.aside:
            runs.move_aside(opening.path)
        elif opening.path.exists():
            opening.path.rmdir()  # it is empty; `open_out` refuses any other folder
        atomic.remove_abandoned(opening.path.parent, opening.path.name)
        with atomic.new_directory(opening.path) as temporary:
            atomic.write_json(temporary / runs.RECORD, record.as_dict())
            draft.gathered.manifest.write(temporary / "images.parquet")
            write_quarantine(temporary / "quarantine.csv", draft.gathered.quarantine)
            atomic.write_json(
                temporary / ARCHITECTURE, {**keras.saving.serialize_keras_object(model), "compile_config": None}
            )
            snapshot.write_snapshot(
                temporary / "snapshots",
                0,
                live_state.read_state(model),
                {
                    **_fixed_records(record),
                    **Progress().as_dict(),
                    "callbacks": {},
                    structure.RECORD: structure.describe(model),
                },
            )
    except OSError as error:
        if runs.is_run(opening.path):
            raise RunError(
                f"another process made a run at {opening.path} at the same moment: run the command again, it says who trains "
                "it, or continues it"
            ) from error
        raise RunError(
            f"no run can be made at {opening.path} ({error.strerror or error}): make room, or give another place with --out"
        ) from error
    return runs.open_run(opening.path)


def _rooted(config: TrainConfig) -> TrainConfig:
    """Makes source paths absolute, so that a run can continue from another folder."""

    def rooted(paths: Sequence[str] | None) -> tuple[str, ...] | None:
        return tuple(locations.absolute(path) for path in paths) if paths else None

    return config.model_copy(update={name: rooted(getattr(config, name)) for name in ("data", "add", "val")})


def _fixed_records(record: RunRecord) -> dict[str, Any]:
    return {"manifest": record.manifest, "fingerprint": record.fingerprint, "seed": record.seed}


def _continue(run: runs.Run, opening: Opening, reporter: Reporter) -> TrainResult:
    """Rebuilds the model of an interrupted run and continues its training."""
    config, batch_size = opening.config, run.record.amount.batch_size
    backend = config.backend or run.record.backend
    selection.select(backend, config.device, config.devices, batch_size, exact=settings_of(config).exact == "on")
    selection.set_precision(config.precision)
    live_state.seed_everything(run.record.seed)
    before = run.record.not_used  # absent in records of the first versions
    came = 0
    if before is not None and not config.watch:
        came = came_since(config, remembered(run.path), before, reporter)
    if came:
        reporter.say(
            f"{came:,} pictures came since this run began: it goes on with those that it recorded. They join in the next one: "
            f"kresume train --from {shlex.quote(str(run.path))} --add FOLDER (or now, with --watch)"
        )
    model = rebuild_model(run, config)
    return _carry_on(run, model, opening, reporter, continued=True)


def rebuild_model(run: runs.Run, config: TrainConfig) -> Any:
    """Builds and compiles the model of a run with initial weights; its snapshots fit this model."""
    from kresume.models import build, optimizers
    from kresume.models.losses import from_record
    from kresume.models.own_code import own_code
    from kresume.training import schedules

    record = run.record
    imports = code_of(given(config))
    model = build.from_architecture(
        atomic.read_json(run.path / ARCHITECTURE),
        imports=imports,
        trust=bool(config.trust),
    )
    rate = keras_rate(record.rate, record.iterations)
    optimizer = optimizers.make_optimizer(record.optimizer, rate)
    loss = from_record(record.loss, own_code(None, imports))
    _compile(model, optimizer, loss, record.card, record.amount, config)
    schedules.wind(model.optimizer)
    return model


def _carry_on(run: runs.Run, model: Any, opening: Opening, reporter: Reporter, *, continued: bool) -> TrainResult:
    """Trains from the newest snapshot to the end under the run's lock, and writes the result."""
    from kresume.training.loop.callbacks import StopRequest
    from kresume.training.loop.session import Course

    config = opening.config
    with _locked(run, config, reporter) as lock, StopRequest() as stop, contextlib.ExitStack() as tracing:
        run = runs.open_run(run.path)  # a process that held the lock before may have trained further or finished
        if run.finished:
            raise RunError(
                f"{run.path} was finished by another process meanwhile ({run.status}, step {run.result_step():,}): to go on "
                f"from it, extend it: `kresume train --from {shlex.quote(str(run.path))} --add MORE_IMAGES`"
            )
        if (died := crash.found(run.path)) is not None:
            reporter.warn(died.tell())
            run.event("died in native code", reason=died.reason, trace=died.trace.name)
        tracing.enter_context(crash.traced(run.path))
        course = Course(run, model, config, reporter, lock, stop)
        try:
            if continued:
                course.take_up()
            run.event(
                "continued" if continued else "started",
                fingerprint=fingerprint.fingerprint(),
                step=course.progress.step,
            )
            course.train()
            finished = course.finish()
        except Stopped as stopped:
            _leave(course.run, lock, "stopped", course.progress.step, str(stopped))
            raise Stopped(f"{stopped}; continue with: {_continue_command(run)}", stopped.exit_code) from None
        except OSError as error:
            raise RunError(
                f"{run.path} cannot be written ({error}): what its last snapshot holds is safe; make room or bring the "
                f"disk back, then continue with: {_continue_command(run)}"
            ) from error
        except KresumeError as error:
            _leave(course.run, lock, "failed", course.progress.step, str(error))
            raise
    from kresume.models.plain_keras import feeding_line, takes_rows

    result = finished.record.result
    if result is None:  # `finish` has written it
        raise ValueError(f"{run.path} has no result")
    return TrainResult(
        run=str(run.path),
        status=finished.status,
        step=result.step,
        epochs=course.progress.epoch,
        before=run.record.before,
        after=result.scores,
        failures=tuple(course.failures),
        feed=feeding_line(finished.record.card, rows=takes_rows(course.model), short=True),
    )


def _locked(run: runs.Run, config: TrainConfig, reporter: Reporter) -> Lock:
    """Acquires and returns the run's lock."""
    lock = Lock(run.path, take_over=bool(config.take_over), say=reporter.say)
    try:
        lock.acquire()
    except OSError as error:
        raise RunError(
            f"{run.path} cannot be written ({error.strerror or error}): is it read-only, or its disk full or gone? "
            f"Then continue with: {_continue_command(run)}"
        ) from error
    return lock


def _leave(run: runs.Run, lock: Lock, event: str, step: int, reason: str) -> None:
    """Records why this process ends, if it still holds the lock.

    Ignores a disk that is gone, because its error would hide the reason.
    """
    with contextlib.suppress(OSError, RunError):
        lock.check()  # do not overwrite what another process has written since
        run.update(status="interrupted")
        run.event(event, step=step, reason=reason)


def _continue_command(run: runs.Run) -> str:
    return f"kresume train --out {shlex.quote(str(run.path))}"
