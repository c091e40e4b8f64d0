"""Merges old and new images into one manifest.

    merged = merge(parent.manifest, data=None, add=prepared, val=None, classes=classes, val_split=0.1, generation=2)
    merged.manifest, merged.facts.conflicts, merged.facts.leaks

Duplicates count once; conflicts and leaks are reported. Origins and splits are permanent: an image's origin is the
generation in which it was added, and its split (`train` or `val`) is decided from its content when it is added
(`splits.py`). Adding images or moving folders changes neither. Rows are ordered by (origin, hash), so the same images
are trained in the same order wherever they are stored.

The rows of a parent, perhaps a million, stay in columns; only the images that this run lists become Python objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.images.away import describe_back, returned, rows_beside
from kresume.images.both_sides import Recorded, describe_both, given_for_both
from kresume.images.conflicts import Given, Labels, OnConflict, decide_labels
from kresume.images.manifest import LOCATION, TRAIN, VAL, Manifest, hashes, ordered, schema
from kresume.images.merge_notes import describe_absent, describe_known, describe_unrecorded
from kresume.images.places import current_places
from kresume.images.prepare import Image, Prepared
from kresume.images.sources.found import Found
from kresume.images.splits import Leak, Row, decide_splits

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class MergeFacts:
    """Holds counts and lists of what a merge found.

    Attributes:
        added: number of images that this generation adds.
        known: number of given images, each counted once, that the parent knows already.
        duplicates: number of files whose content was given under another path, too.
        conflicts: files whose content has two labels, as (path, label, other label).
        undecided: those of them whose image is left out.
        unknown: number of images for each label that is not a class.
        notes: messages for the user.
        relabels: images that now have another label and no longer the old one, as (path, old label, label).
        leaks: near-duplicates across the training / validation split, each with its outcome.
        dropped_sha256s: SHA-256s of the images that `drop` removed or kept out.
        both: images given for validation that were also given for training or were trained on, as (path, other path,
            outcome).
        unrecorded: number of images that were given as old ones and that the parent does not have.
        withheld: number of the parent's images that are left out because they have two labels now.
        back: number of training images that the parent does not have and an earlier generation had.
    """

    added: int
    known: int
    duplicates: int
    conflicts: tuple[tuple[str, str, str], ...]
    unknown: dict[str, int]
    notes: tuple[str, ...] = ()
    relabels: tuple[tuple[str, str, str], ...] = ()
    leaks: tuple[Leak, ...] = ()
    dropped_sha256s: frozenset[str] = frozenset()
    both: tuple[tuple[str, str, str], ...] = ()
    undecided: tuple[tuple[str, str, str], ...] = ()
    unrecorded: int = 0
    withheld: int = 0
    back: int = 0

    @property
    def dropped(self) -> int:
        """Counts the distinct images that `drop` removed or kept out."""
        return len(self.dropped_sha256s)


@dataclass(frozen=True)
class Merge:
    """Holds the merged manifest and the facts of the merge.

    Attributes:
        manifest: the images of the run.
        facts: what the merge found.
        away: rows of the images that only earlier generations have; if they come back, they keep their split.
    """

    manifest: Manifest
    facts: MergeFacts
    away: pa.Table


def merge(
    parent: Manifest | None,
    data: Prepared | None,
    add: Prepared | None,
    val: Prepared | None,
    *,
    classes: Sequence[str],
    val_split: float | None,
    generation: int,
    on_conflict: OnConflict = "quarantine",
    drop: Collection[str] = frozenset(),
    held_out: Collection[str] | None = None,
    ever: Manifest | None = None,
    seen: bool = False,
    fills: bool = True,
    told_before: Collection[str] = (),
) -> Merge:
    """Merges remembered, old, new and validation images into one manifest.

    - Without `data` the parent keeps all its images; with `data` only those that were given again.
    - An image that the parent knows keeps its row, origin and split, whatever folder it comes from.
    - Of the others, `data` counts as old (`generation - 1`, 0 in a first training), `add` and `val` count as new.
    - An image that the parent does not know and an earlier generation did (`ever`) keeps its origin and split, too.
    - Split of newcomers: `val` is validation, then `train/` and `val/` folders decide, then the content's hash.
      Near-duplicates share one split (`splits.py`).
    - Equal bytes count once. If an image has another label than recorded, and is no longer at the old path, the new
      label replaces the old one. If it has both labels, or is given with two, that is a conflict: it is left out and
      reported, unless `on_conflict` chooses a label.

    Args:
        parent: the parent's manifest; None for a bare checkpoint or a new model.
        data: the old images, if they were given.
        add: the new images.
        val: images for validation.
        classes: class names in the order of the outputs.
        val_split: the fraction of newcomers to validate on; None for none.
        generation: generation of the new run.
        on_conflict: `"quarantine"` uses neither label, `"old"` keeps the older label, `"new"` uses the newer one.
        drop: SHA-256s of images to forget.
        held_out: keys of the images of `data` that validate, from `--val-like`; the other images of `data` train.
        ever: images that any earlier generation recorded, those of the parent among them or not. One that the parent does
            not have and that is given now keeps its split and origin.
        seen: True if the checkpoint was probably trained on `data`.
        fills: see `decide_splits`.
        told_before: those sources of `add` whose labels are no news, as those of `data`.

    Returns:
        The merged manifest and the facts of the merge.
    """
    given = _flatten(val, data, add, told_before)
    given, dropped = _without(given, drop)
    shas = np.array([image.facts.sha256 for image in given.images], "S64")
    unique, inverse, counts = np.unique(shas, return_inverse=True, return_counts=True)
    rows = _rows_of(parent.sha256s if parent is not None else None, unique)
    tables = _recorded(parent, ever)
    labels = decide_labels(tables, given, inverse, (rows, _rows_of(hashes(tables[1]), unique)), on_conflict)
    left_out = labels.left_out
    by_content, ends = np.argsort(inverse, kind="stable"), np.cumsum(counts)

    def files_of(content: int) -> np.ndarray:
        return by_content[ends[content] - counts[content] : ends[content]]

    newcomers = [
        _row(given, files_of(content), content, labels, generation, held_out, seen)
        for content in range(len(unique))
        if rows[content] < 0 and content not in left_out
    ]
    remembered, forgotten = _remembered(parent, data, given, files_of, rows, labels, drop)
    known_classes = set(classes)
    unknown = Counter(row["label"] for row in newcomers if row["label"] not in known_classes)
    newcomers = [row for row in newcomers if row["label"] in known_classes]
    if remembered is not None:
        remembered, lost = _of_classes(remembered, classes)
        unknown.update(lost)
    beside = rows_beside(ever.table if ever is not None else None, remembered)
    kept = rows_beside(beside, None, drop)
    back, fresh, elsewhere = returned(newcomers, kept)
    splits = decide_splits(fresh, _with(remembered, back), val_split, away=elsewhere, fills=fills)
    notes = [*describe_back(back), *splits.notes]
    joined = [*back, *(row for row in fresh if row["side"] is not None)]
    table = _joined(remembered, joined)
    both = given_for_both(given, inverse, Recorded.of(parent, rows, unique, back), left_out)
    notes += labels.notes(on_conflict)
    notes += describe_both(both)
    if parent is not None:
        notes += describe_known(given, inverse, rows, parent, labels)
        notes += describe_unrecorded(fresh, generation)
    merged = Manifest.from_table(table, tuple(classes))
    notes += describe_absent(merged)
    facts = MergeFacts(
        added=sum(row["origin"] == generation for row in joined),
        known=int((rows >= 0).sum()),
        duplicates=int((np.delete(counts, sorted(left_out)) - 1).sum()),
        conflicts=labels.conflicts,
        unknown=dict(unknown),
        notes=tuple(notes),
        relabels=labels.relabels,
        leaks=splits.leaks,
        dropped_sha256s=frozenset(
            dropped | forgotten | ({*beside.column("sha256").to_pylist()} & {*drop} if drop else set())
        ),
        both=both,
        undecided=labels.undecided,
        withheld=sum(rows[content] >= 0 for content in left_out),
        unrecorded=sum(row["origin"] < generation for row in fresh if row["side"]) if parent is not None else 0,
        back=sum(row["side"] != VAL for row in back),
    )
    return Merge(merged, facts, elsewhere)


def _recorded(parent: Manifest | None, ever: Manifest | None) -> tuple[pa.Table | None, pa.Table]:
    """Returns the parent's rows, and those of the images that only earlier generations have."""
    table = parent.table if parent is not None else None
    return table, rows_beside(ever.table if ever is not None else None, table)


