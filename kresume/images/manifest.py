"""The manifest: the table of a run's images, one row each, with label, origin, side and content hash.

    merged = merge(parent.manifest, data=None, add=prepared, val=None, classes=classes, val_split=0.1, generation=2)
    merged.manifest.write(run / "images.parquet")

What is recorded once holds for good: an image's origin is the generation in which it came in, and its side (`train` or
`val`) is decided when it comes in, by its content, so that it never changes when images are added or folders are moved.
The rows are ordered by (origin, hash): the same images give the same order of training wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume import files
from kresume.errors import ImagesError
from kresume.images.prepare import Facts, Image, Prepared
from kresume.images.sources import Found

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class Manifest:
    """Columns of equal length, and the names that the label indices stand for.

    Attributes:
        classes: names of the classes, in the order of the model's outputs.
        table: the other columns as they stand in the file.
        sha256s: `(n,) S64`, the content's SHA-256 in hexadecimal.
        labels: `(n,) int32`, indices into `classes`.
        origins: `(n,) int32`, the generation in which each image came in.
        is_val: `(n,) bool`, True on the validation side.
    """

    classes: tuple[str, ...]
    table: pa.Table
    sha256s: np.ndarray
    labels: np.ndarray
    origins: np.ndarray
    is_val: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def train_rows(self) -> np.ndarray:
        """Rows of the training side, ascending."""
        return np.nonzero(~self.is_val)[0]

    def val_rows(self) -> np.ndarray:
        """Rows of the validation side, ascending."""
        return np.nonzero(self.is_val)[0]

    def digest(self) -> str:
        """SHA-256 of what determines training: hashes, labels, origins, sides and classes, in order; no paths."""
        hasher = hashlib.sha256(json.dumps([FORMAT, *self.classes]).encode())
        for column in (self.sha256s, self.labels, self.origins.astype("<i4"), self.is_val):
            hasher.update(np.ascontiguousarray(column).tobytes())
        return hasher.hexdigest()

    def paths(self, rows: np.ndarray) -> list[str]:
        """Where these images are."""
        paths: list[str] = self.table.column("path").take(rows).to_pylist()
        return paths

    def found(self, rows: np.ndarray) -> list[Found]:
        """These rows as listed files."""
        columns = self.table.select(["path", "label", "source", "bytes", "mtime_ns"]).take(rows).to_pydict()
        return [Found(*row) for row in zip(*columns.values(), strict=True)]

    def known_files(self) -> dict[str, tuple[int, int, Facts]]:
        """Facts by path, with the size and time for which they hold: spares reading unchanged files."""
        names = ["path", "bytes", "mtime_ns", "sha256", "width", "height", "format", "phash"]
        columns = self.table.select(names).to_pydict()
        return {
            path: (size, time, Facts(sha256, width, height, kind, phash))
            for path, size, time, sha256, width, height, kind, phash in zip(*columns.values(), strict=True)
        }

    def with_origins(self, origins: np.ndarray) -> Manifest:
        """The same rows with other origins."""
        import pyarrow as pa

        index = self.table.column_names.index("origin")
        table = self.table.set_column(index, "origin", pa.array(origins.astype(np.int32)))
        return Manifest(self.classes, table, self.sha256s, self.labels, origins.astype(np.int32), self.is_val)

    def write(self, path: Path) -> None:
        """Writes the table as Parquet, whole or not at all."""
        import pyarrow.parquet as parquet

        facts = {b"kresume_manifest": json.dumps({"format": FORMAT, "classes": list(self.classes)}).encode()}
        with files.new_file(path) as temporary:
            parquet.write_table(self.table.replace_schema_metadata(facts), temporary, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads a table that `write` wrote.

        Raises:
            ImagesError: it is missing, or no manifest.
        """
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            table = parquet.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise ImagesError(
                f"the manifest {path} cannot be read ({error}): restore it from a copy of the run"
            ) from error
        facts = (table.schema.metadata or {}).get(b"kresume_manifest")
        if facts is None:
            raise ImagesError(f"{path} is no manifest of kresume: expected its mark in the Parquet metadata")
        described = json.loads(facts)
        if described["format"] > FORMAT:
            raise ImagesError(f"{path} was written by a later kresume: upgrade with `pip install -U kresume`")
        return cls.from_table(table, tuple(described["classes"]))

    @classmethod
    def from_table(cls, table: pa.Table, classes: tuple[str, ...]) -> Manifest:
        """Makes the numpy columns of a table."""
        import pyarrow as pa
        import pyarrow.compute as compute

        indices = compute.index_in(table.column("label"), pa.array(list(classes), pa.string()))
        return cls(
            classes,
            table,
            np.asarray(table.column("sha256").to_numpy(), dtype="S64"),
            indices.to_numpy().astype(np.int32),
            table.column("origin").to_numpy().astype(np.int32),
            compute.equal(table.column("side"), VAL).to_numpy().astype(bool),
        )


@dataclass(frozen=True)
class MergeFacts:
    """What happened when old and new became one table.

    Attributes:
        added: images that came in with this generation.
        known: given images that the parent knew already.
        duplicates: files whose content stands under another path that was given, too.
        conflicts: files whose content stands under two labels, by (path, label, other label).
        unknown: images per label that is none of the classes.
        notes: what a person should know, in words.
    """

    added: int
    known: int
    duplicates: int
    conflicts: tuple[tuple[str, str, str], ...]
    unknown: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Merge:
    """The merged table and what happened."""

    manifest: Manifest
    facts: MergeFacts


