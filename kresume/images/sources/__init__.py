"""Lists the images of sources: names, sizes and times, without reading image contents.

    listing = list_images(["old/", "more.csv", "shard-0001.tar"], reporter)
    listing.classes, len(listing.files), listing.notes

Each kind of source has one module and one entry in `KINDS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kresume.class_names import canonical
from kresume.errors import ImagesError
from kresume.images.sources import archives, folders, lists, records, shards, tables
from kresume.images.sources.folder_order import merged_spellings
from kresume.images.sources.found import Advance, Facts, Found, Known, Listing, Quarantined, Source
from kresume.images.sources.moves import NOTHING, Moves
from kresume.images.sources.names import LISTS, ending
from kresume.images.sources.top_folders import Listed, settle
from kresume.reporter import Reporter
from kresume.storage import locations
from kresume.storage.damage import reading

__all__ = ["KINDS", "Facts", "Found", "Known", "Listing", "Quarantined", "Source", "joined", "list_each", "list_images"]

KINDS: dict[str, tuple[Callable[[str], bool], Callable[[Source, Advance], Listing]]] = {
    "manifest": (tables.accepts, tables.list_source),
    "list": (lists.accepts, lists.list_source),
    "tar": (archives.is_tar, archives.list_tar),
    "zip": (archives.is_zip, archives.list_zip),
    "TFRecord": (records.accepts, records.list_source),
    "folder of shards": (shards.accepts, shards.list_source),
    "class folders": (folders.accepts, folders.list_source),
}
"""How each kind of source is recognised and listed, tested in this order. A new kind is one function and one entry."""

SHEET = "kresume reads no spreadsheets: save the sheet as CSV, with the columns path and label"
OTHER_FILES = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), SHEET),
    ".txt": "kresume reads no text without columns: write a list.csv whose first row is path,label",
}
"""Files that are taken for a source of images, by their endings, and the way on."""

shards.FILES.update({name: KINDS[name] for name in ("tar", "zip", "TFRecord")})


def list_images(
    paths: Sequence[str | Path],
    reporter: Reporter,
    features: Mapping[str, str] | None = None,
    memory: Path | None = None,
    *,
    writes: bool = True,
    follow_links: bool = True,
    with_classes: bool = True,
    tests: bool = False,
    validates: bool = False,
    moves: Moves = NOTHING,
    classes: Collection[str] = (),
) -> Listing:
    """Lists the images of one or more sources.

    Args:
        paths: paths that the user gave, of any kinds.
        reporter: shows progress.
        features: names of TFRecord features by role, where they differ from the usual ones.
        memory: a folder that keeps listings of files which can only be listed by reading all of them.
        writes: False reads `memory` but writes nothing to it.
        follow_links: False does not enter folders behind symbolic links inside a class folder.
        with_classes: False lists every image, with or without class folders and labels, under one label.
        tests: True lists, of a source that has images for testing, these alone; False leaves them out.
        validates: True leaves out a source's images for training, if it has others for validation.
        moves: where the images of lists have moved.
        classes: known names of classes. A single top folder of such a name is a class.

    Returns:
        One listing of all sources. Images whose names are not valid text are quarantined.

    Raises:
        ImagesError: if a path is missing, empty, or not laid out as expected.
    """
    asked = Source("", "", features or {}, memory, writes, follow_links, with_classes, tests, moves, frozenset(classes))
    return joined(settle(list_each(paths, asked, reporter, validates=validates), classes))


def list_each(
    paths: Sequence[str | Path], asked: Source, reporter: Reporter, *, validates: bool = False
) -> list[Listed]:
    """Lists the images of each source by itself.

    Args:
        paths: paths that the user gave, of any kinds.
        asked: how to list each of them.
        reporter: shows progress.
        validates: see `list_images`.

    Raises:
        ImagesError: if a path is missing, empty, or not laid out as expected.
    """
    listed = []
    with reporter.progress("listing", None, "files") as advance:
        for given in map(str, paths):
            source = replace(asked, path=locations.absolute(given), given=given)
            again = partial(_list_again, source, reporter, validates)
            listed.append(Listed(_list_one(source, advance, validates=validates), again))
    return listed


def _list_again(source: Source, reporter: Reporter, validates: bool, classes: frozenset[str]) -> Listing:
    """Lists a source with more known names of classes."""
    with reporter.progress("listing", None, "files") as advance:
        return _list_one(replace(source, classes=source.classes | classes), advance, validates=validates)


def _list_one(source: Source, advance: Advance, *, validates: bool) -> Listing:
    with reading(source.given, "a source of images", ImagesError):
        function = kind_of(source)
        if function is folders.list_source and not source.labelled:
            function = folders.list_without_classes
        listing = function(source, advance)
    listing = _tested(listing, source.given) if source.tests else listing
    return _composed(_validating(listing, source.given) if validates else listing)


def joined(listed: Sequence[Listed]) -> Listing:
    """Returns one listing of several sources."""
    files: dict[tuple[str, str], Found] = {}
    notes: list[str] = []
    classes: set[str] = set()
    quarantine: list[Quarantined] = []
    known: dict[str, tuple[locations.Version, Facts]] = {}
    moved: set[str] = set()
    examples = False
    for each in listed:
        listing = each.listing
        named = [found for found in listing.files if is_text(found.name) and is_text(found.label)]
        if len(named) < len(listing.files):
            held = set(named)
            quarantine += [nameless(found) for found in listing.files if found not in held]
        # An image listed twice under one label counts once. Under two labels both are kept: a conflict to report.
        # Listed for training and for validation it validates, whatever comes first.
        for found in named:
            before = files.setdefault((found.key, found.label), found)
            if found.split == "val" and before.split != "val":
                files[found.key, found.label] = found
        notes += (*listing.notes, *each.about)
        classes |= set(filter(is_text, listing.classes))
        quarantine += listing.quarantine
        known |= listing.known
        moved |= listing.moved
        examples |= listing.examples
    names = tuple(sorted(classes))
    spelled = merged_spellings(spelling for each in listed for spelling in each.listing.spelled)
    every = Listing(
        tuple(files.values()),
        tuple(notes),
        names,
        tuple(quarantine),
        known,
        frozenset(moved),
        examples,
        spelled=spelled,
    )
    return replace(every, classes=tuple(sorted(classes, key=int))) if every.numbered else every


def _tested(listing: Listing, given: str) -> Listing:
    """Returns only the images for testing, if there are any; the classes stay those of all images."""
    tests = tuple(replace(found, split=None) for found in listing.files if found.split == "test")
    others = len(listing.files) - len(tests)
    if not tests or not others:
        return replace(listing, files=tests or listing.files)
    note = (
        f"{given}: its {len(tests):,} test images are scored, the {others:,} others are not: give their folder for that"
    )
    return replace(listing, files=tests, notes=(*listing.notes, note))


def _validating(listing: Listing, given: str) -> Listing:
    """Leaves out images for training if there are others for validation; keeps the classes of all."""
    trains = sum(found.split == "train" for found in listing.files)
    if not trains or all(found.split != "val" for found in listing.files):
        return listing
    files = tuple(found for found in listing.files if found.split != "train")
    note = f"{given}: only its {len(files):,} validation images validate; the {trains:,} for training are left out"
    return replace(listing, files=files, notes=(*listing.notes, note))


def _composed(listing: Listing) -> Listing:
    """Returns the listing with labels in canonical form."""
    labels = {label: canonical(label) for label in {*listing.classes, *(found.label for found in listing.files)}}
    if all(label == name for label, name in labels.items()):
        return listing
    files = tuple(
        found if labels[found.label] == found.label else replace(found, label=labels[found.label])
        for found in listing.files
    )
    return replace(listing, files=files, classes=tuple(sorted({labels[name] for name in listing.classes})))


def is_text(name: str) -> bool:
    """Returns True if a name is valid text.

    File names on Linux are bytes; those that are not UTF-8 cannot be written to a table, a list or a message.
    """
    return name.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in name)


def nameless(found: Found) -> Quarantined:
    """Returns the quarantine's entry for an image whose name is not valid text."""
    path, label = (os.fsencode(name).decode("utf-8", "backslashreplace") for name in (found.name, found.label))
    return Quarantined(path, label, "its name is not valid UTF-8: rename it")