def _flatten(val: Prepared | None, data: Prepared | None, add: Prepared | None, told_before: Collection[str]) -> Given:
    images: list[Image] = []
    roles: list[np.ndarray] = []
    for role, prepared in enumerate((val, data, add)):
        if prepared is not None:
            images += prepared.images
            roles.append(np.full(len(prepared.images), role))
    of = np.concatenate(roles) if roles else np.zeros(0, np.int64)
    old = np.array([image.found.source in told_before for image in images], bool)
    return Given(images, of, (of == Given.ADD) & ~old)


def _without(given: Given, drop: Collection[str]) -> tuple[Given, set[str]]:
    if not drop:
        return given, set()
    kept = [index for index, image in enumerate(given.images) if image.facts.sha256 not in drop]
    dropped = {image.facts.sha256 for image in given.images} & set(drop)
    return Given([given.images[index] for index in kept], given.roles[kept], given.news[kept]), dropped


def _rows_of(sha256s: np.ndarray | None, unique: np.ndarray) -> np.ndarray:
    """Returns the index of the recorded row of each content, -1 for none."""
    if sha256s is None or not len(sha256s) or not len(unique):
        return np.full(len(unique), -1, np.int64)
    order = np.argsort(sha256s, kind="stable")
    rank = np.searchsorted(sha256s, unique, sorter=order)
    row = order[np.minimum(rank, len(order) - 1)]
    return np.where(sha256s[row] == unique, row, -1)


