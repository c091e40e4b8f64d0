"""Writes snapshots and the lines of epochs on a thread.

    writer = RunWriter(run.snapshots, [JsonLines(run.metrics)], retention=Retention(3), guard=lock.check)
    writer.put_line({"epoch": 1, ...})
    writer.submit(step, read_state, records)       # copies the state out of the device; the thread writes it
    writer.join()

Training waits only for the copy out of the device. One set of host buffers serves all snapshots. While the disk is busy
with a snapshot, the next one is delayed by a step, or waited for if the cadence is a number of steps; it is never torn.
A disk that does not respond is reported once a minute. `kresume.checkpoints.snapshot` defines the format.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, RunError
from kresume.reports.sinks import Entry, Line, Sink
from kresume.storage import refusals
from kresume.training.snapshot_policy import Retention

STALLED_SECONDS = 60.0

Groups = dict[str, list[np.ndarray]]

_WRITERS: weakref.WeakSet[RunWriter] = weakref.WeakSet()


def _write_all(sink: Sink, entries: deque[Entry]) -> None:
    while entries:
        sink.write(entries[0])
        entries.popleft()


def wait_for_writers(directory: Path) -> None:
    """Waits for this process's writers on a folder; they outlive a training that raised."""
    for writer in list(_WRITERS):
        if writer.directory == directory:
            writer.wait()


