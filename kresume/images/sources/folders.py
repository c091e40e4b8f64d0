"""Lists folders of a disk or a bucket: class folders, or every image at any depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kresume.class_names import show_classes
from kresume.errors import ImagesError
from kresume.images.sources import class_folders
from kresume.images.sources.class_folders import NOWHERE, describe_left_out, walk
from kresume.images.sources.folder_order import spelled_in
from kresume.images.sources.found import NO_CLASS, Advance, Found, Listing, Quarantined, Source
from kresume.images.sources.trees import OnDisk
from kresume.spelling import counted
from kresume.storage import locations


def accepts(path: str) -> bool:
    """Returns True if the path is a folder, which may hold class folders."""
    return locations.is_folder(path)


def list_source(source: Source, advance: Advance) -> Listing:
    """Lists the images of class folders.

    Raises:
        ImagesError: if the folder is empty, or holds images without class folders.
    """
    given, tree = source.given, OnDisk(source.path, source.follow_links)
    folders, notes, tops = class_folders.find(tree, source)
    left_out: Counter[str] = Counter()
    found: list[Found] = []
    gone: list[Quarantined] = []
    for folder in folders:
        for entry in walk(tree, folder.path, left_out):
            advance(1)
            try:
                facts = entry.stat()
            except FileNotFoundError:
                gone.append(Quarantined(entry.path, folder.label, "it is a link to a file that is not there"))
                continue
            size, time, stamp = locations.version(facts)
            found.append(Found(entry.path, folder.label, given, size, time, folder.split, stamp=stamp))
    skipped = describe_left_out(left_out, given)
    classes = tuple(sorted({folder.label for folder in folders}))
    without = sorted(set(classes) - {each.label for each in found})
    if without and found:
        notes.append(f"{given}: no images in {counted(len(without), 'class folder')}: {show_classes(without)}")
    if not found:
        others = "".join(f": {note.rpartition(': ')[2]} there" for note in skipped[:1])
        others += f"; {counted(len(gone), 'link')} to files that are not there" if gone else ""
        raise ImagesError(f"{given} has the class folders {', '.join(classes)}, but they contain no images{others}")
    spelled = spelled_in((folder.label, folder.split) for folder in folders)
    return Listing(tuple(found), (*notes, *skipped), classes, tuple(gone), tops=tops, spelled=spelled)


def walk_without_classes(source: Source, left_out: Counter[str]) -> Iterator[Found]:
    """Yields every image in a folder, at any depth, under one label, as they are found.

    Args:
        source: the folder.
        left_out: counts skipped files by ending, and links.
    """
    for entry in walk(OnDisk(source.path, source.follow_links), source.path, left_out, labelled=False):
        try:
            facts = entry.stat()
        except FileNotFoundError:
            left_out[NOWHERE] += 1
            continue
        size, time, stamp = locations.version(facts)
        yield Found(entry.path, NO_CLASS, source.given, size, time, stamp=stamp)


def count_without_classes(source: Source) -> int:
    """Returns how many images `walk_without_classes` yields; reads names alone."""
    return sum(1 for _ in walk(OnDisk(source.path, source.follow_links), source.path, Counter(), labelled=False))


def list_without_classes(source: Source, advance: Advance) -> Listing:
    """Lists every image in a folder, at any depth, under one label.

    Raises:
        ImagesError: if there is none.
    """
    left_out: Counter[str] = Counter()
    found: list[Found] = []
    for each in walk_without_classes(source, left_out):
        found.append(each)
        advance(1)
    if not found:
        raise ImagesError(f"{source.given} contains no images")
    return Listing(tuple(found), tuple(describe_left_out(left_out, source.given)), (NO_CLASS,))
