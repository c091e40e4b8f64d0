"""Applies changes of the images during a run: arriving images (`--watch`) and unreadable files.

    changes = Changes(run, manifest, config, card, spec, reporter, guard=lock.check, on_failure=writer.record_failure)
    changes.recorded(epochs_begun)                      # the scans that a continued process must apply
    changes.open(cache)
    changes.before_epoch(3, manifest, poll)             # the scan before the fourth epoch, None if nothing changed

A scan on disk is never made again: see `images/scans.py`.
"""

from __future__ import annotations

import contextlib
import csv
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from kresume import runs
from kresume.backend import hosts
from kresume.errors import ImagesError
from kresume.images import scans
from kresume.images.away import read_away
from kresume.images.cache import Cache
from kresume.images.manifest import Manifest
from kresume.images.pipeline import NONE_LEFT
from kresume.images.reader import PictureReader
from kresume.images.scans import Scan
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import counted
from kresume.training.loop.watch import Watch
from kresume.values.card import Card
from kresume.values.decode_spec import DecodeSpec

PART = 256
"""The number of images decoded at once: they are held in memory."""


class Changes:
    """The scans of a run: recorded ones and future ones.

    Args:
        run: the run on disk.
        manifest: the images at the start of the run.
        config: the options of the run.
        card: the model card, for the classes.
        spec: how images are decoded.
        reporter: prints which images came and went.
        guard: called before a scan is written; raises if this process no longer owns the run.
        on_failure: called with what could not be written and why.
    """

    def __init__(
        self,
        run: runs.Run,
        manifest: Manifest,
        config: TrainConfig,
        card: Card,
        spec: DecodeSpec,
        reporter: Reporter,
        *,
        guard: Callable[[], None],
        on_failure: Callable[[str, str], None],
    ) -> None:
        self._run = run
        self._config = config
        self._card = card
        self._spec = spec
        self._reporter = reporter
        self._guard = guard
        self._on_failure = on_failure
        self._scans = scans.read_scans(run.path / scans.FOLDER)
        self._everything = manifest
        for scan in self._scans.values():
            self._everything = scans.with_added(self._everything, scan)
        self._broken = {str(event["sha256"]) for event in run.events(runs.BROKE)}
        self._lock = threading.Lock()
        self._cache: Cache | None = None
        self._watch: Watch | None = None
        self._waiting = run.waiting()

    def recorded(self, begun: int) -> list[Scan]:
        """Returns the recorded scans that changed images before one of the epochs begun.

        Args:
            begun: how many epochs had begun.
        """
        return [scan for number, scan in self._scans.items() if number <= begun and scan.changes]

    def open(self, cache: Cache | None) -> None:
        """Prepares the first scan: opens the watch, if there is one."""
        self._cache = cache
        if self._config.watch:
            self._watch = Watch(
                self._config,
                self._card.classes,
                self._spec,
                cache,
                self._run.generation,
                self._reporter,
                _set_aside(self._run),
                self._run.record.dropped,
                read_away(self._run.path, self._run.record.away),
            )

    def broke(self, manifest: Manifest, row: int, reason: str, then: str) -> None:
        """Records a file that can no longer be read. Called from reader threads.

        Args:
            manifest: the images.
            row: the file's row in the manifest.
            reason: why it cannot be read.
            then: the consequence, in words.
        """
        sha256 = manifest.sha256s[row].decode()
        with self._lock:
            fresh = sha256 not in self._broken
            self._broken.add(sha256)
        if fresh:
            self._reporter.warn(f"{reason}: {then}")
            with contextlib.suppress(OSError):  # perhaps the same lost disk; the warning was printed anyway
                self._run.event(runs.BROKE, sha256=sha256, reason=reason)

    def before_epoch(self, done: int, manifest: Manifest, poll: Callable[[], None]) -> Scan | None:
        """Returns the scan before the next epoch, written to disk.

        Args:
            done: the number of completed epochs.
            manifest: the current images.
            poll: called now and then; may raise to abort, then the next process makes the scan.

        Returns:
            The scan; None if nothing changed or it could not be written.

        Raises:
            ImagesError: no training image is left.
        """
        number = done + 1
        if number in self._scans:
            return self._scans[number]
        if number < max(self._scans, default=0):
            return None  # later scans exist, made without one here: they stay valid
        self._hear_of_others(manifest)
        removed = tuple(hosts.decided(lambda: self._unreadable(manifest)))
        if self._watch is None and not removed:
            return None
        scan = scans.make_scan(number, manifest, self._arrived(manifest, poll), removed)
        if not hosts.decided(lambda: self._written(scan)):
            return None
        self._scans[number] = scan
        self._everything = scans.with_added(self._everything, scan)
        self._tell(scan, manifest)
        return scan

    def _written(self, scan: Scan) -> bool:
        """Writes a scan; returns False if that failed."""
        try:
            self._guard()
            scans.write_scan(self._run.path / scans.FOLDER, scan)
        except OSError as error:
            self._on_failure(f"the images that arrived before epoch {scan.epoch}", f"{error}: they are added later")
            return False
        return True

    def _hear_of_others(self, manifest: Manifest) -> None:
        """Records the files that other processes could not read."""
        fresh = sorted({each for found in hosts.gathered(sorted(self._broken)) for each in found} - self._broken)
        self._broken.update(fresh)
        if not fresh or not hosts.this().leads:
            return
        places = np.nonzero(np.isin(manifest.sha256s, np.array(fresh, "S64")))[0]
        here, there = self._reasons(manifest, places), []
        for row, path in zip(places.tolist(), manifest.paths(places), strict=True):
            if row not in here:
                there.append(path)
            with contextlib.suppress(OSError):
                reason = here.get(row, f"{path}: another host could not read it")
                self._run.event(runs.BROKE, sha256=manifest.sha256s[row].decode(), reason=reason)
        if there:
            self._reporter.warn(
                f"another host could not read {counted(len(there), 'image')}, the first is {there[0]}, and this one can: all "
                "hosts need the same images"
            )

    def _arrived(self, manifest: Manifest, poll: Callable[[], None]) -> Any:
        if self._watch is not None:
            try:
                arrived = self._watch.look(manifest, self._everything, poll)
                self._record_waiting(self._watch.waiting)
                return arrived
            except (ImagesError, OSError) as error:
                self._reporter.warn(f"cannot look for new images now ({error}): trying again before the next epoch")
        return manifest.table.slice(0, 0)

    def _record_waiting(self, waiting: list[tuple[str, str]]) -> None:
        """Records what waits for the next generation, if that changed: the terminal may be closed later."""
        now = len(waiting), waiting[: runs.MOST_WAITING]
        if now != self._waiting:
            with contextlib.suppress(OSError):
                self._run.event(runs.WAITS, count=now[0], first=now[1])
                self._waiting = now

    def _unreadable(self, manifest: Manifest) -> tuple[str, ...]:
        """Returns the SHA-256s of broken training images that still cannot be read."""
        with self._lock:
            broken = np.array(sorted(self._broken), "S64")
        rows = np.nonzero(np.isin(manifest.sha256s, broken) & ~manifest.is_val)[0]
        if not len(rows):
            return ()
        gone = list(self._reasons(manifest, rows))
        if len(gone) == len(manifest.train_rows()):
            raise ImagesError(NONE_LEFT)
        with self._lock:
            self._broken -= {manifest.sha256s[row].decode() for row in set(rows.tolist()) - set(gone)}
        return tuple(manifest.sha256s[row].decode() for row in gone)

    def _reasons(self, manifest: Manifest, rows: np.ndarray) -> dict[int, str]:
        """Returns those of these images that cannot be read here, and why."""
        reader = PictureReader(manifest, self._spec, self._cache)
        found: dict[int, str] = {}
        for start in range(0, len(rows), PART):
            part = rows[start : start + PART]
            found |= {int(part[index]): reason for index, reason in sorted(reader.attempt(part)[1].items())}
        return found

    def _tell(self, scan: Scan, manifest: Manifest) -> None:
        if not scan.changes:
            return
        validate = scan.added.column("side").to_pylist().count("val")
        parts = []
        if len(scan.added):
            train = len(scan.added) - validate
            parts.append(f"{counted(len(scan.added), 'image')} arrived, {train:,} for training from this epoch on")
        if validate:
            parts.append(f"{validate:,} for validation from the next generation on")
        if scan.removed:
            first = manifest.found(np.nonzero(manifest.sha256s == scan.removed[0].encode())[0])[0].name
            parts.append(f"{len(scan.removed):,} that can no longer be read were removed, the first is {first}")
        self._reporter.say(f"before epoch {scan.epoch}: {', '.join(parts)}")
        with contextlib.suppress(OSError):
            self._run.event(
                "images changed", epoch=scan.epoch, arrived=len(scan.added), validate=validate, left=list(scan.removed)
            )


def _set_aside(run: runs.Run) -> list[str]:
    """Returns the names of the files that the run quarantined at its start."""
    path = run.path / "quarantine.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]
