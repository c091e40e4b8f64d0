"""Locks a run, so that only one process at a time trains it.

    with Lock(run_path) as lock:
        ...
        lock.check()            # before each commit: is the lock still held?

The lock is a file that names host, pid and the process's start time, with a heartbeat. A holder on the same host is
alive if its pid is running with that start time. A holder on another host (whose machine may be gone) is alive if its
heartbeat is younger than `STALE_SECONDS`. Containers, and machines made from one image, may share a host's name: a mark of
the boot and of the processes that can be seen tells them apart.

Of processes that start at the same moment one gets the lock: the file is created by `link`, which fails if there is one,
on a disk and on NFS. Only one process may replace the lock of a dead holder: the one that first creates a claim on that
file's content. `scripts/bench/races.py` tries it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kresume.errors import RunError
from kresume.spelling import option
from kresume.storage import atomic

NAME = "lock.json"
HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 180.0
JOIN_SECONDS = 20.0
TORN_READS, TORN_SECONDS = 5, 0.02
"""How often and how long to wait for a lock file that is written at this moment."""


def this_machine() -> str:
    """Returns a mark of this boot and of this container, in which pids mean the same processes."""
    try:
        mark = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:  # another system has the name of the host alone
        return ""
    return hashlib.sha256(mark.encode()).hexdigest()[:6]


def process_start(pid: int) -> str | None:
    """Returns a process's start time in kernel clock ticks; None without such a process.

    Without `/proc` (macOS, Windows) a living process returns an empty string; then only the pid is compared.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return ""
        return ""
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command's name may contain spaces and parentheses
    return None if fields[0] in "ZX" else fields[19]


def read_holder(run: Path) -> dict[str, Any] | None:
    """Returns the content of the lock file, None if the run is not locked.

    An unreadable file counts as not locked, because its write was interrupted.
    """
    return _read(run)[1]


def _read(run: Path) -> tuple[bytes | None, dict[str, Any] | None]:
    """Returns the bytes and the content of the lock file; None for what is missing or unreadable."""
    try:
        content = (run / NAME).read_bytes()
    except FileNotFoundError:
        return None, None
    return content, parse_holder(content)


def parse_holder(content: bytes) -> dict[str, Any] | None:
    """Returns the content of a lock; None if it is not whole."""
    try:
        holder = json.loads(content.decode())
    except ValueError:
        return None
    kinds: dict[str, Any] = {"host": str, "pid": int, "start": str, "heartbeat": (int, float)}
    whole = isinstance(holder, dict) and all(isinstance(holder.get(name), kind) for name, kind in kinds.items())
    return holder if whole else None