class RunWriter:
    """Writes snapshots and metric lines on a thread, in the order in which they were submitted.

    Args:
        directory: the folder of the snapshots.
        sinks: where the lines of epochs go.
        retention: which snapshots to keep.
        guard: called before each commit; raises if this process no longer owns the run.
        on_failure: called with a description of what could not be written.
        on_repeat: called instead while jobs of one kind go on failing, so that a full disk is reported once.
        on_stall: called when the disk has not responded for `STALLED_SECONDS`, and again after each such time.
        on_commit: called on the writer's thread with a snapshot's records once it is on disk.
        stalled_seconds: replaces `STALLED_SECONDS`.

    Attributes:
        failures: what could not be written and why. If there are any, the run ends with exit code 5.
        committed: the last step that is safely on disk, or None.
    """

    def __init__(
        self,
        directory: Path,
        sinks: Sequence[Sink] = (),
        *,
        retention: Retention,
        guard: Callable[[], None],
        on_failure: Callable[[str], None] = lambda text: None,
        on_repeat: Callable[[str], None] = lambda text: None,
        on_stall: Callable[[str], None] = lambda text: None,
        on_commit: Callable[[Mapping[str, Any]], None] = lambda records: None,
        stalled_seconds: float = STALLED_SECONDS,
    ) -> None:
        self.directory = directory
        self.retention = retention
        self.guard = guard
        self.on_failure = on_failure
        self.on_repeat = on_repeat
        self.on_stall = on_stall
        self.on_commit = on_commit
        self.stalled_seconds = stalled_seconds
        self.failures: list[str] = []
        self.committed: int | None = None
        self._buffers: Groups | None = None
        self._entries: list[tuple[Sink, deque[Entry]]] = [(sink, deque()) for sink in sinks]
        self._refused: set[str] = set()
        self._best_of: dict[int, int | None] = {}
        self._fatal: Exception | None = None
        self._thread: threading.Thread | None = None
        self._job = ""
        self._failing: set[str] = set()
        self._asked_at = 0.0
        _WRITERS.add(self)

    @property
    def busy(self) -> bool:
        """Returns True while the disk is busy with the last job."""
        return self._thread is not None and self._thread.is_alive()

    def put_line(self, line: Mapping[str, Any]) -> None:
        """Queues a metric line; it is on disk before any later snapshot, which counts it."""
        self.put(Line(line))
        if not self.busy:
            self._start("a line of the metrics", lambda: None)

    def put(self, entry: Entry) -> None:
        """Queues an entry for the sinks, written with the next line or snapshot."""
        for _, entries in self._entries:
            entries.append(entry)

    def keep(self, lines: int, step: int) -> None:
        """Makes every sink drop what training repeats.

        Args:
            lines: epochs that the snapshot counts.
            step: its step.

        Raises:
            RunError, OSError: a sink that snapshots count has lost lines.
        """
        for sink, _ in self._entries:
            self._try(sink, partial(sink.keep, lines, step))

    def close(self, status: str) -> None:
        """Ends the records of this process in every sink; see `Sink.close`."""
        for sink, _ in self._entries:
            self._try(sink, partial(sink.close, status))

    def _try(self, sink: Sink, work: Callable[[], None]) -> None:
        """Runs work of a sink.

        What goes wrong in a sink that no snapshot counts is recorded once, and training goes on.
        """
        try:
            work()
        except Exception as error:  # of any library that a sink uses
            if sink.counted:
                raise
            if sink.name not in self._refused:
                self._refused.add(sink.name)
                self.record_failure(sink.name, f"{type(error).__name__}: {error}")

    def submit(
        self,
        step: int,
        read: Callable[[Groups | None], Groups],
        records: Mapping[str, Any],
        *,
        extra: Mapping[str, list[np.ndarray]],
        must: bool,
    ) -> bool:
        """Takes a snapshot of the live state.

        Args:
            step: the step of the snapshot.
            read: copies the live arrays into the given buffers and returns them.
            records: further content of `meta.json`; `records["best"]` pins that step.
            extra: further groups of arrays that the caller has copied.
            must: True waits for the disk to finish the previous job; False skips this snapshot instead.

        Returns:
            False if the disk was busy and `must` is False: nothing was taken; try again at the next step.

        Raises:
            RunError: another process has taken over the run.
            NotFinite: the state of an earlier call holds a NaN or an infinity; nothing was committed.
        """
        if self.busy:
            self.tell_of_stall()
            if not must:
                return False
            self.wait()
        self._raise_fatal()  # also what the job found that was waited for: nothing is committed after it
        self._buffers = read(self._buffers)
        groups = {**self._buffers, **extra}
        self._start(f"snapshot of step {step:,}", lambda: self._write(step, groups, dict(records)))
        return True

    def wait(self) -> None:
        """Waits until everything is on disk; does not raise what could not be written."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(min(1.0, self.stalled_seconds))
            self.tell_of_stall()

    def join(self) -> None:
        """Waits until everything is on disk, and raises the thread's error if there was one.

        Raises:
            RunError, CheckpointError: as `submit`.
        """
        self.wait()
        self._raise_fatal()

    def finish(self) -> None:
        """Waits until everything is on disk, and writes the lines that the disk refused before.

        Raises:
            RunError, CheckpointError: as `submit`.
            OSError: the disk still refuses them.
        """
        self.join()
        self._flush_lines()

    def check(self) -> None:
        """Raises what the thread could not tell yet, and reports a disk that has not responded for long."""
        self._raise_fatal()
        self.tell_of_stall()

    def tell_of_stall(self) -> None:
        """Reports a disk that has not responded for long. Cheap: called a few times a second."""
        now = time.monotonic()
        if self.busy and now - self._asked_at >= self.stalled_seconds:
            self._asked_at = now
            self.on_stall(f"{self.directory}: the disk has not answered for {self.stalled_seconds:.0f} s ({self._job})")

    def remember(self, step: int, best: int | None) -> None:
        """Registers an existing snapshot and the best step that it refers to."""
        self._best_of[step] = best

    def record_failure(self, what: str, reason: str, kind: str = "") -> None:
        """Records what could not be written, and reports it.

        A job of a kind whose last one failed, too, is not reported again: a full disk may refuse every step.
        """
        self.failures.append(f"{what}: {reason}")
        (self.on_repeat if kind in self._failing else self.on_failure)(self.failures[-1])
        if kind:
            self._failing.add(kind)

    def _start(self, job: str, work: Callable[[], None]) -> None:
        self._job, self._asked_at = job, time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(job, work), name="kresume-writer")
        self._thread.start()

    def _raise_fatal(self) -> None:
        if self._fatal is not None:
            raise self._fatal

    def _flush_lines(self) -> None:
        for sink, entries in self._entries:
            self._try(sink, partial(_write_all, sink, entries))

    def _run(self, job: str, work: Callable[[], None]) -> None:
        kind = job.partition(" of ")[0]
        try:
            self.guard()
            self._flush_lines()  # a snapshot that counts lines missing on disk could not be continued from
            work()
            self._flush_lines()  # lines that came while the disk was busy
            self._failing.discard(kind)
        except (RunError, CheckpointError) as error:
            self._fatal = self._fatal or error  # the first one says where it began
        except OSError as error:
            # The disk is full, read-only or gone: training continues, the last good snapshot remains, the user is told.
            # Lines are kept and written with the next job.
            self.record_failure(job, refusals.reason(error) if refusals.number_of(error) else str(error), kind)
        except Exception as error:  # a thread must not die silently: the waiting thread raises the error
            self._fatal = self._fatal or error

    def _write(self, step: int, groups: Groups, records: dict[str, Any]) -> None:
        snapshot.write_snapshot(self.directory, step, groups, records)
        self.committed = step
        self.on_commit(records)
        best = records.get("best")
        self._best_of[step] = int(best["step"]) if best else None
        needed = self.retention.needed(self._best_of)
        snapshot.prune_snapshots(self.directory, self.retention.newest, needed)
        kept = {*self.retention.kept(self._best_of), *needed}
        self._best_of = {step: best for step, best in self._best_of.items() if step in kept}


class SilentWriter(RunWriter):
    """Writes nothing: the process that leads a training of several hosts writes for all."""

    def put(self, entry: Entry) -> None:
        """Drops an entry."""

    def submit(
        self,
        step: int,
        read: Callable[[Groups | None], Groups],
        records: Mapping[str, Any],
        *,
        extra: Mapping[str, list[np.ndarray]],
        must: bool,
    ) -> bool:
        """Drops a snapshot, without copying it out of the device."""
        self.committed = step
        return True
