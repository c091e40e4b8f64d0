"""Turns sources of images into prepared images, with their quarantine and notes.

    sources = list_sources(reporter, data=["old/"], add=["new.tar"]).named(classes)    # names and sizes only
    collected = collect(sources, spec, cache, reporter, recorded=parent.manifest)      # each file is read once
    collected.add.images, collected.quarantine, collected.notes

Training, evaluation, `image_dataset` and `kresume data` all collect their images here. `merging.merge` then makes one
manifest of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kresume.backend.hosts import ALONE, Process
from kresume.class_names import canonical, join_classes
from kresume.errors import ImagesError
from kresume.images.cache import Cache
from kresume.images.manifest import Manifest
from kresume.images.prepare import Prepared, prepare
from kresume.images.sources import Found, Listing, Quarantined, Source, joined, list_each
from kresume.images.sources.folder_order import assumed_order
from kresume.images.sources.moves import NOTHING, Moves
from kresume.images.sources.names import hidden
from kresume.images.sources.relabelled import relabelled
from kresume.images.sources.top_folders import Listed, settle
from kresume.reporter import Reporter
from kresume.spelling import option
from kresume.storage import locations
from kresume.values.decode_spec import DecodeSpec

MOST_NAMED = 5
"""Numbers of outputs that a note names."""


@dataclass(frozen=True)
class Sources:
    """Listed images by role; None for a role without sources.

    Attributes:
        data: the images, or the old ones if there are new ones too.
        add: the new images.
        val: further images for validation.
        parts: the sources of each role as they were listed first; empty once labels are names of classes.
        renames: new names of classes by old ones, under which images may still be.
    """

    data: Listing | None = None
    add: Listing | None = None
    val: Listing | None = None
    parts: tuple[tuple[Listed, ...], ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Listing]:
        return (listing for listing in (self.data, self.add, self.val) if listing is not None)

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns the sorted names of all class folders."""
        return tuple(sorted({name for listing in self for name in listing.classes}))

    def assumed_order(self, classes: Sequence[str] | None = None) -> tuple[str, ...]:
        """Returns classes, by default those of `data`, in the order to assume for a model that names none."""
        return assumed_order(self.data, classes) if self.data is not None else tuple(sorted(classes or ()))

    @property
    def moved(self) -> frozenset[str]:
        """Returns the folders of `--remap` from which images of lists have moved."""
        return frozenset().union(*(listing.moved for listing in self))

    def knowing(self, classes: Collection[str]) -> Sources:
        """Returns the same sources, where a single top folder may be one of these classes.

        Raises:
            ImagesError: a single top folder has the name of a class, and so have folders in it.
        """
        if not any(each.listing.tops for part in self.parts for each in part):
            return self
        return _joined(self.parts, classes, self.renames)

    def named(self, classes: Sequence[str]) -> Sources:
        """Returns the same images with class names as labels; see `name_numbers`."""
        data, add, val = (
            None if listing is None else _named(listing, classes) for listing in (self.data, self.add, self.val)
        )
        return Sources(data, add, val)


@dataclass(frozen=True)
class Collected:
    """Prepared images by role; None for a role without sources.

    Attributes:
        data: the prepared images of `Sources.data`.
        add: the prepared images of `Sources.add`.
        val: the prepared images of `Sources.val`.
        quarantine: files that cannot be used, each with its reason.
        notes: messages for the user about what was skipped.
    """

    data: Prepared | None
    add: Prepared | None
    val: Prepared | None
    quarantine: tuple[Quarantined, ...]
    notes: tuple[str, ...]


def list_sources(
    reporter: Reporter,
    *,
    data: Sequence[str] | None = None,
    add: Sequence[str] | None = None,
    val: Sequence[str] | None = None,
    features: Mapping[str, str] | None = None,
    memory: Path | None = None,
    writes: bool = True,
    follow_links: bool = True,
    with_classes: bool = True,
    tests: bool = False,
    moves: Moves = NOTHING,
    known: Collection[str] = (),
    renames: Mapping[str, str] | None = None,
) -> Sources:
    """Lists the images of each role; reads names and sizes, no contents.

    Args:
        reporter: shows progress.
        data: paths that the user gave for this role; a role without paths is not listed.
        add: the same for the new images.
        val: the same for the validation images.
        features: see `list_images`.
        memory: see `list_images`.
        writes: False writes nothing to `memory`.
        follow_links: see `list_images`.
        with_classes: see `list_images`.
        tests: see `list_images`.
        moves: see `list_images`.
        known: known names of classes. A single top folder of such a name is a class.
        renames: new names of classes by old ones, under which images may still be.

    Raises:
        ImagesError: a path does not exist, is empty, or holds no class folders.
    """
    asked = Source("", "", features or {}, memory, writes, follow_links, with_classes, tests, moves, frozenset(known))
    roles = (list(data or ()), list(add or ()), list(val or ()))
    parts = tuple(
        tuple(list_each(paths, asked, reporter, validates=number == 2)) if paths else ()
        for number, paths in enumerate(roles)
    )
    return _joined(parts, known, renames or {})


