"""Lists a folder of tar, zip or TFRecord files, in the order of names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kresume.images.sources.folder_order import merged_spellings
from kresume.images.sources.found import Advance, Found, Listing, Quarantined, Source
from kresume.images.sources.names import hidden, may_be_picture
from kresume.images.sources.top_folders import Listed, merged, settle
from kresume.spelling import counted
from kresume.storage import locations

FILES: dict[str, tuple[Callable[[str], bool], Callable[[Source, Advance], Listing]]] = {}
"""The kinds of files that may be shards; `sources/__init__.py` fills it."""


def _files(path: str) -> list[str] | None:
    """Returns the paths of visible files of a folder without folders; otherwise None."""
    visible = [entry for entry in locations.entries(path) if not hidden(entry.name)]
    if not visible or any(entry.is_dir() for entry in visible):
        return None
    return [entry.path for entry in visible if may_be_picture(entry.name)]


def _kind(path: str) -> Callable[[Source, Advance], Listing] | None:
    return next((function for accepts, function in FILES.values() if accepts(path)), None)


def accepts(path: str) -> bool:
    """Returns True if the path is a folder whose first file is a shard."""
    if not locations.is_folder(path):
        return False
    files = _files(path)
    return files is not None and len(files) > 0 and _kind(files[0]) is not None


def list_source(source: Source, advance: Advance) -> Listing:
    """Lists every shard of a folder.

    Raises:
        ImagesError: if a shard is damaged or holds no labelled image.
    """
    found: list[Found] = []
    notes: list[str] = []
    classes: set[str] = set()
    quarantine: list[Quarantined] = []
    examples = False
    others = 0
    each: list[Listed] = []
    for path in _files(source.path) or ():
        function = _kind(path)
        if function is None:
            others += 1
            continue
        shard = replace(source, path=path)
        each.append(Listed(function(shard, advance), partial(_again, function, shard, advance)))
    settled = settle(each, source.classes)
    for shown in settled:
        listing = shown.listing
        found += listing.files
        notes += listing.notes
        classes |= set(listing.classes)
        quarantine += listing.quarantine
        examples |= listing.examples
    if others:
        notes.append(f"{source.given}: {counted(others, 'file')} beside the shards left out")
    return Listing(
        tuple(found),
        tuple(dict.fromkeys(notes)),
        tuple(sorted(classes)),
        tuple(quarantine),
        examples=examples,
        tops=merged(top for shown in settled for top in shown.listing.tops),
        spelled=merged_spellings(each for shown in settled for each in shown.listing.spelled),
    )


def _again(
    function: Callable[[Source, Advance], Listing], shard: Source, advance: Advance, classes: frozenset[str]
) -> Listing:
    """Lists a shard with known names of classes."""
    return function(replace(shard, classes=shard.classes | classes), advance)