@dataclass
class _Rows:
    """Rows under construction, by content hash."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: int = 0
    duplicates: int = 0
    conflicts: list[tuple[str, str, str]] = field(default_factory=list)


def merge(
    parent: Manifest | None,
    data: Prepared | None,
    add: Prepared | None,
    val: Prepared | None,
    *,
    classes: Sequence[str],
    val_split: float | None,
    generation: int,
) -> Merge:
    """Makes one table of remembered, old, new and validation images.

    - The parent's images are remembered as they are; with `data` only those that `data` holds.
    - An image that the parent knows keeps its label's row, origin and side, whatever folder it comes from.
    - Others: `data` counts as old (`generation - 1`, 0 in a first training), `add` and `val` as new.
    - Sides of newcomers: `val` validates, `train/` and `val/` folders say it, else the content's hash decides.
    - The same bytes count once; under two labels neither is used, and both are named.

    Args:
        parent: the parent's table, None for a bare checkpoint or a new model.
        data: the old images, where they were given.
        add: the new images.
        val: images to validate on.
        classes: names of the outputs in their order.
        val_split: the share of newcomers that validates, None for none.
        generation: of the run to be.
    """
    remembered = {row["sha256"]: row for row in parent.table.to_pylist()} if parent is not None else {}
    state = _Rows()
    if parent is not None and data is None:
        state.rows |= remembered
    old = max(generation - 1, 0)
    # `val` comes before `data` and `add`: an image given as both validates, unless it is recorded as training.
    for prepared, origin, side in ((val, generation, VAL), (data, old, None), (add, generation, None)):
        for image in prepared.images if prepared is not None else ():
            _take(state, image, origin, side, remembered)
    conflicting = {sha256 for sha256, row in state.rows.items() if row.get("conflict")}
    rows = [row for sha256, row in state.rows.items() if sha256 not in conflicting]
    known_classes = set(classes)
    unknown = Counter(row["label"] for row in rows if row["label"] not in known_classes)
    rows = [row for row in rows if row["label"] in known_classes]
    notes = _decide_sides(rows, val_split)
    rows.sort(key=lambda row: (row["origin"], row["sha256"]))
    if state.conflicts:
        first = state.conflicts[0]
        notes.append(
            f"{len(conflicting):,} images stand under two labels and are left out, the first is {first[0]} "
            f"({first[1]} and {first[2]})"
        )
    added = sum(row["origin"] == generation and row["sha256"] not in remembered for row in rows)
    facts = MergeFacts(added, state.known, state.duplicates, tuple(state.conflicts), dict(unknown), tuple(notes))
    return Merge(Manifest.from_table(_table(rows), tuple(classes)), facts)


def _take(state: _Rows, image: Image, origin: int, side: str | None, remembered: dict[str, dict[str, Any]]) -> None:
    found, facts = image.found, image.facts
    before = remembered.get(facts.sha256)
    standing = state.rows.get(facts.sha256)
    if before is not None:
        state.known += 1
        if standing is None:
            # The folder may have moved: the record holds, the path is today's.
            state.rows[facts.sha256] = {**before, "path": found.path, "bytes": found.bytes, "mtime_ns": found.mtime_ns}
        if before["label"] != found.label:
            state.conflicts.append((found.path, found.label, before["label"]))
            state.rows[facts.sha256] = {**state.rows[facts.sha256], "conflict": True}
        return
    if standing is not None:
        state.duplicates += 1
        if standing["label"] != found.label:
            state.conflicts.append((found.path, found.label, standing["label"]))
            standing["conflict"] = True
        return
    state.rows[facts.sha256] = {
        "sha256": facts.sha256,
        "path": found.path,
        "label": found.label,
        "source": found.source,
        "origin": origin,
        "side": side or found.split,
        "width": facts.width,
        "height": facts.height,
        "bytes": found.bytes,
        "mtime_ns": found.mtime_ns,
        "format": facts.format,
        "phash": facts.phash,
    }


def _decide_sides(rows: list[dict[str, Any]], val_split: float | None) -> list[str]:
    """Gives every newcomer its side, for good. Returns what a person should know."""
    newcomers = [row for row in rows if row["side"] is None]
    share = val_split or 0.0
    for row in newcomers:
        row["side"] = VAL if int(row["sha256"][:8], 16) < share * 2**32 else TRAIN
    notes = []
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in newcomers:
        groups.setdefault((row["origin"], row["label"]), []).append(row)
    for (_, label), group in sorted(groups.items(), key=lambda item: item[0]):
        sides = {row["side"] for row in group}
        if share and sides == {TRAIN} and len(group) >= 2:
            # A class that the hash left without a validation image gets one: otherwise its score would read 0 of 0.
            min(group, key=lambda row: row["sha256"])["side"] = VAL
        elif share and len(group) == 1:
            group[0]["side"] = TRAIN
            notes.append(
                f"{label} has a single new image: it trains, so {label} has no new validation image (--val PATH)"
            )
        elif share and share < 1 and sides == {VAL}:
            max(group, key=lambda row: row["sha256"])["side"] = TRAIN
    return notes


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    schema = pa.schema(
        [
            ("sha256", pa.string()),
            ("path", pa.string()),
            ("label", pa.string()),
            ("source", pa.string()),
            ("origin", pa.int32()),
            ("side", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("bytes", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("format", pa.string()),
            ("phash", pa.uint64()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)