def _joined(parts: tuple[tuple[Listed, ...], ...], known: Collection[str], renames: Mapping[str, str]) -> Sources:
    """Returns the sources of all roles, with top folders that are classes read as such."""
    settled = iter(settle([each for part in parts for each in part], known))
    data, add, val = ([next(settled) for _ in part] for part in parts)
    old, new, held_out = (relabelled(joined(each), renames) if each else None for each in (data, add, val))
    return Sources(old, new, held_out, parts, renames)


def collect(
    sources: Sources,
    spec: DecodeSpec,
    cache: Cache | None,
    reporter: Reporter,
    *,
    recorded: Manifest | None = None,
    doing: str = "preparing",
    pixels: bool = True,
    writes: bool = True,
    unkept: Collection[str] = frozenset(),
) -> Collected:
    """Reads every listed file once, unless its facts are known.

    Args:
        sources: the listed images, with the labels that the manifest will have.
        spec: how to decode them.
        cache: filled with the images that it does not hold yet; None keeps no pixels and no facts.
        reporter: shows a progress bar for each role.
        recorded: a manifest whose images need not be read again if their files are unchanged.
        doing: what the progress bars say.
        pixels: False writes facts beside the cache but no pixels into it.
        writes: False writes nothing at all.
        unkept: SHA-256s of images of which the cache keeps nothing: they were dropped.

    Raises:
        ImagesError: images of a compressed archive do not fit into the cache, or its index is damaged.
    """
    quarantine: list[Quarantined] = []

    def prepared(role: str, listing: Listing | None) -> Prepared | None:
        if listing is None:
            return None
        facts = recorded.known_files(listing.files) if recorded is not None else {}
        done = prepare(
            listing.files,
            spec,
            cache,
            reporter,
            known={**facts, **listing.known},
            label=f"{doing} {role}",
            writes=writes,
            pixels=pixels,
            unkept=unkept,
        )
        quarantine.extend((*listing.quarantine, *done.quarantine))
        return done

    data = prepared("images", sources.data)
    add = prepared("new images", sources.add)
    val = prepared("validation images", sources.val)
    return Collected(data, add, val, tuple(quarantine), tuple(note for listing in sources for note in listing.notes))


def name_numbers(listing: Listing, classes: Sequence[str]) -> tuple[Found, ...]:
    """Replaces labels that are output numbers or other spellings by class names.

    Args:
        listing: images of one role. Those of a TFRecord or WebDataset may have numbers of outputs as labels, beside those of
            other sources with names.
        classes: class names in the order of the outputs.

    Returns:
        The listed images. Labels that match no class are unchanged.

    Raises:
        ImagesError: the labels may be numbers of outputs or names of classes, which would be others.
    """
    numbers = {found.label for found in listing.files if found.numbered}
    names = {found.label for found in listing.files if not found.numbered}
    read = _read_as(numbers, classes, numbered=True)
    spelled = _read_as(names | ({*listing.classes} - numbers), classes, numbered=False)
    if not read and not spelled:
        return listing.files
    return tuple(
        replace(found, label=label, numbered=False)
        if (label := (read if found.numbered else spelled).get(found.label, found.label)) != found.label
        else found
        for found in listing.files
    )


def _read_as(labels: Collection[str], classes: Sequence[str], *, numbered: bool) -> dict[str, str]:
    """Returns the class names that labels mean which are spelled otherwise.

    Raises:
        ImagesError: the labels may be numbers of outputs or names of classes, which would be others.
    """
    unknown = set(labels) - set(classes)
    places = {str(index): name for index, name in enumerate(classes)} if numbered else {}
    moved = [label for label in labels if label in classes and places.get(label, label) != label]
    if moved and not unknown:
        label = sorted(moved)[0]
        raise ImagesError(
            f"the labels {join_classes(sorted(labels, key=int))} are numbers of outputs and names of classes: {label} is the "
            f"name of a class, and the number of the output {places[label]}. Give the images in class folders, or in a list "
            "with names"
        )
    if moved and unknown <= set(places):  # all of them are numbers of outputs
        return {label: places[label] for label in labels if places.get(label, label) != label}
    names = places | {
        canonical(name): name for name in classes if canonical(name) not in classes
    }  # the model's own spelling is kept
    return {label: names.get(label, names.get(canonical(label), label)) for label in unknown}


