"""When snapshots are due, and the thread that writes to the run: snapshots, and the lines of `metrics.jsonl` before them.

    cadence = Cadence.parse("10min")
    writer = RunWriter(run.snapshots, run.metrics, keep=3, guard=lock.check)
    writer.put_line('{"epoch": 1, ...}')
    writer.submit(step, read_state, records)       # copies out of the device, returns; the disk is the thread's business
    writer.join()

Training waits for the copy out of the device only. One set of host buffers is reused for every snapshot; while the disk
is still busy with the last one, the next due snapshot is put off by a step (or waited for, where a number of steps was
asked for), never torn. A disk that does not answer is told of once a minute. The format itself is in
`kresume.checkpoints.snapshot`.
"""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kresume import files
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, RunError, UsageError

DEFAULT_MINUTES = 1.0
STALLED_SECONDS = 60.0

Groups = dict[str, list[np.ndarray]]

_WRITERS: weakref.WeakSet[RunWriter] = weakref.WeakSet()


def wait_for_writers(directory: Path) -> None:
    """Waits until no writer of this process is at work on a folder: one whose training raised may still be."""
    for writer in list(_WRITERS):
        if writer.directory == directory:
            writer.wait()


@dataclass(frozen=True)
class Cadence:
    """How often a snapshot is due: every `count` steps, epochs or minutes."""

    count: float
    unit: Literal["steps", "epochs", "minutes"]

    @classmethod
    def parse(cls, text: str | None) -> Cadence:
        """Reads `200` (steps), `2epochs` or `10min`; None means each minute.

        Raises:
            UsageError: it is none of these, or not above zero.
        """
        if text is None:
            return cls(DEFAULT_MINUTES, "minutes")
        match = re.fullmatch(r"\s*([0-9.]+)\s*(steps?|epochs?|min|minutes?)?\s*", text)
        units: dict[str, Literal["steps", "epochs", "minutes"]] = {"s": "steps", "e": "epochs", "m": "minutes"}
        try:
            count = float(match[1]) if match else 0.0
        except ValueError:
            count = 0.0
        unit = units[(match[2] or "steps")[0]] if match else "steps"
        if count <= 0 or (unit != "minutes" and count != int(count)):
            raise UsageError(
                f"--snapshot-every {text}: give a whole number of steps (200) or epochs (2epochs), or minutes (10min)"
            )
        return cls(count, unit)

    def due(self, *, steps: int, epochs: int, seconds: float, at_epoch_end: bool) -> bool:
        """Whether a snapshot is due, from what was done since the last one."""
        if self.unit == "steps":
            return steps >= self.count
        if self.unit == "epochs":
            return at_epoch_end and epochs >= self.count
        return seconds >= 60 * self.count


