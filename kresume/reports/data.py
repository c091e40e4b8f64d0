"""Lists images and counts them: `kresume data scan`, and what `check` and `show` begin with.

    scanned = scan(["old/", "new.tar"], reporter)
    write(scanned, "m.parquet")
    print(describe(scanned))

Unchanged files are not read again.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kresume.backend import selection
from kresume.class_names import note_alike
from kresume.errors import ImagesError
from kresume.evaluation.caches import open_cache
from kresume.images.cache import listings_of
from kresume.images.collect import collect, list_sources
from kresume.images.manifest import VAL, Manifest, schema
from kresume.images.merging import Merge, merge
from kresume.images.scans import manifest_of
from kresume.images.sources import Quarantined
from kresume.images.sources.records import check_features
from kresume.reporter import Reporter
from kresume.spelling import counted, in_bytes
from kresume.staging.output import output_file
from kresume.staging.run_at import run_at
from kresume.storage import refusals
from kresume.values.decode_spec import DecodeSpec

COMPARED_SIZE = 64
"""Height and width in pixels at which near-duplicates are compared; the decoded pictures are not kept."""
FIRST = 10
"""How many items of a list are printed; `--json` has all."""


@dataclass(frozen=True)
class Scanned:
    """Scanned images.

    Attributes:
        sources: as the user gave them.
        manifest: one row per image; has splits only where the sources define them, or if it is a run's manifest.
        merge: the result of merging the images into one table; None for a run.
        quarantine: files that cannot be used.
        generation: images of this origin are new; -1 if no images are old.
        notes: notes from listing the sources.
        given: number of distinct images in the sources; None for a run.
        unknown: images per class that the run given as `against` does not have.
    """

    sources: tuple[str, ...]
    manifest: Manifest
    merge: Merge | None = None
    quarantine: tuple[Quarantined, ...] = ()
    generation: int = -1
    notes: tuple[str, ...] = ()
    given: int | None = None
    unknown: Mapping[str, int] = field(default_factory=dict)


def scan(
    paths: Sequence[str],
    reporter: Reporter,
    *,
    val: Sequence[str] = (),
    against: Manifest | None = None,
    ever: Manifest | None = None,
    features: Mapping[str, str] | None = None,
    cache: str | None = None,
    dropped: Collection[str] = frozenset(),
) -> Scanned:
    """Scans sources of images.

    A file that was scanned before and has not changed is not read again.

    Args:
        paths: the sources.
        reporter: shows progress.
        val: further sources, for validation.
        against: a manifest to merge the images with.
        ever: images that its run or an earlier generation recorded.
        features: names of TFRecord features by role.
        cache: where facts about files are remembered: a folder, `"off"` for nowhere, or None for the default folder.
        dropped: SHA-256s of images that the run dropped: their facts are not remembered.

    Raises:
        ImagesError: a source is missing, or none of its files can be used.
        UsageError: `features` are given, and no source has any.
    """
    if "keras" not in sys.modules:
        selection.select(None)
    spec = DecodeSpec(COMPARED_SIZE, COMPARED_SIZE)
    store = open_cache(spec, cache)
    known = against.classes if against is not None else ()
    sources = list_sources(reporter, data=paths, val=val, features=features, memory=listings_of(cache), known=known)
    check_features(features, sources)
    if against is not None:
        sources = sources.named(against.classes)
    collected = collect(sources, spec, store, reporter, recorded=against, doing="reading", pixels=False, unkept=dropped)
    images, validating, quarantine = collected.data, collected.val, collected.quarantine
    had = against.classes if against is not None else ()
    classes = tuple(dict.fromkeys((*had, *(name for listing in sources for name in listing.classes))))
    generation = int(against.origins.max(initial=0)) + 1 if against is not None else 0
    merged = merge(against, None, images, validating, classes=classes, val_split=None, generation=generation, ever=ever)
    if not len(merged.manifest):
        problems = []
        if quarantine or not merged.facts.conflicts:
            first = f", the first is {quarantine[0].path}: {quarantine[0].reason}" if quarantine else ""
            problems.append(f"{counted(len(quarantine), 'file')} cannot be used{first}")
        if merged.facts.conflicts:
            path, label, other = merged.facts.conflicts[0]
            several = counted(len(merged.facts.conflicts), "image", "has", "have")
            problems.append(f"{several} two labels, the first is {path}: {label} and {other}")
        raise ImagesError(f"{', '.join(paths)}: no usable images ({'; '.join(problems)})")
    decided = {
        image.facts.sha256 for each in (images, validating) if each for image in each.images if image.found.split
    }
    decided |= {image.facts.sha256 for image in (validating.images if validating else ())}
    manifest = _without_undecided_splits(merged.manifest, decided, generation)
    counts = {name: int((manifest.labels == index).sum()) for index, name in enumerate(manifest.classes)}
    unknown = {name: count for name, count in counts.items() if count and name not in had}
    return Scanned(
        (*paths, *val),
        manifest,
        merged,
        quarantine,
        generation if against is not None else -1,
        tuple(dict.fromkeys(collected.notes)),
        len({image.facts.sha256 for each in (images, validating) if each for image in each.images}),
        unknown if against is not None else {},
    )


def write(scanned: Scanned, path: str) -> None:
    """Writes scanned images as a manifest, which can be used as a source.

    Raises:
        ImagesError: the file cannot be written.
        RunError: its address cannot be written.
    """
    try:
        with output_file(path) as local:
            scanned.manifest.write(local)
    except OSError as error:
        raise ImagesError(
            f"-o {path} cannot be written ({refusals.reason(error)}): {refusals.way_on(error)} another path"
        ) from error


def _without_undecided_splits(manifest: Manifest, decided: set[str], generation: int) -> Manifest:
    """Clears the split of new images whose source does not define one.

    A run decides it, once.
    """
    import pyarrow as pa

    shas = manifest.sha256s.tolist()
    splits = [
        split if origin < generation or split == VAL or sha.decode() in decided else None
        for split, origin, sha in zip(
            manifest.table.column("side").to_pylist(), manifest.origins.tolist(), shas, strict=True
        )
    ]
    index = manifest.table.column_names.index("side")
    table = manifest.table.set_column(index, schema().field("side"), pa.array(splits, pa.string()))
    return Manifest.from_table(table, manifest.classes)


def open_run(path: str, reporter: Reporter | None = None) -> Scanned | None:
    """Returns the images of a run, None if `path` is not a run."""
    run = run_at(path, reporter)
    if run is None:
        return None
    return Scanned((path,), manifest_of(run.path), generation=run.generation if run.generation else -1)


@dataclass(frozen=True)
class Summary:
    """Counts of scanned images.

    Attributes:
        sources: as the user gave them.
        images: number of distinct images, by content.
        counts: class -> origin (`old`, `new`) -> split (`train`, `val`, `undecided`) -> images.
        imbalance: the largest class over the smallest that has any images.
        sizes: pixels of the shorter and the longer side: smallest, median, largest.
        formats: images by format.
        bytes: total size of the encoded pictures.
        duplicates: files whose content also exists under another path.
        quarantine: files that cannot be used: path and reason.
        notes: further notes for the user.
    """

    sources: tuple[str, ...]
    images: int
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    imbalance: float
    sizes: Mapping[str, tuple[int, int, int]]
    formats: Mapping[str, int]
    bytes: int
    duplicates: int
    quarantine: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            **vars(self),
            "sources": list(self.sources),
            "sizes": {name: list(values) for name, values in self.sizes.items()},
            "quarantine": [{"path": path, "reason": reason} for path, reason in self.quarantine],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        columns = sorted(
            {(origin, split) for by in self.counts.values() for origin, splits in by.items() for split in splits}
        )
        heads = [split if len({o for o, _ in columns}) == 1 else f"{origin} {split}" for origin, split in columns]
        width = max(len("class"), *(len(name) for name in self.counts))
        lines = [
            f"{counted(self.images, 'image')} of {counted(len(self.counts), 'class')} in {', '.join(self.sources)}"
        ]
        lines.append("  ".join([f"{'class':<{width}}", f"{'images':>9}", *(f"{head:>13}" for head in heads)]))
        for name, by in self.counts.items():
            cells = [by.get(origin, {}).get(split, 0) for origin, split in columns]
            lines.append("  ".join([f"{name:<{width}}", f"{sum(cells):>9,}", *(f"{cell:>13,}" for cell in cells)]))
        formats = ", ".join(f"{count:,} {name}" for name, count in self.formats.items())
        lines.append(f"largest class: {self.imbalance:.1f} times the smallest")
        short, long = self.sizes["short"], self.sizes["long"]
        lines.append(
            f"shorter side {short[0]:,} to {short[2]:,} pixels (median {short[1]:,}), longer side {long[0]:,} to {long[2]:,} "
            f"(median {long[1]:,}); {formats}; {in_bytes(self.bytes)}"
        )
        if self.duplicates:
            lines.append(f"{self.duplicates:,} duplicates, counted once")
        lines += first_of("files cannot be used", [f"{path}: {reason}" for path, reason in self.quarantine])
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def first_of(what: str, lines: Sequence[str]) -> list[str]:
    """Returns a heading with the number of lines, and the first of them; nothing if there are none."""
    if not lines:
        return []
    more = [f"  … and {len(lines) - FIRST:,} more (--json lists all)"] if len(lines) > FIRST else []
    return [f"{len(lines):,} {what}:", *(f"  {line}" for line in lines[:FIRST]), *more]


def describe(scanned: Scanned) -> Summary:
    """Counts scanned images by class, origin, split, size and format."""
    manifest = scanned.manifest
    table = manifest.table
    split = np.array([name or "undecided" for name in table.column("side").to_pylist()])
    is_new = manifest.origins >= scanned.generation if scanned.generation >= 0 else np.ones(len(manifest), bool)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for index, name in enumerate(manifest.classes):
        of_class = manifest.labels == index
        by: dict[str, dict[str, int]] = {}
        for origin, chosen in (("old", ~is_new), ("new", is_new)):
            names, numbers = np.unique(split[of_class & chosen], return_counts=True)
            if len(names):
                by[origin] = dict(zip(names.tolist(), numbers.tolist(), strict=True))
        counts[name] = by
    totals = [total for by in counts.values() if (total := sum(sum(splits.values()) for splits in by.values()))]
    extent = np.stack([table.column(name).to_numpy() for name in ("width", "height")])
    sizes = {
        name: (int(values.min()), int(np.median(values)), int(values.max()))
        for name, values in (("short", extent.min(axis=0)), ("long", extent.max(axis=0)))
    }
    kinds, numbers = np.unique(np.array(table.column("format").to_pylist()), return_counts=True)
    lengths = table.column("length").to_numpy()
    facts = scanned.merge.facts if scanned.merge is not None else None
    return Summary(
        sources=scanned.sources,
        images=len(manifest),
        counts=counts,
        imbalance=max(totals) / min(totals),
        sizes=sizes,
        formats=dict(zip(kinds.tolist(), numbers.tolist(), strict=True)),
        bytes=int(np.where(lengths < 0, table.column("bytes").to_numpy(), lengths).sum()),
        duplicates=facts.duplicates if facts else 0,
        quarantine=tuple((row.path, row.reason) for row in scanned.quarantine),
        notes=notes_of(scanned),
    )


def notes_of(scanned: Scanned) -> tuple[str, ...]:
    """Returns the notes on the sources, on the images and on classes that are spelled alike."""
    about_images = scanned.merge.facts.notes if scanned.merge is not None else ()
    return (*scanned.notes, *about_images, *note_alike(scanned.manifest.classes))