def check_one_kind(listing: Listing | None) -> None:
    """Raises if nothing says which of the names the numbers of other sources mean.

    Args:
        listing: the images whose labels become the classes.

    Raises:
        ImagesError: some sources number their classes, and others name them otherwise.
    """
    files = listing.files if listing is not None else ()
    numbers = {found.label: found.source for found in files if found.numbered}
    names = {found.label: found.source for found in files if not found.numbered}
    if names and (others := sorted(numbers.keys() - names.keys())):
        raise ImagesError(
            f"{numbers[others[0]]} numbers its classes (such as {others[0]}), and {next(iter(names.values()))} names them "
            f"(such as {min(names)}): name the outputs in their order with {option('classes', 'a,b,c')}"
        )


def _named(listing: Listing, classes: Sequence[str]) -> Listing:
    files = name_numbers(listing, classes)
    if files is listing.files:
        return listing
    pairs = zip(listing.files, files, strict=True)
    read = {before.label: now.label for before, now in pairs if before.numbered and before.label != now.label}
    named = sorted((int(label), name) for label, name in read.items())
    notes = listing.notes
    if named:
        shown = ", ".join(f"{label} is {name}" for label, name in named[:MOST_NAMED])
        more = f" and {len(named) - MOST_NAMED:,} more" if len(named) > MOST_NAMED else ""
        given = ", ".join(dict.fromkeys(found.source for found in listing.files if found.numbered))
        notes += (f"{given}: its labels are read as numbers of the outputs, which begin at 0: {shown}{more}",)
    return replace(listing, files=files, classes=tuple(sorted({found.label for found in files})), notes=notes)


def without_empty(paths: Sequence[str] | None) -> list[str]:
    """Returns the sources without the folders that hold no files yet.

    Class folders may have been made in advance.
    """
    return [path for path in paths or () if not _is_empty_folder(locations.absolute(path))]


def _is_empty_folder(path: str) -> bool:
    if not locations.is_folder(path):
        return False
    entries = [entry for entry in locations.entries(path) if not hidden(entry.name)]
    return all(entry.is_dir() and _is_empty_folder(entry.path) for entry in entries)


def decode_recorded(
    recorded: Manifest,
    spec: DecodeSpec,
    cache: Cache,
    reporter: Reporter,
    *,
    needs_all: bool = True,
    process: Process = ALONE,
    unkept: Collection[str] = frozenset(),
) -> None:
    """Decodes recorded images that the cache does not hold (another machine, another size).

    Args:
        recorded: the images.
        spec: how they are decoded.
        cache: the cache to fill.
        reporter: shows progress.
        needs_all: False ignores unreadable images: a run that has begun continues without them, and readers name them.
        process: which process this is; it decodes its share.
        unkept: SHA-256s of images that are dropped.

    Raises:
        ImagesError: an image cannot be read, and `needs_all` is True.
    """
    absent = cache.find(recorded.sha256s) < 0
    if unkept:
        absent &= ~np.isin(recorded.sha256s, np.array(sorted(unkept), "S64"))
    missing = recorded.found(np.nonzero(absent)[0])[process.index :: process.count]
    gone = {path for path in dict.fromkeys(file.path for file in missing) if not locations.exists(path)}
    if gone and needs_all:
        first = next(file.path for file in missing if file.path in gone)
        raise ImagesError(
            f"{len(gone):,} recorded image files are missing, the first is {first}: restore them, or give the old images "
            f"at their current location with {option('data')}"
        )
    missing = [file for file in missing if file.path not in gone]
    if not missing:
        return
    done = prepare(
        missing, spec, cache, reporter, known=recorded.known_files(missing), label="preparing recorded images"
    )
    if done.quarantine and needs_all:
        first = done.quarantine[0].path
        raise ImagesError(
            f"{len(done.quarantine):,} recorded images can no longer be read, the first is {first}: "
            f"{done.quarantine[0].reason}"
        )
