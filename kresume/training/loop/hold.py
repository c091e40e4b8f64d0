"""Holds a run while this process trains it: lock, signals, crash traces, how the process ended.

with open_session(run, model, config, reporter, continued=True) as session:
session.train()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from kresume import crash, runs
from kresume.backend import fingerprint, hosts
from kresume.errors import KresumeError, NotFinite, RunError, Stopped
from kresume.lock import Lock
from kresume.options.given import to_train
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.storage import refusals
from kresume.training.loop.restoring import restore_newest
from kresume.training.loop.session import Session
from kresume.training.loop.stop import StopRequest


@contextlib.contextmanager
def open_session(
    run: runs.Run,
    model: Any,
    config: TrainConfig,
    reporter: Reporter,
    thaw: Callable[[], None],
    *,
    continued: bool,
    restore: bool = False,
) -> Iterator[Session]:
    """Opens the session of a run under its lock.

    Args:
        run: a run that was just created, or an interrupted one.
        model: adjusted to it.
        config: the options that apply.
        reporter: shown the epochs.
        thaw: lets the layers train that are frozen for the first epochs.
        continued: True for an interrupted run; restores the newest snapshot first.
        restore: True restores it for a new run, too.

    Yields:
        The session.

    Raises:
        Stopped: a signal requested it; a snapshot was written, and the same command continues.
        RunError: another process has the run or has finished it, or its disk cannot be written.
    """
    with _locked(run, config, reporter) as lock, StopRequest() as stop, contextlib.ExitStack() as tracing:
        run = runs.open_run(run.path)  # a process that held the lock before may have trained further or finished
        if run.finished:
            raise RunError(
                f"{run.path} was finished by another process meanwhile ({run.status}, step {run.result_step():,}). To "
                f"continue from it, extend it: `{to_train(from_=str(run.path), add=('MORE_IMAGES',))}`"
            )
        if (died := crash.found(run.path)) is not None:
            reporter.warn(died.tell())
            run.event("died in native code", reason=died.reason, trace=died.trace.name)
        if hosts.this().alone:  # where a peer's death aborts this process, a trace says nothing
            tracing.enter_context(crash.traced(run.path))
        session = Session(run, model, config, reporter, lock, stop, thaw)
        try:
            if continued or restore:
                restore_newest(session, continued=continued)
            run.event(
                "continued" if continued else "started",
                fingerprint=fingerprint.fingerprint(),
                step=session.progress.step,
            )
            yield session
        except Stopped as stopped:
            _leave(session, "stopped", str(stopped))
            raise Stopped(f"{stopped}; continue with: {_continue_command(run)}", stopped.exit_code) from None
        except OSError as error:
            raise RunError(
                f"{run.path} cannot be written ({refusals.reason(error)}): what its last snapshot holds is safe. Make room "
                f"or bring the disk back, then continue with: {_continue_command(run)}"
            ) from error
        except KresumeError as error:
            told = session.explain(error) if isinstance(error, NotFinite) else error
            _leave(session, "failed", str(told))
            raise told from told.__cause__


def _locked(run: runs.Run, config: TrainConfig, reporter: Reporter) -> Lock:
    """Acquires and returns the run's lock."""
    lock = Lock(run.path, take_over=bool(config.take_over), say=reporter.say)
    try:
        lock.acquire()
    except OSError as error:
        raise RunError(
            f"{run.path} cannot be written ({refusals.reason(error)}): is it read-only, or its disk full or gone? "
            f"Then continue with: {_continue_command(run)}"
        ) from error
    return lock


def _leave(session: Session, event: str, reason: str) -> None:
    """Records why this process ends, if it still holds the lock.

    Ignores a disk that is gone, because its error would hide the reason.
    """
    with contextlib.suppress(OSError, RunError):
        session.lock.check()  # do not overwrite what another process has written since
        session.run.update(status="interrupted")
        session.run.event(event, step=session.progress.step, reason=reason)
        session.writer.close("interrupted")


def _continue_command(run: runs.Run) -> str:
    if not hosts.this().alone:
        return "the same command on every host"
    return to_train(out=str(run.path))
