"""What came and went while a run trained: one small file per scan, applied to the run's manifest in their order.

    scans = read_scans(run / "images")      # by the number of the epoch that they came before
    manifest = manifest_of(run, 3)          # the images of the third epoch
    manifest = remembered(run)              # every image that the run ever recorded

A scan is a look at the sources before an epoch (`--watch`), or the note that files which broke leave. It is written before the
first image of that epoch is drawn and never made again: whoever continues the run, or extends it, sees what it saw. The file
holds the rows that came, its Parquet metadata the hashes that left and the digest of the manifest that follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kresume.errors import ImagesError
from kresume.images.manifest import Manifest, read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
FOLDER = "images"
MARK = "kresume_scan"


@dataclass(frozen=True)
class Scan:
    """What changed before an epoch.

    Attributes:
        epoch: its number, counted from 1 as people are shown it.
        added: rows of the manifest that came.
        removed: SHA-256s of images that left.
        digest: of the manifest that follows.
    """

    epoch: int
    added: pa.Table
    removed: tuple[str, ...]
    digest: str

    @property
    def changes(self) -> bool:
        """Whether anything came or went."""
        return bool(len(self.added) or self.removed)

    def applied_to(self, manifest: Manifest) -> Manifest:
        """The manifest that follows.

        Raises:
            ImagesError: it is not the one that was recorded: a file was changed, or one before it is missing.
        """
        result = manifest.changed(self.added, self.removed) if self.changes else manifest
        if result.digest() != self.digest:
            raise ImagesError(
                f"the scan before epoch {self.epoch} does not lead to the images that it recorded: restore the run's "
                f"{FOLDER}/ and images.parquet from a copy"
            )
        return result


def make_scan(epoch: int, manifest: Manifest, added: pa.Table, removed: tuple[str, ...]) -> Scan:
    """A scan of what changes `manifest` before an epoch."""
    changed = manifest.changed(added, removed) if len(added) or removed else manifest
    return Scan(epoch, added, removed, changed.digest())


def write_scan(folder: Path, scan: Scan) -> None:
    """Writes `epoch-0003.parquet` for the scan before epoch 3, whole or not at all.

    Raises:
        OSError: the disk refuses; nothing is there.
    """
    path = folder / f"epoch-{scan.epoch:04d}.parquet"
    facts = {"format": FORMAT, "epoch": scan.epoch, "removed": list(scan.removed), "digest": scan.digest}
    try:
        folder.mkdir(exist_ok=True)
        write_table(path, scan.added, MARK, facts)
    except OSError:
        # It may be refused after the file has its name. A scan that nobody trained on must not be found by the next process.
        path.unlink(missing_ok=True)
        raise


def read_scans(folder: Path) -> dict[int, Scan]:
    """Every scan of a run by its epoch, ascending; empty where there is none.

    Raises:
        ImagesError: one cannot be read.
    """
    if not folder.is_dir():
        return {}
    scans = {}
    for path in folder.iterdir():
        if re.fullmatch(r"epoch-\d+\.parquet", path.name):
            table, facts = read_table(path, MARK, FORMAT)
            scans[int(facts["epoch"])] = Scan(int(facts["epoch"]), table, tuple(facts["removed"]), str(facts["digest"]))
    return dict(sorted(scans.items()))


def epochs_begun(records: Mapping[str, Any]) -> int:
    """How many epochs had begun when a snapshot was taken, from what it recorded."""
    return int(records["epoch"]) + (records["phase"] in {"training", "scoring"})


def manifest_of(run: Path, begun: int | None = None) -> Manifest:
    """The images that a run trains on, or scores later, in an epoch.

    Args:
        run: the run's directory.
        begun: how many epochs had begun: scans before later ones do not count. None for the last one that was begun.

    Raises:
        ImagesError: a file of it is missing, damaged, or not the one that was recorded.
    """
    manifest = Manifest.read(run / "images.parquet")
    for number, scan in read_scans(run / FOLDER).items():
        if begun is None or number <= begun:
            manifest = scan.applied_to(manifest)
    return manifest


def remembered(run: Path) -> Manifest:
    """Every image that a run ever recorded, those among them that left: sides and origins hold for good.

    Raises:
        ImagesError: a file of it is missing or damaged.
    """
    manifest = Manifest.read(run / "images.parquet")
    for scan in read_scans(run / FOLDER).values():
        manifest = with_added(manifest, scan)
    return manifest


def with_added(everything: Manifest, scan: Scan) -> Manifest:
    """Everything that was ever recorded, after a scan. What left and came back has one row, with the place where it is now."""
    if not len(scan.added):
        return everything
    return everything.changed(scan.added, scan.added.column("sha256").to_pylist())
