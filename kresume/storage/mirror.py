"""Copies a folder that a training writes to a bucket or a drive, behind the training.

    mirror = Mirror(stage, store, writer, known, guard=lock.check)
    mirror.claim()                     # raises if the place cannot be written
    mirror.start()                     # a thread; training never waits for it
    mirror.finish(600)                 # True once everything is copied

What is there is always a state that the folder once had, or one that continues like it, whenever the copying ends:

- A snapshot is there once its `meta.json` is, which is written last and holds the digest of the arrays. It is removed in
  the reverse order. Arrays of a step are not replaced while a `meta.json` speaks of the old ones.
- `run.json` is read before all other files and written after them: it never speaks of what is not there yet.
- Files are removed after that.
- `mirror.json` names the process that writes, with size and SHA-256 of every file.

`capture` says how the files of one moment are read. A place that refuses is tried again, with growing pauses.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kresume.errors import RunError
from kresume.storage.capture import FIRST_READ, META, REPLACED, SNAPSHOT, Held, capture, files_of, signature
from kresume.storage.stores import Store

MARKER = "mirror.json"
FORMAT = 1
POLL_SECONDS = 1.0
QUIET_SECONDS = 10.0
"""How long changes wait that bring no snapshot and no new status."""
PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before a place that refused is tried again; the last one repeats."""
TELL_AFTER, TELL_AGAIN = 60.0, 600.0