def _row(
    given: Given,
    files: np.ndarray,
    content: int,
    labels: Labels,
    generation: int,
    held_out: Collection[str] | None,
    seen: bool,
) -> Row:
    """Returns the row of a newcomer: its first file, with what any of its files says about its split."""
    found, facts = given.images[files[0]].found, given.images[files[0]].facts
    splits = [_split_of(given.images[file].found, given.roles[file], held_out) for file in files]
    correction = labels.corrections.get(content)
    of_data = [split for split, role in zip(splits, given.roles[files], strict=True) if role == Given.DATA]
    return {
        "sha256": facts.sha256,
        "path": found.path,
        "label": labels.by_content.get(content) or found.label,
        "source": correction.source if correction is not None else found.source,
        "origin": max(generation - 1, 0) if of_data else generation,
        "side": VAL if VAL in splits else splits[0],
        "width": facts.width,
        "height": facts.height,
        "bytes": found.bytes,
        "mtime_ns": found.mtime_ns,
        "format": facts.format,
        # Unused: near-duplicates are found by `thumb`. The file format keeps the column (docs/run-directory.md).
        "phash": facts.phash,
        "offset": found.offset,
        "length": found.length,
        "coding": found.coding,
        "member": found.member,
        "extra": found.extra,
        "thumb": facts.thumb,
        "seen": bool(seen and any(split != VAL for split in of_data)),
        "replaced": correction.replaced if correction is not None else "",
        "stamp": found.stamp,
    }


def _split_of(found: Found, role: int, held_out: Collection[str] | None) -> str | None:
    """Returns the split that a file says; None if it says none."""
    if role == Given.VAL:
        return VAL
    if role == Given.DATA and held_out is not None:
        return VAL if found.key in held_out else TRAIN
    return found.split


def _remembered(
    parent: Manifest | None,
    data: Prepared | None,
    given: Given,
    files_of: Callable[[int], np.ndarray],
    rows: np.ndarray,
    labels: Labels,
    drop: Collection[str],
) -> tuple[pa.Table | None, set[str]]:
    """Returns the parent's rows to keep, and the hashes that `drop` removed.

    Rows of images that were given again get the current place and label.
    """
    if parent is None:
        return None, set()
    import pyarrow as pa

    table = parent.table.select(schema().names)
    keep = np.full(len(parent), data is None)
    known = np.nonzero(rows >= 0)[0]
    keep[rows[known]] = True
    keep[[rows[content] for content in labels.left_out if rows[content] >= 0]] = False
    forgotten = {sha.decode() for sha in parent.sha256s[keep].tolist()} & set(drop) if drop else set()
    if forgotten:
        keep &= ~np.isin(parent.sha256s, np.array(sorted(forgotten), "S64"))
    if len(known):
        # The folder may have moved: keep the record and use the current place.
        index = np.full(len(parent), -1, np.int64)
        index[rows[known]] = np.arange(len(known))
        todays = pa.array(index, mask=index < 0)
        places = current_places(parent, given, known, rows, files_of)
        for name in LOCATION:
            values = [None if found is None else getattr(found, name) for found in places]
            column = pa.array(values, schema().field(name).type)
            table = _replaced(table, name, column.take(todays))
        fresh = [labels.by_content.get(int(content)) for content in known]
        if any(fresh):
            corrections = [labels.corrections.get(int(content)) for content in known]
            columns = {name: [each and getattr(each, name) for each in corrections] for name in ("replaced", "source")}
            for name, values in (columns | {"label": fresh}).items():
                table = _replaced(table, name, pa.array(values, pa.string()).take(todays))
    return (table if keep.all() else table.filter(pa.array(keep))), forgotten


def _replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Returns the table with a column overwritten where `values` is not null."""
    import pyarrow.compute as compute

    index = table.column_names.index(name)
    return table.set_column(index, schema().field(name), compute.coalesce(values, table.column(name)))


def _of_classes(table: pa.Table, classes: Sequence[str]) -> tuple[pa.Table, Counter[str]]:
    """Returns the rows whose label is a class, and the counts of other labels."""
    import pyarrow as pa
    import pyarrow.compute as compute

    known = compute.is_in(table.column("label"), pa.array(list(classes), pa.string()))
    if compute.all(known).as_py() is not False:
        return table, Counter()
    lost = table.filter(compute.invert(known)).column("label").to_pylist()
    return table.filter(known), Counter(lost)


def _joined(remembered: pa.Table | None, newcomers: Iterable[Row]) -> pa.Table:
    """Concatenates remembered rows and newcomers, ordered by (origin, sha256)."""
    return ordered(_with(remembered, sorted(newcomers, key=lambda row: (row["origin"], row["sha256"]))))


def _with(remembered: pa.Table | None, rows: Sequence[Row]) -> pa.Table:
    """Appends rows to those that are remembered."""
    import pyarrow as pa

    table = pa.Table.from_pylist(list(rows), schema=schema())
    return table if remembered is None else pa.concat_tables([remembered.cast(schema()), table])
