"""Opens the stage of a run or a folder of backups that is in a bucket or on a slow drive.

    with opened("gs://bucket/runs/1-signs", reporter) as stage:      # locked, and fetched
        ...                                                           # a run is made or continued in stage.folder
        stage.begin()                                                 # from now on it is copied behind
        ...
    stage.left                                                        # what could not be copied, in words; mostly empty

For any other path nothing happens. A stage whose process died may hold more than was copied. It is used as it is if
nobody else has written to the place since; otherwise the place is fetched.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

from kresume.addresses import is_remote, normal, root, stage_of
from kresume.errors import RunError
from kresume.lock import NAME as LOCK
from kresume.lock import Lock
from kresume.reporter import Reporter
from kresume.runs import RECORD
from kresume.spelling import option
from kresume.staging.bucket_lock import PATTERN, lock_of
from kresume.staging.fetch import fetch, is_ahead, note_of, open_here, set_aside, told, writer_of
from kresume.storage import atomic, capture, mirror
from kresume.storage.mirror import Known, Mirror
from kresume.storage.stores import Store, free_address, is_slow_drive, store_of

PATIENCE_SECONDS = 600.0
"""How long the end of a training waits for a place that refuses."""
SHORT_PATIENCE_SECONDS = 20.0
"""The same after an error or a signal: the machine may end soon."""


def is_staged(path: str | None) -> bool:
    """Returns True if runs at this path are worked on in a stage."""
    return path is not None and (is_remote(path) or is_slow_drive(path))


class Stage:
    """Is a folder that is copied to an address.

    Args:
        address: with a scheme, or a path on a drive.
        reporter: told of trouble.

    Attributes:
        folder: the local folder.
        left: what could not be copied, in words; empty if all was.
    """

    def __init__(self, address: str, reporter: Reporter) -> None:
        self.address = normal(address)
        self.folder = stage_of(self.address)
        self.left = ""
        self._reporter = reporter
        self._store: Store = store_of(self.address)
        self._lock: Lock | None = None
        self._known = Known()
        self._mirror: Mirror | None = None
        self._writer = ""
        self._ahead = False

    def open(
        self, *, take_over: bool = False, way_on: str | None = None, again: bool = False, run: bool = True
    ) -> None:
        """Locks the place and makes the stage equal to it.

        Args:
            take_over: take the lock from another machine at once.
            way_on: how the lock is taken over, for messages.
            again: accept a lock that this process holds.
            run: a run is expected here, not backups.

        Raises:
            RunError: another process holds it, it cannot be read or written, or it holds something else.
        """
        way_on = way_on or option("take-over", True)
        lock = lock_of(self._store, self.folder, take_over=take_over, way_on=way_on, say=self._reporter.say)
        told(lambda: lock.acquire(again=again), self.address, "locked")
        self._lock = lock
        try:
            told(lambda: self._fill(run=run), self.address, "read")
        except BaseException:
            lock.release()
            raise
        # A lock in the stage is of a process that has none on the place.
        (self.folder / LOCK).unlink(missing_ok=True)
        open_here(self.address, self.folder)

    def _fill(self, *, run: bool) -> None:
        names = {name for name in self._store.names() if not PATTERN.fullmatch(name) and name != LOCK}
        ours = mirror.MARKER in names
        if run and names and not ours and RECORD not in names:
            shown = ", ".join(sorted({name.partition("/")[0] for name in names})[:3])
            raise RunError(
                f"{option('out', self.address)} holds {shown}, which is not a run: give an address with nothing behind it"
            )
        self._writer = writer_of(self.folder)
        if ours and is_ahead(self._store, self.folder) and (not run or (self.folder / RECORD).is_file()):
            self._known, self._ahead = self._compared(names), True
            return
        self._writer = uuid.uuid4().hex
        if not names or (run and RECORD not in names):
            set_aside(self.folder)  # somebody removed it there
            # A process that died while it began a run left files that belong to none.
            self._known = Known(junk=names - {mirror.MARKER})
            return
        self._known = fetch(self._store, self.folder, self._reporter)

    def _compared(self, names: set[str]) -> Known:
        """Returns what is at the place, for a stage that may be ahead of it."""
        files = {name: facts for name, facts in mirror.read_marker(self._store)["files"].items() if name in names}
        stray = {name for name in names if name not in files and capture.SNAPSHOT.fullmatch(name)}
        return Known(files=files, junk=stray)

    def begin(self, *, aside: bool = False) -> None:
        """Starts copying the folder behind the training.

        Args:
            aside: another run is at the place, which is moved to `ADDRESS.before-N` first.

        Raises:
            RunError: the place cannot be written.
        """
        if self._lock is None:
            raise RunError(f"{self.address} is not open")
        if aside:
            told(self._move_aside, self.address, "moved aside")
        self._mirror = Mirror(
            self.folder,
            self._store,
            self._writer,
            self._known,
            guard=self._lock.check,
            on_lost=self._lost,
            tell=self._reporter.warn,
            hold=root() / ".holds" / f"{note_of(self.folder).stem}",
        )
        self._note(whole=False)
        told(self._mirror.claim, self.address, "written")
        self._mirror.start()

    def _note(self, *, whole: bool) -> None:
        """Records beside the stages who has this one, and whether all of it is at its address."""
        atomic.write_json(note_of(self.folder), {"writer": self._writer, "address": self.address, "whole": whole})

    def begin_if_ahead(self) -> None:
        """Starts copying what an earlier process could not, if nothing is copied yet."""
        if self._ahead and self._mirror is None:
            self.begin()

    def _move_aside(self) -> None:
        if self._lock is None:
            return
        aside = free_address(self.address)
        self._lock.release()
        self._store.move(aside)
        self._lock = lock_of(
            self._store, self.folder, take_over=False, way_on=option("take-over", True), say=self._reporter.say
        )
        self._lock.acquire()
        self._known = Known()

    def _lost(self, error: Exception) -> None:
        """Lets the training find out at its next commit that another process has the run."""
        holder: dict[str, Any] | None = None
        with contextlib.suppress(OSError):
            holder = self._lock.holder() if self._lock is not None else None
        with contextlib.suppress(OSError):
            if holder is None:
                (self.folder / LOCK).unlink(missing_ok=True)
            else:
                atomic.write_json(self.folder / LOCK, holder)

    def finish(self, seconds: float | None = None) -> None:
        """Waits until everything is copied; what is missing is in `left`.

        Args:
            seconds: how long the place may refuse; None for `PATIENCE_SECONDS`.
        """
        if self._mirror is None:
            return
        with self._reporter.waiting(f"copying the rest to {self.address}"):
            whole = self._mirror.finish(PATIENCE_SECONDS if seconds is None else seconds)
        if whole:
            self._note(whole=True)
        if self._mirror.lost:
            self.left = ""
        elif not whole:
            self.left = (
                f"the end of {self.address} ({self._mirror.trouble}): it is whole on this machine, and the same command copies "
                "the rest"
            )
        self._mirror = None

    def look(self) -> None:
        """Makes the stage equal to the place, without locking it.

        Raises:
            RunError: it cannot be read.
        """
        told(lambda: self._fill(run=False), self.address, "read")

    def end(self, seconds: float | None = None) -> None:
        """Waits until everything is copied, warns of what is missing, and releases the lock."""
        self.finish(seconds)
        if self.left:
            self._reporter.warn(f"not written: {self.left}")
        self.close()

    def close(self) -> None:
        """Stops copying and releases the lock."""
        if self._mirror is not None:
            self._mirror.stop()
        open_here(self.address, None)
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@contextlib.contextmanager
def opened(path: str | None, reporter: Reporter, *, take_over: bool = False) -> Iterator[Stage | None]:
    """Opens the stage of a path for a training, and copies the rest at the end.

    Args:
        path: where the run is; None or a path on a disk has no stage.
        reporter: told of trouble.
        take_over: take the lock from another machine at once.

    Yields:
        The stage, or None.
    """
    if path is None or not is_staged(path):
        yield None
        return
    stage = Stage(path, reporter)
    with reporter.waiting(f"opening {stage.address}"):
        stage.open(take_over=take_over)
    try:
        try:
            yield stage
        except Exception:
            stage.begin_if_ahead()
            stage.finish(SHORT_PATIENCE_SECONDS)
            if stage.left:
                reporter.warn(f"not written: {stage.left}")
            raise
        stage.finish()
    finally:
        stage.close()