@dataclass
class Known:
    """Holds what is at the place.

    Attributes:
        files: size and SHA-256 of each file that a mirror copied.
        signatures: the local files that they are copies of.
        junk: files that a mirror left unfinished.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    signatures: dict[str, tuple[int, ...]] = field(default_factory=dict)
    junk: set[str] = field(default_factory=set)


def read_marker(store: Store) -> dict[str, Any]:
    """Reads `mirror.json`; empty if there is none, or if it was not written whole."""
    try:
        marker = json.loads(store.read(MARKER))
    except (FileNotFoundError, ValueError):
        return {}
    return marker if isinstance(marker, dict) and isinstance(marker.get("files"), dict) else {}


class Mirror:
    """Copies a folder to a place on a thread.

    Args:
        folder: the stage.
        store: the place.
        writer: the id of this stage, so that it is known later that nobody else wrote.
        known: what is at the place.
        guard: raises RunError if another process has taken the place over.
        on_lost: called once with that error; nothing is copied any more.
        tell: called with a warning while the place refuses, and when it takes files again.
        hold: a folder on the disk of the stage, for links to what is being sent; None makes one beside the stage.
        pauses: replaces `PAUSES`.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        writer: str,
        known: Known,
        *,
        guard: Callable[[], None],
        on_lost: Callable[[Exception], None] = lambda error: None,
        tell: Callable[[str], None] = lambda text: None,
        hold: Path | None = None,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        self.folder = folder
        self.store = store
        self.writer = writer
        self.known = known
        self.guard = guard
        self.on_lost = on_lost
        self.tell = tell
        self.pauses = pauses
        self.trouble = ""
        self.lost = False
        self._hold = hold or folder.parent / f".{folder.name}.hold-{os.getpid()}"
        self._marked: dict[str, dict[str, Any]] | None = None
        self._stopped = False
        self._ending = threading.Event()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._copied_at = time.monotonic()
        self._told_at = 0.0

    def claim(self) -> None:
        """Writes `mirror.json` with this writer.

        Raises:
            OSError: the place cannot be written.
        """
        self._mark()

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="kresume-mirror", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Waits until everything is copied.

        Args:
            seconds: how long a place may refuse.

        Returns:
            True if everything is there; else `trouble` says why not.
        """
        self._ending.set()
        if self._thread is not None:
            self._copied_at = time.monotonic()
            while not self._done.wait(0.2):
                if self.trouble and time.monotonic() - self._copied_at > seconds:
                    break
        shutil.rmtree(self._hold, ignore_errors=True)
        return self._done.is_set() and not self.lost

    def stop(self) -> None:
        """Ends the thread without copying the rest."""
        self._stopped = True
        self._ending.set()

    def copy(self) -> None:
        """Copies everything that changed, in an order that is safe to interrupt.

        Raises:
            OSError: the place refuses; the next call goes on.
            RunError: another process has taken the place over.
        """
        try:
            now = capture(self.folder, self._hold)
            self.guard()
            last = [name for name in FIRST_READ if name in now]
            snapshots = sorted({name.rpartition("/")[0] for name in now if SNAPSHOT.fullmatch(name)})
            inside = {name for name in now for folder in snapshots if name.startswith(f"{folder}/")}
            for name in sorted(set(now) - inside - set(last)):
                self._send(name, now[name])
            for folder in snapshots:
                self._send_snapshot(folder, now)
            gone = [*(set(self.known.files) - set(now)), *self.known.junk]
            for name in last:
                self._send(name, now[name])
            if now:
                self._mark()
            self._remove(gone)
            if not now:
                self.store.remove(MARKER)
        finally:
            shutil.rmtree(self._hold, ignore_errors=True)

    def _changed(self) -> bool:
        """Returns True if something waits to be copied, and is worth a pass by itself or has waited."""
        local: dict[str, tuple[int, ...]] = {}
        for name, path in files_of(self.folder):
            with contextlib.suppress(FileNotFoundError):
                local[name] = signature(path)
        if local == self.known.signatures and not self.known.junk:
            return False
        changed = {
            name for name in {*local, *self.known.signatures} if local.get(name) != self.known.signatures.get(name)
        }
        urgent = any(name in FIRST_READ or name.endswith(f"/{META}") for name in changed)
        return urgent or self._ending.is_set() or time.monotonic() - self._copied_at > QUIET_SECONDS

    def _send(self, name: str, held: Held, facts: dict[str, Any] | None = None) -> None:
        """Sends a file, unless the place has it."""
        if self.known.signatures.get(name) == held.signature:
            return
        facts = facts or held.digest()
        if self.known.files.get(name) != facts:
            if held.data is not None:
                self.store.write(name, held.data)
            else:
                self.store.send(name, held.path)
        self.known.files[name] = facts
        self.known.signatures[name] = held.signature
        self.known.junk.discard(name)
        self._copied_at = time.monotonic()

    def _send_snapshot(self, folder: str, now: Mapping[str, Held]) -> None:
        """Sends a snapshot, its `meta.json` last."""
        names = sorted((name for name in now if name.startswith(f"{folder}/")), key=lambda name: name.endswith(META))
        if all(self.known.signatures.get(name) == now[name].signature for name in names):
            return
        facts = {name: now[name].digest() for name in names}
        replaced = [
            name
            for name in names
            if name in self.known.files and self.known.files[name] != facts[name] and not name.endswith(f"/{META}")
        ]
        if not replaced:
            for index, name in enumerate(names):
                if index == len(names) - 1:
                    self.guard()
                self._send(name, now[name], facts[name])
            return
        # The new snapshot is whole under another name before the old one ends. Readers know that name.
        parent, _, name = folder.rpartition("/")
        other = f"{parent}/{REPLACED}{name}".lstrip("/")
        for name in names:
            target = f"{other}/{name.rpartition('/')[2]}"
            self._send(target, Held(now[name].data, now[name].path, ()), facts[name])
        self.guard()
        self._forget(f"{folder}/{META}")
        for name in names:
            self._send(name, now[name], facts[name])

    def _mark(self) -> None:
        files = dict(sorted(self.known.files.items()))
        if files == self._marked:
            return
        self.guard()
        marker = {"format": FORMAT, "writer": self.writer, "files": files}
        self.store.write(MARKER, (json.dumps(marker, indent=1) + "\n").encode())
        self._marked = files

    def _forget(self, name: str) -> None:
        self.store.remove(name)
        self.known.files.pop(name, None)
        self.known.signatures.pop(name, None)
        self.known.junk.discard(name)

    def _remove(self, names: list[str]) -> None:
        """Removes files, of a snapshot its `meta.json` first."""
        if names:
            self.guard()
        for name in sorted(names, key=lambda name: (not name.endswith(f"/{META}"), name)):
            self._forget(name)

    def _run(self) -> None:
        failed = 0
        failing_since = 0.0
        while not self._stopped:
            ending = self._ending.is_set()
            try:
                if self._changed():
                    self.copy()
                if failed:
                    self._recovered()
                failed = 0
                if ending and not self._changed():
                    self._done.set()
                    return
                self._ending.wait(POLL_SECONDS)
            except RunError as error:
                self.lost, self.trouble = True, str(error)
                self.on_lost(error)
                self._done.set()
                return
            except Exception as error:  # a thread must not end silently: any fault is tried again, and told
                failing_since = failing_since if failed else time.monotonic()
                failed += 1
                self.trouble = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
                self._tell_trouble(failing_since)
                pause = self.pauses[min(failed, len(self.pauses)) - 1]
                if ending:
                    time.sleep(min(pause, 5.0))
                else:
                    self._ending.wait(pause)

    def _tell_trouble(self, since: float) -> None:
        now = time.monotonic()
        if now - since >= TELL_AFTER and (not self._told_at or now - self._told_at >= TELL_AGAIN):
            self._told_at = now
            self.tell(
                f"{self.store.address} has taken nothing for {(now - since) / 60:.0f} min ({self.trouble}): training goes "
                "on, what it writes is on this machine alone, and copying is tried again"
            )

    def _recovered(self) -> None:
        self.trouble = ""
        if self._told_at:
            self.tell(f"{self.store.address} takes files again: everything is copied")
            self._told_at = 0.0
