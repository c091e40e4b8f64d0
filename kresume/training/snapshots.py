"""When snapshots are due, and the thread that writes them.

    cadence = Cadence.parse("10min")
    writer = SnapshotWriter(run.snapshots, keep=3, guard=lock.check)
    writer.submit(step, read_state, records)       # copies out of the device, returns; the disk is the thread's business
    writer.close()

Training waits for the copy out of the device only. One set of host buffers is reused for every snapshot; while the disk
is still busy with the last one, the next due snapshot is put off by a step (or waited for, where a number of steps was
asked for), never torn. The format itself is in
`kresume.checkpoints.snapshot`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, RunError, UsageError

DEFAULT_MINUTES = 1.0

Groups = dict[str, list[np.ndarray]]


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


class SnapshotWriter:
    """Writes snapshots off the training thread.

    Args:
        directory: the run's `snapshots` folder.
        keep: how many of the newest stay.
        guard: called before each commit; raises if the run is no longer ours.
        clock: for tests.

    Attributes:
        failures: what could not be written and why, in words. The run ends with exit code 5 if there is any.
        committed: the last step that is safely on the disk, or None.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        guard: Callable[[], None],
        on_failure: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.directory = directory
        self.keep = keep
        self.guard = guard
        self.on_failure = on_failure
        self.failures: list[str] = []
        self.committed: int | None = None
        self.stalls: list[float] = []
        self._buffers: Groups | None = None
        self._pinned_by: dict[int, int | None] = {}
        self._fatal: Exception | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """True while the disk is at work on the last snapshot."""
        return self._thread is not None and self._thread.is_alive()

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
            must: wait for the disk to finish the snapshot before, rather than put this one off.

        Returns:
            False if the disk was still busy and `must` is False: nothing was taken, ask again at the next step.

        Raises:
            RunError: the run was taken over by another process.
            CheckpointError: the state holds a NaN; nothing was committed.
        """
        self._raise_fatal()
        if self.busy:
            if not must:
                return False
            self.join()
        start = time.perf_counter()
        self._buffers = read(self._buffers)
        groups = {**self._buffers, **extra}
        self._thread = threading.Thread(target=self._write, args=(step, groups, dict(records)), name="kresume-snapshot")
        self._thread.start()
        self.stalls.append(time.perf_counter() - start)
        return True

    def join(self) -> None:
        """Waits until the disk has the last snapshot, and raises what the thread could not.

        Raises:
            RunError, CheckpointError: as `submit`.
        """
        if self._thread is not None:
            self._thread.join()
        self._raise_fatal()

    def remember(self, step: int, best: int | None) -> None:
        """Tells the writer of a snapshot that stood before it began, and which best step that one relies on."""
        self._pinned_by[step] = best

    def record_failure(self, what: str, reason: str) -> None:
        """Notes and tells what could not be written."""
        self.failures.append(f"{what}: {reason}")
        self.on_failure(self.failures[-1])

    def _raise_fatal(self) -> None:
        if self._fatal is not None:
            raise self._fatal

    def _write(self, step: int, groups: Groups, records: dict[str, Any]) -> None:
        try:
            self.guard()
            snapshot.write_snapshot(self.directory, step, groups, records)
            self.committed = step
            best = records.get("best")
            self._pinned_by[step] = int(best["step"]) if best else None
            self._prune()
        except (RunError, CheckpointError) as error:
            self._fatal = error
        except OSError as error:
            # The disk is full, read-only or gone: training goes on, the last good snapshot stands, the user is told.
            self.record_failure(f"snapshot of step {step:,}", str(error))

    def _prune(self) -> None:
        newest = sorted(self._pinned_by)[-self.keep :]
        # Every snapshot that stays must find the best one that it speaks of, or falling back to it would lose the best.
        pinned = {best for step in newest if (best := self._pinned_by[step]) is not None}
        snapshot.prune_snapshots(self.directory, self.keep, pinned)
        self._pinned_by = {step: best for step, best in self._pinned_by.items() if step in {*newest, *pinned}}
