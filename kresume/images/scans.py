"""What came and went while a run trained: one small file per scan, applied to the run's manifest in their order.

    scans = read_scans(run / "images")                  # by the number of the epoch that they came before
    manifest = manifest_of(run, epochs_begun(records))  # the images that a snapshot was trained on

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
    """Writes `epoch-0003.parquet` for the scan before epoch 3, whole or not at all."""
    folder.mkdir(exist_ok=True)
    facts = {"format": FORMAT, "epoch": scan.epoch, "removed": list(scan.removed), "digest": scan.digest}
    write_table(folder / f"epoch-{scan.epoch:04d}.parquet", scan.added, MARK, facts)


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
    """The images of a run as they were in an epoch.

    Args:
        run: the run's directory.
        begun: how many epochs had begun: scans before later ones do not count. None for all that the run has ever seen.

    Raises:
        ImagesError: a file of it is missing, damaged, or not the one that was recorded.
    """
    manifest = Manifest.read(run / "images.parquet")
    for number, scan in read_scans(run / FOLDER).items():
        if begun is None or number <= begun:
            manifest = scan.applied_to(manifest)
    return manifest
