"""Records the images added and removed while a run trained, one file per scan.

    scans = read_scans(run / "images")      # by the number of the epoch that follows
    manifest = manifest_of(run, 3)          # the images of the third epoch
    manifest = remembered(run)              # every image that the run ever recorded

A scan reads the sources before an epoch (`--watch`), or records that broken files are removed. It is written before the
first image of that epoch is drawn and never repeated, so a process that continues or extends the run sees the same
images. Scans are applied to the run's manifest in order. The file holds the added rows; its Parquet metadata hold the
hashes of removed images and the digest of the resulting manifest.
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
    """Holds the changes before an epoch.

    Attributes:
        epoch: number of the epoch, counted from 1 as it is shown to users.
        added: added rows of the manifest.
        removed: SHA-256s of removed images.
        digest: digest of the resulting manifest.
    """

    epoch: int
    added: pa.Table
    removed: tuple[str, ...]
    digest: str

    @property
    def changes(self) -> bool:
        """Returns True if any image was added or removed."""
        return bool(len(self.added) or self.removed)

    def applied_to(self, manifest: Manifest) -> Manifest:
        """Returns the manifest after this scan.

        Raises:
            ImagesError: if it is not the recorded one: a file was changed, or an earlier one is missing.
        """
        result = manifest.changed(self.added, self.removed) if self.changes else manifest
        if result.digest() != self.digest:
            raise ImagesError(
                f"the scan before epoch {self.epoch} does not result in the images that it recorded: restore the run's "
                f"{FOLDER}/ and images.parquet from a copy"
            )
        return result


def make_scan(epoch: int, manifest: Manifest, added: pa.Table, removed: tuple[str, ...]) -> Scan:
    """Creates the scan that changes `manifest` before an epoch."""
    changed = manifest.changed(added, removed) if len(added) or removed else manifest
    return Scan(epoch, added, removed, changed.digest())


def write_scan(folder: Path, scan: Scan) -> None:
    """Writes `epoch-0003.parquet` for the scan before epoch 3, atomically.

    Raises:
        OSError: if writing fails; then the file does not exist.
    """
    try:
        replace_scan(folder, scan)
    except OSError:
        # Writing may fail after the file has its name. The next process must not find a scan that was not trained on.
        _path(folder, scan).unlink(missing_ok=True)
        raise


def replace_scan(folder: Path, scan: Scan) -> None:
    """Writes a scan atomically; if that fails, the one of the same epoch stays."""
    facts = {"format": FORMAT, "epoch": scan.epoch, "removed": list(scan.removed), "digest": scan.digest}
    write_table(_path(folder, scan), scan.added, MARK, facts)


def _path(folder: Path, scan: Scan) -> Path:
    return folder / f"epoch-{scan.epoch:04d}.parquet"


def read_scans(folder: Path) -> dict[int, Scan]:
    """Reads every scan of a run, by epoch, ascending; empty if there are none.

    Raises:
        ImagesError: if a scan cannot be read.
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
    """Returns how many epochs had begun when a snapshot was taken, from its records."""
    return int(records["epoch"]) + (records["phase"] in {"training", "scoring"})


def manifest_of(run: Path, begun: int | None = None) -> Manifest:
    """Reads the images that a run trains on, or scores, in an epoch.

    Args:
        run: the run's directory.
        begun: number of epochs that have begun; scans before later epochs are ignored. None applies all scans.

    Returns:
        The manifest of that epoch.

    Raises:
        ImagesError: if a file is missing, damaged, or not the recorded one.
    """
    manifest = Manifest.read(run / "images.parquet")
    for number, scan in read_scans(run / FOLDER).items():
        if begun is None or number <= begun:
            manifest = scan.applied_to(manifest)
    return manifest


def remembered(run: Path) -> Manifest:
    """Reads every image that a run ever recorded, including removed ones.

    They are needed because splits and origins are permanent.

    Raises:
        ImagesError: if a file is missing or damaged.
    """
    manifest = Manifest.read(run / "images.parquet")
    for scan in read_scans(run / FOLDER).values():
        manifest = with_added(manifest, scan)
    return manifest


def with_added(everything: Manifest, scan: Scan) -> Manifest:
    """Adds the rows of a scan to all images that were ever recorded.

    An image that was removed and added again has one row, with its current location.
    """
    if not len(scan.added):
        return everything
    return everything.changed(scan.added, scan.added.column("sha256").to_pylist())
