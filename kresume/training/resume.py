"""The story: load the checkpoint, update the data, adjust the parameters, resume, monitor.

    result = train(config, reporter)        # the command line
    run = resume("ckpt/", data=["old/"], add=["new/"], lr=1e-4, epochs=5)      # Python

Read `train` from top to bottom; each line leads to a module. A run is created as one directory that holds everything that was
decided and a snapshot of step 0. From then on a new run and an interrupted one take the same way.
"""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kresume import crash, runs
from kresume.addresses import address_of, is_remote, root
from kresume.backend import live_state, programs, selection
from kresume.errors import GateFailed
from kresume.images.scans import manifest_of, remembered
from kresume.options.given import to_train
from kresume.options.resolve import from_arguments
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import as_argument, counted, option, spelled
from kresume.staging import stage as staging
from kresume.staging.fetch import here
from kresume.staging.stage import Stage
from kresume.storage.stores import DRIVE
from kresume.training.adjust import adjusted, carry_others, grow, rebuild, thaw
from kresume.training.closing import TrainResult
from kresume.training.continuing import check_dropped, check_sources
from kresume.training.create import create_run
from kresume.training.finish import finish
from kresume.training.moved import follow_moves
from kresume.training.plan.decide import decide, list_named, load_checkpoint, update_data
from kresume.training.plan.images import came_since
from kresume.training.plan.teaching import take_teacher
from kresume.training.start import Start, select_backend, start_or_continue
from kresume.training.together import group_of, train_together
from kresume.training.trial import timed


@spelled(as_argument)
def resume(checkpoint: str | os.PathLike[str] | None = None, /, **arguments: Any) -> runs.Run:
    """Extends a checkpoint, or trains a new model without one, and returns the finished run.

    Args:
        checkpoint: same as `--from`: a run, a `.keras` file, a checkpoint directory or prefix; None for a new model.
        **arguments: the options of `kresume train` with underscores, for example `data=["old/"]`, `add=["new/"]`,
            `lr=1e-4`, `epochs=5`; `model` may be a Keras model in memory, which stays as it is; `quiet=True` prints no facts
            and no progress.

    Returns:
        The finished run.

    Raises:
        GateFailed: no epoch met the gates; the run is finished and rejected.
        KresumeError: the run cannot be started or finished; the message says why and what to do.
    """
    quiet = bool(arguments.pop("quiet", False))
    reporter = Reporter(quiet=quiet)
    try:
        result = train(from_arguments(checkpoint, arguments), reporter)
    finally:
        gc.collect()  # frees the cache's open files: a notebook that trains week after week would run out of them
    reporter.say(str(result))
    if result.failed:
        raise GateFailed(f"{'; '.join(result.failed)}: {result.run} is rejected")
    return runs.open_run(Path(result.run).absolute())  # a notebook may change its folder


@selection.policy_kept()
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
    group = group_of(config)
    with staging.opened(None if group else config.out, reporter, take_over=bool(config.take_over)) as stage:
        for named in (config.from_, config.optimizer_from):
            if named is not None:
                here(named, reporter)
        if group is not None:
            return train_together(config, group, reporter, lambda *start: _new(*start)[0], _rebuilt, _remind)
        result = _train(config, reporter, stage)
    return replace(result, failures=(*result.failures, stage.left)) if stage is not None and stage.left else result


def _train(config: TrainConfig, reporter: Reporter, stage: Stage | None) -> TrainResult:
    """Trains in a local folder.

    Args:
        config: the options of this command.
        reporter: prints what was decided, and progress.
        stage: copies the run to a bucket or a drive; None for a run on a disk.
    """
    start = follow_moves(start_or_continue(config), reporter)
    reporter.say(f"run:      {start.path}{_where_it_dies(start.path)}")
    if stage is not None:
        reporter.say(f"stage:    in a folder below {root()}, copied behind the training")
    if start.run is None:
        run, model = _new(start, reporter)
        if stage is not None:
            stage.begin(aside=start.aside)
    else:
        run = start.run
        if stage is not None:
            stage.begin()
        model = _rebuilt(run, start.config, reporter)
        _remind(run, start.config, reporter)

    from kresume.training.loop.hold import open_session  # imports Keras, whose backend is selected now

    let_train = partial(thaw, model, run, start.config)
    with open_session(run, model, start.config, reporter, let_train, continued=start.run is not None) as session:
        session.train()
        return finish(session)


def _new(start: Start, reporter: Reporter) -> tuple[runs.Run, Any]:
    """Decides a new run and creates it; returns it with its model, adjusted."""
    sources = list_named(start, reporter, writes=True)
    loaded = load_checkpoint(start, sources, reporter)
    data = update_data(start, loaded, sources, reporter, writes=True)
    draft = decide(start, loaded, data, reporter)
    reporter.say(str(draft.plan).partition("\n")[2])
    teacher = take_teacher(draft)
    draft = grow(draft, reporter)
    with reporter.waiting("preparing the model"):
        model, held = adjusted(draft, start.config)
    carry_others(model, draft.loaded.parent, reporter)
    draft = timed(draft, model, teacher, start.config, reporter)
    with reporter.waiting(f"creating {start.path}"):
        run = create_run(start, draft, held, teacher)
    for quarantined in data.gathered.quarantine:
        reporter.say(f"quarantined: {quarantined.path}: {quarantined.reason}")
    return run, model


def _rebuilt(run: runs.Run, config: TrainConfig, reporter: Reporter) -> Any:
    """Returns the model of an interrupted run, adjusted as it was."""
    if config.drop:
        check_dropped(config.drop, remembered(run.path), str(run.path))
    check_sources(config, run, manifest_of(run.path))
    backend, batch_size = config.backend or run.record.backend, run.record.amount.batch_size
    select_backend(config, backend, batch_size, reporter)
    programs.use(run.path, crashed=crash.left(run.path))
    selection.set_precision(config.precision)
    live_state.seed_everything(run.record.seed)
    with reporter.waiting("building the model"):
        return rebuild(run, config)


def _remind(run: runs.Run, config: TrainConfig, reporter: Reporter) -> None:
    """Says which images came since an interrupted run began, which it will not see."""
    before = run.record.not_used  # absent in records of the first versions
    came = 0
    if before is not None and not config.watch:
        came = came_since(config, remembered(run.path), before, reporter)
    if came:
        reporter.say(
            f"{counted(came, 'new picture', 'was', 'were')} found since this run began: it continues with the "
            f"images that it recorded. To train "
            f"on the new ones, extend it: {to_train(from_=str(run.path), add=('FOLDER',))} (or now, with "
            f"{option('watch', True)})"
        )


def _where_it_dies(path: Path) -> str:
    """Returns a warning if the run is on Colab's own disk, which dies with the session."""
    colab = "COLAB_RELEASE_TAG" in os.environ
    address = address_of(path)
    if not colab or is_remote(address) or str(Path(address).resolve()).startswith(DRIVE):
        return ""
    return (
        f"\nwarning: this disk dies with the Colab session; put {option('out')} on a mounted drive (/content/drive/...)"
    )