def no_such_path(given: str) -> str:
    """Returns the beginning of the message about a path that does not exist."""
    pattern = "; patterns are not expanded: give the folder of these files" if {*given} & {*"*?[{"} else ""
    return f"no such path: {given} (current folder: {Path.cwd()}{pattern})"


def kind_of(source: Source) -> Callable[[Source, Advance], Listing]:
    """Returns the function that lists a source.

    Raises:
        ImagesError: the path does not exist, or is of no known kind.
    """
    if not locations.exists(source.path):
        raise ImagesError(f"{no_such_path(source.given)}; expected a folder with one folder of images per class")
    if (way := OTHER_FILES.get(ending(source.path))) and not locations.is_folder(source.path):
        raise ImagesError(f"{source.given}: {way}")
    for accepts, function in KINDS.values():
        if accepts(source.path):
            return function
    packed = source.path.lower().removesuffix(".gz")
    if packed != source.path.lower() and packed.endswith((*LISTS, ".json")):
        raise ImagesError(f"{source.given}: a list is read unpacked: gunzip {source.given}")
    with locations.opened(source.path) as file:
        hint = " (if it is a TFRecord compressed with ZLIB: write it with GZIP)" if file.read(1) == b"\x78" else ""
    raise ImagesError(
        f"{source.given} is a file of a kind that kresume does not read{hint}: give a folder with one folder of images per "
        f"class, or one of {', '.join(kind for kind in KINDS if 'folder' not in kind)}"
    )