def _create_from(source: Path, path: Path) -> None:
    """Gives a file a second name.

    Raises:
        FileExistsError: the name exists.
    """
    try:
        os.link(source, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without links (exFAT, some network drives)
        with path.open("xb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())


def is_here(holder: Mapping[str, Any], host: str) -> bool:
    """Returns True if a lock was taken where this process can see the one that took it.

    A lock of an earlier version has no mark of its machine.
    """
    mine = this_machine()
    return bool(holder["host"] == host and holder.get("machine", mine) == mine)


def is_alive(holder: Mapping[str, Any], *, host: str, clock: Callable[[], float] = time.time) -> bool:
    """Returns True if the process that a lock file names may still be running."""
    if is_here(holder, host):
        start = process_start(int(holder["pid"]))
        return start is not None and (not start or start == holder["start"])
    return clock() - float(holder["heartbeat"]) < STALE_SECONDS


class Lock:
    """Locks a run for this process, with a heartbeat from a daemon thread.

    Args:
        run: the run's directory.
        take_over: take the lock from a holder on another host without waiting for its heartbeat to expire.
        way_on: what takes the lock over, for messages; empty for the option that does.
        say: called with a text and a countdown before each wait.
    """

    def __init__(
        self,
        run: Path,
        *,
        take_over: bool = False,
        way_on: str = "",
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        host: str | None = None,
    ) -> None:
        self.run = run
        self.take_over = take_over
        self.way_on = way_on or option("take-over", True)
        self.say = say
        self.clock = clock
        self.sleep = sleep
        self.host = host or socket.gethostname()
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, again: bool = False) -> None:
        """Acquires the lock.

        Args:
            again: accept a lock that this process already holds (a notebook cell that is run again).

        Raises:
            RunError: if a living process holds the lock; the message names its host and pid.
        """
        while not self._take(self._wait_for(again=again)):
            self.sleep(TORN_SECONDS)  # another process changed the lock meanwhile: look again
        self._thread = threading.Thread(target=self._beat, name="kresume-lock", daemon=True)
        self._thread.start()

    def _wait_for(self, *, again: bool) -> bytes | None:
        """Waits until the lock may be taken; returns the bytes to replace, None if there are none."""
        for _ in range(TORN_READS):
            content, holder = self._look()
            if content is None or holder is not None:
                break
            self.sleep(TORN_SECONDS)  # it may be written at this moment
        if holder is None or not is_alive(holder, host=self.host, clock=self.clock):
            return content
        who, here = f"pid {holder['pid']} on {holder['host']}", is_here(holder, self.host)
        if again and here and holder["pid"] == os.getpid():
            return content
        if holder["host"] == self.host and not here:
            who += ", in another container or another machine of this name"
        if here:
            raise RunError(f"{self.run} is being trained by {who}: wait for it, or stop that process first")
        if self.take_over:
            return content
        left = min(STALE_SECONDS, STALE_SECONDS - (self.clock() - float(holder["heartbeat"])))
        self.say(
            f"{self.run} is held by {who}, last seen {STALE_SECONDS - left:.0f} s ago: waiting {left:.0f} s for a "
            f"sign of life ({self.way_on} continues at once if that machine is gone)"
        )
        while left > 0:
            self.sleep(min(10.0, left))
            left -= 10.0
            again_content, fresh = self._look()
            if fresh is None:
                return again_content
            if fresh["heartbeat"] != holder["heartbeat"]:
                raise RunError(
                    f"{self.run} is being trained by {who}: wait for it, or stop that process first ({self.way_on} "
                    "takes it over)"
                )
        return content

    def _take(self, old: bytes | None) -> bool:
        """Creates the lock file, or replaces `old`; returns False if another process was first."""
        path = self.run / NAME
        temporary = atomic.temporary_beside(path)
        try:
            temporary.write_text(json.dumps(self._facts(), indent=2), encoding="utf-8")
            atomic.flush_file(temporary)
            if old is None:
                _create_from(temporary, path)
                return True
            with self._claimed(old, temporary) as unchanged:
                if unchanged:
                    os.replace(temporary, path)
                return unchanged
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
            atomic.remove_abandoned(self.run, NAME)

    # The lock of a bucket is elsewhere: `BucketLock` has its own `_look`, `_take`, `_refresh` and `_remove`.

    def holder(self) -> dict[str, Any] | None:
        """Reads who holds the lock now."""
        return self._look()[1]

    def _look(self) -> tuple[bytes | None, dict[str, Any] | None]:
        return _read(self.run)

    def _refresh(self) -> None:
        atomic.write_json(self.run / NAME, self._facts())

    def _remove(self, content: bytes) -> None:
        with contextlib.suppress(FileExistsError), self._claimed(content, self.run / NAME) as unchanged:
            if unchanged:
                (self.run / NAME).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _claimed(self, content: bytes, facts: Path) -> Iterator[bool]:
        """Claims the right to replace the lock file that has this content; yields whether it still has.

        Raises:
            FileExistsError: another process has claimed it. The claim of a dead process is removed.
        """
        claim = self.run / f"{atomic.TEMPORARY_PREFIX}{NAME}-{hashlib.sha256(content).hexdigest()[:8]}"
        try:
            _create_from(facts, claim)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                other = parse_holder(claim.read_bytes())
                torn = other is None and time.time() - claim.stat().st_mtime > STALE_SECONDS
                if torn or (other is not None and not is_alive(other, host=self.host, clock=self.clock)):
                    claim.unlink()
            raise
        try:
            yield _read(self.run)[0] == content
        finally:
            claim.unlink(missing_ok=True)

    @property
    def held(self) -> bool:
        """Returns True from `acquire` until `release`."""
        return self._thread is not None

    def check(self) -> None:
        """Checks that this process still holds the lock.

        Raises:
            RunError: if another process has taken the run over; nothing more may be written to it.
        """
        holder = self.holder()
        if holder is None or holder.get("token") != self.token:
            who = f"pid {holder['pid']} on {holder['host']}" if holder else "nobody: the lock file is gone"
            raise RunError(f"{self.run} was taken over (it is held by {who}): this process writes nothing more to it")

    def release(self) -> None:
        """Releases the lock, unless another process has taken it over."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)  # it may wait for a disk that is gone
            self._thread = None
        with contextlib.suppress(OSError):  # if the disk is gone, the lock expires with this process or its heartbeat
            content, holder = self._look()
            if content is not None and holder is not None and holder.get("token") == self.token:
                self._remove(content)

    def _facts(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "pid": os.getpid(),
            "start": process_start(os.getpid()) or "",
            "machine": this_machine(),
            "token": self.token,
            "heartbeat": self.clock(),
        }

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.check()
                self._refresh()
            except RunError:
                return  # taken over: the training thread raises at its next commit
            except OSError:
                continue  # the disk may be gone only briefly: retry at the next beat

    def __enter__(self) -> Lock:
        if not self.held:
            self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