class RunWriter:
    """Writes snapshots and metric lines off the training thread, in the order in which they were given.

    Args:
        directory: the folder of the snapshots.
        metrics: the JSON-lines file; None where no lines are written.
        keep: how many of the newest snapshots stay.
        guard: called before each commit; raises if the run is no longer ours.
        on_failure: told what could not be written, in words.
        on_commit: called with a snapshot's records once it is safely on the disk, on the writer's thread.
        on_stall: told when the disk has not answered for `STALLED_SECONDS`, and each such time again.

    Attributes:
        failures: what could not be written and why, in words. The run ends with exit code 5 if there is any.
        committed: the last step that is safely on the disk, or None.
    """

    def __init__(
        self,
        directory: Path,
        metrics: Path | None = None,
        *,
        keep: int,
        guard: Callable[[], None],
        on_failure: Callable[[str], None] = lambda text: None,
        on_stall: Callable[[str], None] = lambda text: None,
        on_commit: Callable[[Mapping[str, Any]], None] = lambda records: None,
        stalled_seconds: float = STALLED_SECONDS,
    ) -> None:
        self.directory = directory
        self.metrics = metrics
        self.keep = keep
        self.guard = guard
        self.on_failure = on_failure
        self.on_stall = on_stall
        self.on_commit = on_commit
        self.stalled_seconds = stalled_seconds
        self.failures: list[str] = []
        self.committed: int | None = None
        self._buffers: Groups | None = None
        self._lines: list[str] = []
        self._pinned_by: dict[int, int | None] = {}
        self._fatal: Exception | None = None
        self._thread: threading.Thread | None = None
        self._job = ""
        self._asked_at = 0.0
        _WRITERS.add(self)

    @property
    def busy(self) -> bool:
        """True while the disk is at work on the last job."""
        return self._thread is not None and self._thread.is_alive()

    def put_line(self, line: str) -> None:
        """Gives a line of the metrics. It is on the disk before any later snapshot, which counts it."""
        self._lines.append(line)
        if not self.busy:
            self._start("a line of the metrics", lambda: None)

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
            step: its number.
            read: copies the live arrays into the buffers it is given and returns them.
            records: what `meta.json` keeps beside the arrays; `records["best"]` pins that step.
            extra: further groups of arrays that are the caller's own copies.
            must: wait for the disk to finish the job before, rather than put this one off.

        Returns:
            False if the disk was still busy and `must` is False: nothing was taken, ask again at the next step.

        Raises:
            RunError: the run was taken over by another process.
            CheckpointError: the state holds a NaN; nothing was committed.
        """
        self._raise_fatal()
        if self.busy:
            self.tell_of_stall()
            if not must:
                return False
            self.wait()
        self._buffers = read(self._buffers)
        groups = {**self._buffers, **extra}
        self._start(f"snapshot of step {step:,}", lambda: self._write(step, groups, dict(records)))
        return True

    def wait(self) -> None:
        """Waits until the disk has everything; what could not be written is not raised."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(min(1.0, self.stalled_seconds))
            self.tell_of_stall()

    def join(self) -> None:
        """Waits until the disk has everything, and raises what the thread could not.

        Raises:
            RunError, CheckpointError: as `submit`.
        """
        self.wait()
        self._raise_fatal()

    def finish(self) -> None:
        """Waits for the disk and writes the lines that it refused before.

        Raises:
            RunError, CheckpointError: as `submit`.
            OSError: it refuses still.
        """
        self.join()
        self._flush_lines()

    def tell_of_stall(self) -> None:
        """Says so when the disk has not answered for long. Cheap: called a few times a second."""
        now = time.monotonic()
        if self.busy and now - self._asked_at >= self.stalled_seconds:
            self._asked_at = now
            self.on_stall(f"{self.directory}: the disk has not answered for {self.stalled_seconds:.0f} s ({self._job})")

    def remember(self, step: int, best: int | None) -> None:
        """Tells the writer of a snapshot that stood before it began, and which best step that one relies on."""
        self._pinned_by[step] = best

    def record_failure(self, what: str, reason: str) -> None:
        """Notes and tells what could not be written."""
        self.failures.append(f"{what}: {reason}")
        self.on_failure(self.failures[-1])

    def _start(self, job: str, work: Callable[[], None]) -> None:
        self._job, self._asked_at = job, time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(job, work), name="kresume-writer")
        self._thread.start()

    def _raise_fatal(self) -> None:
        if self._fatal is not None:
            raise self._fatal

    def _flush_lines(self) -> None:
        while self._lines and self.metrics is not None:
            files.append_line(self.metrics, self._lines[0])
            del self._lines[0]

    def _run(self, job: str, work: Callable[[], None]) -> None:
        try:
            self.guard()
            self._flush_lines()  # a snapshot that counts lines which are not on the disk could not be continued from
            work()
            self._flush_lines()  # those that came while the disk was at work
        except (RunError, CheckpointError) as error:
            self._fatal = error
        except OSError as error:
            # The disk is full, read-only or gone: training goes on, the last good snapshot stands, the user is told. Lines
            # are kept, and tried again with the next job.
            self.record_failure(job, str(error))
        except Exception as error:  # a thread must not die in silence: whoever waits for it gets the error
            self._fatal = error

    def _write(self, step: int, groups: Groups, records: dict[str, Any]) -> None:
        snapshot.write_snapshot(self.directory, step, groups, records)
        self.committed = step
        self.on_commit(records)
        best = records.get("best")
        self._pinned_by[step] = int(best["step"]) if best else None
        self._prune()

    def _prune(self) -> None:
        newest = sorted(self._pinned_by)[-self.keep :]
        # Every snapshot that stays must find the best one that it speaks of, or falling back to it would lose the best.
        pinned = {best for step in newest if (best := self._pinned_by[step]) is not None}
        snapshot.prune_snapshots(self.directory, self.keep, pinned)
        self._pinned_by = {step: best for step, best in self._pinned_by.items() if step in {*newest, *pinned}}
