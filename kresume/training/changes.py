"""What comes and goes while a run trains: images that arrive (`--watch`), and files that broke.

    changes = Changes(run, manifest, config, card, spec, reporter, guard=lock.check, on_failure=writer.record_failure)
    changes.recorded(epochs_begun)                      # what a process that continues has to take up
    changes.open(cache)
    changes.before_epoch(3, manifest, poll)             # the scan before the fourth epoch, None where nothing is to be noted

A scan that is on the disk is never made again: see `images/scans.py`.
"""

from __future__ import annotations

import contextlib
import csv
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from kresume import runs
from kresume.checkpoints.state import Card
from kresume.errors import ImagesError
from kresume.images import scans
from kresume.images.cache import Cache
from kresume.images.decode import DecodeSpec
from kresume.images.manifest import Manifest
from kresume.images.pipeline import NONE_LEFT
from kresume.images.reader import PictureReader
from kresume.images.scans import Scan
from kresume.options.table import TrainConfig
from kresume.progress import Reporter
from kresume.training.watch import Watch

BROKE = "file broke"
PART = 256
"""Pictures that are tried at once: they are held in memory."""


class Changes:
    """The scans of a run: those on the disk, and those to come.

    Args:
        run: as it stands on the disk.
        manifest: the images that it began with.
        config: the options that hold.
        card: the classes.
        spec: how pictures are decoded.
        reporter: told what came and went.
        guard: called before a scan is written; raises if the run is no longer ours.
        on_failure: told what could not be written and why.
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
        self._broken = {str(event["sha256"]) for event in run.events(BROKE)}
        self._lock = threading.Lock()
        self._cache: Cache | None = None
        self._watch: Watch | None = None

    def recorded(self, begun: int) -> list[Scan]:
        """The scans on the disk that changed something before one of the first epochs.

        Args:
            begun: how many epochs had begun.
        """
        return [scan for number, scan in self._scans.items() if number <= begun and scan.changes]

    def open(self, cache: Cache | None) -> None:
        """Gets ready to look."""
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
                self._run.record.get("dropped", ()),
            )

    def broke(self, manifest: Manifest, row: int, reason: str, then: str) -> None:
        """Notes a file that can no longer be read. Called from the threads that read.

        Args:
            manifest: the images.
            row: of the file.
            reason: why it cannot be read.
            then: what is done about it, in words.
        """
        sha256 = manifest.sha256s[row].decode()
        with self._lock:
            fresh = sha256 not in self._broken
            self._broken.add(sha256)
        if fresh:
            self._reporter.warn(f"{reason}: {then}")
            with contextlib.suppress(OSError):  # perhaps the very disk that is gone; the warning tells it all the same
                self._run.event(BROKE, sha256=sha256, reason=reason)

    def before_epoch(self, done: int, manifest: Manifest, poll: Callable[[], None]) -> Scan | None:
        """The scan before the next epoch, on the disk.

        Args:
            done: how many epochs are done.
            manifest: the images so far.
            poll: called now and then; may raise to give up, and the scan is made by the next process.

        Returns:
            None where nothing is to be noted, or it could not be.

        Raises:
            ImagesError: no training image is left.
        """
        number = done + 1
        if number in self._scans:
            return self._scans[number]
        if number < max(self._scans, default=0):
            return None  # later scans were made without one before this epoch: they hold
        removed = self._unreadable(manifest)
        if self._watch is None and not removed:
            return None
        scan = scans.make_scan(number, manifest, self._arrived(manifest, poll), removed)
        try:
            self._guard()
            scans.write_scan(self._run.path / scans.FOLDER, scan)
        except OSError as error:
            self._on_failure(f"the images that came before epoch {number}", f"{error}: they are left for later")
            return None
        self._scans[number] = scan
        self._everything = scans.with_added(self._everything, scan)
        self._tell(scan, manifest)
        return scan

    def _arrived(self, manifest: Manifest, poll: Callable[[], None]) -> Any:
        if self._watch is not None:
            try:
                return self._watch.look(manifest, self._everything, poll)
            except (ImagesError, OSError) as error:
                self._reporter.warn(f"new images cannot be looked for now ({error}): again before the next epoch")
        return manifest.table.slice(0, 0)

    def _unreadable(self, manifest: Manifest) -> tuple[str, ...]:
        """The training images among the broken ones that cannot be read now either."""
        with self._lock:
            broken = np.array(sorted(self._broken), "S64")
        rows = np.nonzero(np.isin(manifest.sha256s, broken) & ~manifest.is_val)[0]
        if not len(rows):
            return ()
        reader = PictureReader(manifest, self._spec, self._cache)
        gone: list[int] = []
        for start in range(0, len(rows), PART):
            part = rows[start : start + PART]
            gone += part[sorted(reader.attempt(part)[1])].tolist()
        if len(gone) == len(manifest.train_rows()):
            raise ImagesError(NONE_LEFT)
        with self._lock:
            self._broken -= {manifest.sha256s[row].decode() for row in set(rows.tolist()) - set(gone)}
        return tuple(manifest.sha256s[row].decode() for row in gone)

    def _tell(self, scan: Scan, manifest: Manifest) -> None:
        if not scan.changes:
            return
        validate = scan.added.column("side").to_pylist().count("val")
        parts = []
        if len(scan.added):
            train = len(scan.added) - validate
            parts.append(f"{len(scan.added):,} images arrived, {train:,} to train on from here")
        if validate:
            parts.append(f"{validate:,} to validate from the next generation on")
        if scan.removed:
            first = manifest.found(np.nonzero(manifest.sha256s == scan.removed[0].encode())[0])[0].name
            parts.append(f"{len(scan.removed):,} that can no longer be read leave, the first is {first}")
        self._reporter.say(f"before epoch {scan.epoch}: {', '.join(parts)}")
        with contextlib.suppress(OSError):
            self._run.event(
                "images changed", epoch=scan.epoch, arrived=len(scan.added), validate=validate, left=list(scan.removed)
            )


def _set_aside(run: runs.Run) -> list[str]:
    """Names of the files that the run began without."""
    path = run.path / "quarantine.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]
