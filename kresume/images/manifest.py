"""Reads and writes the manifest: a run's table of images.

    manifest = Manifest.read(run / "images.parquet")
    manifest.train_rows(), manifest.labels, manifest.digest()

There is one row per image, with label, origin, split and content hash. Origins and splits are permanent: an image's
origin is the generation in which it was added, and its split (`train` or `val`) is decided from its content when it is
added. Adding images or moving folders changes neither. Rows are ordered by (origin, hash), so the same images are
trained in the same order wherever they are stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.errors import ImagesError
from kresume.images.sources.found import Facts, Found, Known, key_of
from kresume.storage import atomic
from kresume.storage.damage import interpreting, reason

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
SEAL = "seal"
"""Key of the digest among the facts of a table."""
TRAIN, VAL = "train", "val"
LOCATION = ("path", "bytes", "mtime_ns", "stamp", "offset", "length", "coding", "member")
"""The columns of an image's location. They are updated when its folder moves."""


@dataclass(frozen=True)
class Manifest:
    """Holds one row per image, as columns of equal length, and the class names.

    Attributes:
        classes: class names in the order of the model's outputs.
        table: all columns as they are stored in the file.
        sha256s: `(n,) S64`, SHA-256 of the content in hexadecimal.
        labels: `(n,) int32`, indices into `classes`.
        origins: `(n,) int32`, the generation in which each image was added.
        is_val: `(n,) bool`, True for validation images.
        seen: `(n,) bool`, True if the first checkpoint was probably trained on the image, whatever its split is now.
    """

    classes: tuple[str, ...]
    table: pa.Table
    sha256s: np.ndarray
    labels: np.ndarray
    origins: np.ndarray
    is_val: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def per_class(self, generation: int) -> dict[str, dict[str, int]]:
        """Counts the images of each class: old and new ones, and those that train and that validate.

        Args:
            generation: images with a lower origin are old.
        """
        masks = {"old": self.origins < generation, "new": self.origins >= generation}
        masks |= {"train": ~self.is_val, "validation": self.is_val}
        counts = {name: np.bincount(self.labels[mask], minlength=len(self.classes)) for name, mask in masks.items()}
        return {
            each: {name: int(count[index]) for name, count in counts.items()} for index, each in enumerate(self.classes)
        }

    def train_rows(self) -> np.ndarray:
        """Returns the indices of the training rows, ascending."""
        return np.nonzero(~self.is_val)[0]

    def val_rows(self) -> np.ndarray:
        """Returns the indices of the validation rows, ascending."""
        return np.nonzero(self.is_val)[0]

    def digest(self) -> str:
        """Returns the SHA-256 of everything that determines training.

        It covers hashes, labels, origins, splits and classes, in order, but no paths.
        """
        hasher = hashlib.sha256(json.dumps([FORMAT, *self.classes]).encode())
        for column in (self.sha256s, self.labels, self.origins.astype("<i4"), self.is_val):
            hasher.update(np.ascontiguousarray(column).view(np.uint8).data)
        return hasher.hexdigest()

    def paths(self, rows: np.ndarray) -> list[str]:
        """Returns the paths of the files that hold these images."""
        paths: list[str] = self.table.column("path").take(rows).to_pylist()
        return paths

    def found(self, rows: np.ndarray) -> list[Found]:
        """Returns these rows as listed images."""
        names = [
            "path",
            "label",
            "source",
            "bytes",
            "mtime_ns",
            "side",
            "offset",
            "length",
            "coding",
            "member",
            "extra",
            "stamp",
        ]
        columns = self.table.select(names).take(rows).to_pydict()
        return [Found(*row) for row in zip(*columns.values(), strict=True)]

    def known_files(self, listed: Sequence[Found]) -> Known:
        """Returns recorded facts of listed images, so that unchanged files are not read again."""
        import pyarrow as pa
        import pyarrow.compute as compute

        asked = pa.array(list({found.path for found in listed}), pa.string())
        rows = self.table.filter(compute.is_in(self.table.column("path"), asked))
        names = [
            "path",
            "offset",
            "length",
            "bytes",
            "mtime_ns",
            "stamp",
            "sha256",
            "width",
            "height",
            "format",
            "phash",
            "thumb",
        ]
        return {
            key_of(path, offset, length): ((size, time, stamp), Facts(*facts))
            for path, offset, length, size, time, stamp, *facts in zip(
                *rows.select(names).to_pydict().values(), strict=True
            )
        }

    def with_origins(self, origins: np.ndarray) -> Manifest:
        """Returns the same rows with other origins."""
        import pyarrow as pa

        index = self.table.column_names.index("origin")
        table = self.table.set_column(index, "origin", pa.array(origins.astype(np.int32)))
        return Manifest(
            self.classes, table, self.sha256s, self.labels, origins.astype(np.int32), self.is_val, self.seen
        )

    def changed(self, added: pa.Table, removed: Collection[str]) -> Manifest:
        """Returns a manifest with rows added and the rows of these SHA-256s removed."""
        import pyarrow as pa
        import pyarrow.compute as compute

        table = self.table.select(schema().names)
        added = completed(added)
        if removed:
            gone = compute.is_in(table.column("sha256"), pa.array(sorted(removed), pa.string()))
            table = table.filter(compute.invert(gone))
        table = pa.concat_tables([table.cast(schema()), added.select(schema().names).cast(schema())])
        return Manifest.from_table(ordered(table), self.classes)

    def write(self, path: Path) -> None:
        """Writes the manifest as Parquet, atomically."""
        write_table(path, self.table, "kresume_manifest", {"format": FORMAT, "classes": list(self.classes)})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads a manifest that `write` wrote.

        Raises:
            ImagesError: if the file is missing, damaged or not a manifest.
        """
        table, described = read_table(path, "kresume_manifest", FORMAT)
        with interpreting(f"the manifest {path}", ImagesError):
            return cls.from_table(table, tuple(described["classes"]))

    @classmethod
    def from_table(cls, table: pa.Table, classes: tuple[str, ...]) -> Manifest:
        """Builds a manifest from a table; adds columns that earlier versions did not write."""
        import pyarrow as pa
        import pyarrow.compute as compute

        table = completed(table)
        indices = compute.index_in(table.column("label"), pa.array(list(classes), pa.string()))
        if indices.null_count:  # as a whole number it would be the index of another class, or of none
            raise ImagesError(f"the manifest has {indices.null_count:,} rows whose label is none of its classes")
        return cls(
            classes,
            table,
            hashes(table),
            indices.to_numpy().astype(np.int32),
            table.column("origin").to_numpy().astype(np.int32),
            compute.fill_null(compute.equal(table.column("side"), VAL), False).to_numpy().astype(bool),
            table.column("seen").to_numpy().astype(bool),
        )


def completed(table: pa.Table) -> pa.Table:
    """Adds the columns that an earlier version did not write."""
    import pyarrow as pa

    for field in schema():
        if field.name not in table.column_names:
            table = table.append_column(field, pa.repeat(pa.scalar(DEFAULTS[field.name], field.type), len(table)))
    return table


def ordered(table: pa.Table) -> pa.Table:
    """Sorts rows by (origin, sha256)."""
    import pyarrow as pa

    origins, shas = table.column("origin").to_numpy(), hashes(table)
    in_order = (origins[1:] > origins[:-1]) | ((origins[1:] == origins[:-1]) & (shas[1:] >= shas[:-1]))
    return table if in_order.all() else table.take(pa.array(np.lexsort((shas, origins))))


def write_table(path: Path, table: pa.Table, mark: str, facts: Mapping[str, Any]) -> None:
    """Writes rows and facts about them as Parquet, atomically."""
    import pyarrow.parquet as parquet

    with atomic.new_file(path) as temporary:
        sealed = {**facts, SEAL: _digest(facts, table)}
        marked = table.replace_schema_metadata({mark.encode(): json.dumps(sealed).encode()})
        parquet.write_table(marked, temporary, compression="zstd", write_page_checksum=True)


def _digest(facts: Mapping[str, Any], table: pa.Table) -> str:
    """Returns the SHA-256 of everything in the file that no page's checksum covers."""
    columns = [[field.name, *_kind(field.type)] for field in table.schema]
    return hashlib.sha256(json.dumps([facts, columns, len(table)], sort_keys=True).encode()).hexdigest()


