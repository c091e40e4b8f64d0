"""Trains one run by the processes of several hosts.

    group = group_of(config)                    # None for a training by one process
    train_together(config, group, reporter, create, rebuild)

Process 0 leads. By itself it decides everything and creates the run, as one process does, or finds the interrupted one. Then
all processes build the model of the run, restore the same snapshot and train, each with its share of every batch. A process
that follows works on a copy of the run that is thrown away, so that nothing but process 0 ever writes to the run. The result
is process 0's alone; the others wait until it is done, and end with its exit code.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.addresses import is_remote
from kresume.backend import groups, hosts, selection, supervisor
from kresume.errors import Followed, KresumeError, PeerDied, RunError, UsageError
from kresume.images.scans import FOLDER
from kresume.lock import NAME as LOCK
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import option
from kresume.training.adjust import thaw
from kresume.training.alike import check_alike, check_devices
from kresume.training.closing import TrainResult
from kresume.training.create import rooted
from kresume.training.moved import follow_moves
from kresume.training.plan.helping import PREPARE, help_out
from kresume.training.start import Start, continue_run, start_or_continue

RUN = "run"
READ_ONLY = {".parquet", ".safetensors"}
"""Files of a run that no training changes: they may be large, so a copy of the run links to them."""
Create = Callable[[Start, Reporter], runs.Run]
Rebuild = Callable[[runs.Run, TrainConfig, Reporter], Any]
Remind = Callable[[runs.Run, TrainConfig, Reporter], None]


def group_of(config: TrainConfig) -> groups.Group | None:
    """Returns the processes that train together by these options or the environment; None for one process.

    Raises:
        UsageError: the options of several hosts are wrong, or others of this command make no sense with them.
    """
    group = groups.find(config.coordinator, config.num_processes, config.process_id)
    if group is not None:
        _check(config, group)
    return group


def _check(config: TrainConfig, group: groups.Group) -> None:
    where = f"several hosts ({group.found})"
    alone = f"give {option('num-processes', 1)} to train by one process"
    backend = config.backend or os.environ.get("KERAS_BACKEND")
    if backend == "tensorflow":
        asked = option("backend", "tensorflow") if config.backend else "KERAS_BACKEND=tensorflow"
        raise UsageError(
            f"{asked}: {where} train through JAX alone, because Keras's fit fails under TensorFlow's "
            f"MultiWorkerMirroredStrategy: give {option('backend', 'jax')}, or {alone}"
        )
    if config.watch:
        raise UsageError(
            f"{option('watch', True)}: {where} cannot look for new images while they train: extend the run with "
            f"{option('add')} when it is finished, or {alone}"
        )
    if config.out is not None and is_remote(config.out):
        raise UsageError(
            f"{option('out', config.out)}: {where} need a run on a file system that all of them see, not in a bucket: give a "
            f"folder there and copy the finished run, or {alone}"
        )
    held = settings_of(config)
    if group.count and (held.mixup or held.cutmix) and held.batch_size // group.count < 2:
        name = "mixup" if held.mixup else "cutmix"
        raise UsageError(
            f"{option(name)} mixes the images of one process, and {held.batch_size} images for {group.count} processes leave "
            f"one to each: give {option('batch-size', 2 * group.count)} or more"
        )


def train_together(
    config: TrainConfig, group: groups.Group, reporter: Reporter, create: Create, rebuild: Rebuild, remind: Remind
) -> TrainResult:
    """Trains as one of the processes of several hosts.

    Args:
        config: the options of this process's command.
        group: the processes.
        reporter: shows what process 0 does.
        create: decides a new run and creates it.
        rebuild: builds the model of a run.
        remind: says which images came since an interrupted run began.

    Returns:
        The result of the run, in every process.

    Raises:
        PeerDied: one of the others died.
        Followed: process 0 ended without a result.
        KresumeError: as for a training by one process.
    """
    with reporter.waiting(f"waiting for all processes of {group.found}"):
        process = hosts.join(group, config.device)
    supervisor.met()
    try:
        check_alike(config)
        with selection.loading(reporter if process.leads else Reporter(quiet=True)):
            selection.select("jax", config.device)
        check_devices()
    except KresumeError as error:
        hosts.leave({"code": error.exit_code, "text": str(error)})
        raise
    faulthandler.disable()  # the death of another process aborts this one, and a trace of that says nothing
    if process.leads:
        return _lead(config, reporter, create, rebuild, remind)
    return _follow(config, rebuild)


def _lead(config: TrainConfig, reporter: Reporter, create: Create, rebuild: Rebuild, remind: Remind) -> TrainResult:
    """Decides, trains with the others, and tells them how it ended."""
    from jax.errors import JaxRuntimeError

    outcome: dict[str, Any] = {"code": 1, "text": "it ended by an error of its own", "failures": []}
    try:
        with (
            hosts.listening(hosts.asked("signal"), lambda request: os.kill(os.getpid(), int(request["value"]))),
            hosts.listening(hosts.asked("failed"), partial(_failed, reporter)),
        ):
            result = _trained(config, reporter, create, rebuild, remind)
        outcome |= {"code": 0, "epochs": result.epochs, "failures": list(result.failures)}
        return result
    except KresumeError as error:
        outcome |= {"code": error.exit_code, "text": str(error)}
        raise
    except JaxRuntimeError as error:
        outcome |= {"code": PeerDied.exit_code, "text": PeerDied.AGAIN}
        raise PeerDied.seen_by(error) from error
    finally:
        hosts.leave(outcome)


def _trained(config: TrainConfig, reporter: Reporter, create: Create, rebuild: Rebuild, remind: Remind) -> TrainResult:
    from kresume.backend.live_state import bring_home
    from kresume.training.finish import finish
    from kresume.training.loop.hold import open_session

    start = follow_moves(start_or_continue(config), reporter)
    count = hosts.joined().count
    reporter.say(f"run:      {start.path}\nhosts:    {count} processes, this is the one that decides and writes")
    run = start.run or create(start, reporter)
    hosts.send({RUN: str(run.path.resolve()), "host": socket.gethostname()})
    with hosts.together():
        options = _through_jax(run, config)
        if start.run is not None:
            remind(run, options, reporter)
        model = rebuild(run, options, reporter)
        let_train = partial(thaw, model, run, options)
        with open_session(
            run, model, options, reporter, let_train, continued=start.run is not None, restore=True
        ) as session:
            session.train()
            with hosts.by_itself():  # the others wait
                bring_home(model)
                return finish(session)


def _through_jax(run: runs.Run, config: TrainConfig) -> TrainConfig:
    """Returns the options of a run, also of one that began under TensorFlow."""
    return continue_run(run, config).config.model_copy(update={"backend": "jax"})


def _failed(reporter: Reporter, request: dict[str, Any]) -> None:
    """Ends process 0 because another process has failed."""
    text = f"process {request['process']} failed: {request['value']}"
    reporter.warn(text)
    hosts.leave({"code": 1, "text": text})
    hosts.end(1)


def _follow(config: TrainConfig, rebuild: Rebuild) -> TrainResult:
    """Helps to prepare, trains, and ends as process 0 does."""
    scratch = Path(tempfile.mkdtemp(prefix="kresume-follower-"))
    ending = _Ending(scratch)
    try:
        with hosts.listening(hosts.OUTCOME, ending.heard):
            path = _take_part(config, Reporter(quiet=True), rebuild, scratch, ending)
            found = ending.wait()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    hosts.leave()
    if found["code"] not in {0, 3, 5} or "epochs" not in found:
        raise Followed(f"process 0 ended: {found['text']}", int(found["code"]))
    run = runs.open_run(path)
    record, result = run.record, run.record.result
    return TrainResult(
        run=str(run.path),
        status=run.status,
        step=result.step if result is not None else 0,
        epochs=int(found["epochs"]),
        before=record.before,
        after=result.scores if result is not None else {},
        failures=tuple(found["failures"]),
        failed=tuple(record.failed),
    )


def _take_part(config: TrainConfig, reporter: Reporter, rebuild: Rebuild, scratch: Path, ending: _Ending) -> Path:
    """Does what process 0 asks for, until the training is done; returns the path of the run."""
    from jax.errors import JaxRuntimeError

    from kresume.training.loop.hold import open_session
    from kresume.training.loop.restoring import SNAPSHOT

    path = Path()
    try:
        while RUN not in (job := hosts.receive()):
            help_out(job[PREPARE], rooted(config), reporter)
        path = Path(job[RUN])
        if not runs.is_run(path):
            raise RunError(
                f"{path} of {job['host']} is not to be seen from {socket.gethostname()}: several hosts need a run, and images, "
                "on a file system that all of them see, under the same path"
            )
        run = runs.open_run(path)
        options = _through_jax(run, config).model_copy(update={"mlflow": "off", "tensorboard": False})
        with hosts.together():
            model = rebuild(run, options, reporter)
            copy = _copied(run, hosts.announced(SNAPSHOT), scratch / run.path.name)
            let_train = partial(thaw, model, copy, options)
            with open_session(copy, model, options, reporter, let_train, continued=True) as session:
                session.train()
    except PeerDied:
        raise
    except JaxRuntimeError as error:
        raise PeerDied.seen_by(error) from error
    except KresumeError as error:
        if not ending.told.wait(1):  # process 0 may have met the same error
            hosts.ask("failed", str(error))
    except Exception as error:  # of the user's code, or a bug
        hosts.ask("failed", f"{type(error).__name__}: {error}")
        ending.wait()
        hosts.leave()
        raise
    return path


def _copied(run: runs.Run, snapshot: str, to: Path) -> runs.Run:
    """Copies the small files of a run, with links to two snapshots, for a process that follows."""
    (to / "snapshots").mkdir(parents=True)
    for entry in run.path.iterdir():
        if entry.suffix in READ_ONLY:
            (to / entry.name).symlink_to(entry.resolve())
        elif entry.is_file() and entry.name not in {LOCK, "model.keras"}:
            shutil.copyfile(entry, to / entry.name)
    if (run.path / FOLDER).is_dir():
        shutil.copytree(run.path / FOLDER, to / FOLDER)
    for name in {snapshot, "step-00000000"}:
        if (run.snapshots / name).is_dir():
            (to / "snapshots" / name).symlink_to(run.snapshots.resolve() / name, target_is_directory=True)
    return runs.open_run(to)


class _Ending:
    """The end of a process that follows: it comes when process 0 says so, whatever this process waits for.

    Args:
        scratch: removed before the process ends.

    Attributes:
        told: set when process 0 has told its outcome.
    """

    def __init__(self, scratch: Path) -> None:
        self.told = threading.Event()
        self._scratch = scratch
        self._ready = threading.Event()
        self._outcome: dict[str, Any] = {}

    def heard(self, outcome: dict[str, Any]) -> None:
        """Takes the outcome; ends a process whose main thread is still waiting for the others."""
        self._outcome = outcome
        self.told.set()
        if self._ready.wait(3):
            return
        shutil.rmtree(self._scratch, ignore_errors=True)
        hosts.leave()
        sys.stderr.write(f"kresume: process 0 ended: {outcome['text']}\n")
        hosts.end(int(outcome["code"]) or 1)

    def wait(self) -> dict[str, Any]:
        """Waits until process 0 has ended, in the main thread."""
        self._ready.set()
        self.told.wait()
        return self._outcome