def _kind(type_: pa.DataType) -> list[Any]:
    """Returns a type without what Parquet changes: dictionaries, and the name of a list's elements."""
    import pyarrow.types as types

    if types.is_dictionary(type_):
        return _kind(type_.value_type)
    if types.is_fixed_size_list(type_):
        return [type_.list_size, *_kind(type_.value_type)]
    if types.is_list(type_) or types.is_large_list(type_):
        return ["list", *_kind(type_.value_type)]
    return [str(type_).removeprefix("large_")]


def read_table(path: Path, mark: str, newest: int, what: str = "manifest") -> tuple[pa.Table, dict[str, Any]]:
    """Reads rows and facts that `write_table` wrote.

    Args:
        path: path of the file.
        mark: metadata key of the facts.
        newest: the latest supported value of `facts["format"]`.
        what: what the file is, for messages.

    Returns:
        `(rows, facts)`.

    Raises:
        ImagesError: if the file is missing, damaged, of another kind, or written by a later version.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        # One column at a time: all at once would hold their compressed pages in memory beside the table.
        table = parquet.read_table(
            path, use_threads=False, pre_buffer=False, memory_map=True, page_checksum_verification=True
        )
        table.validate(full=True)
    except (OSError, UnicodeError, pa.ArrowException) as error:
        why = reason(error)
        raise ImagesError(f"the {what} {path} cannot be read ({why}): restore it from a copy of the run") from error
    facts = (table.schema.metadata or {}).get(mark.encode())
    if facts is None:
        raise ImagesError(f"{path} is not a {what} of kresume: expected the key {mark} in its Parquet metadata")
    with interpreting(f"the {what} {path}", ImagesError):
        described: dict[str, Any] = json.loads(facts)
        digest = described.pop(SEAL, None)  # earlier versions did not write it
        changed = digest is not None and digest != _digest(described, table)
        later = described["format"] > newest
    if changed:
        raise ImagesError(f"the {what} {path} does not match its digest: restore it from a copy of the run")
    if later:
        raise ImagesError(f"{path} was written by a later version of kresume: upgrade with `pip install -U kresume`")
    return table, described


def hashes(table: pa.Table) -> np.ndarray:
    """Returns the column `sha256` as `(n,) S64`, without a Python object per row."""
    return fixed_bytes(table.column("sha256"), 64).view("S64").reshape(-1)


def fixed_bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Returns a column of strings or bytes of one length as `(n, width) uint8`.

    The result is a view if the column has a single chunk.

    Raises:
        ImagesError: if a value has another length.
    """
    parts = []
    for chunk in column.chunks:
        if not len(chunk):
            continue
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        if chunk.null_count or (np.diff(offsets) != width).any():
            raise ImagesError(
                f"a manifest has values that are not {width} bytes long: restore it from a copy of the run"
            )
        data = np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        parts.append(data.reshape(-1, width))
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros((0, width), np.uint8)


DEFAULTS: dict[str, Any] = {
    "offset": 0,
    "length": -1,
    "coding": "",
    "member": "",
    "extra": "",
    "thumb": b"",
    "seen": False,
    "replaced": "",
    "stamp": 0,
}
"""Values of columns that an earlier version did not write."""


def schema() -> pa.Schema:
    """Returns the schema of the file."""
    import pyarrow as pa

    return pa.schema(
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
            ("offset", pa.int64()),
            ("length", pa.int64()),
            ("coding", pa.string()),
            ("member", pa.string()),
            ("extra", pa.string()),
            ("thumb", pa.binary()),
            ("seen", pa.bool_()),
            ("replaced", pa.string()),
            ("stamp", pa.int64()),
        ]
    )
