"""Lists pictures whose class nobody knows yet, of every kind of source, a folder's as they are found.

    asked = list_unlabelled(["inbox/", "a.jpg", "week.zip", "list.csv"], reporter)
    asked.total
    for found in asked.items(): ...

A folder is walked twice, the first time to count its names: its pictures are never all in memory. Listings of archives,
lists and TFRecord files are.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kresume.errors import ImagesError
from kresume.images.sources import folders, is_text, kind_of, list_images, nameless, no_such_path, shards
from kresume.images.sources.found import NO_CLASS, Found, Listing, Quarantined, Source
from kresume.images.sources.records import check_features
from kresume.reporter import Reporter
from kresume.storage import locations

Item = Found | Quarantined


@dataclass(frozen=True)
class Asked:
    """The pictures of some sources, in their order.

    Attributes:
        sources: each with its listing; None for a folder, which is walked.
        total: how many pictures there are.
        left_out: counts files of folders that are no pictures by their ending, once `items` is done.
    """

    sources: tuple[tuple[Source, Listing | None], ...]
    total: int
    left_out: Counter[str] = field(default_factory=Counter)

    def items(self) -> Iterator[Item]:
        """Yields each picture, and each that a source names but that is missing or damaged, with the reason."""
        for source, listing in self.sources:
            if listing is not None:
                yield from listing.files
                yield from listing.quarantine
                continue
            for found in folders.walk_without_classes(source, self.left_out):
                yield found if is_text(found.name) else nameless(found)

    def shown(self, item: Item) -> str:
        """Returns the name of a picture as the user would type it: below the path that was given."""
        name = item.name if isinstance(item, Found) else item.path
        for source, _ in self.sources:
            root = source.path if locations.is_folder(source.path) else locations.parent(source.path)
            given = source.given if root == source.path else os.path.dirname(source.given)
            if name == source.path:
                return source.given
            if name.startswith(f"{root}/") and (isinstance(item, Quarantined) or item.source in {"", source.given}):
                return os.path.join(given, name[len(root) + 1 :])
        return name


def list_unlabelled(
    paths: Sequence[str | Path], reporter: Reporter, features: Mapping[str, str] | None = None
) -> Asked:
    """Lists pictures without regard to labels, splits and class folders.

    Args:
        paths: files, folders at any depth, lists with a column `path`, tar and zip archives, TFRecord files, manifests.
        reporter: shows progress.
        features: names of TFRecord features by role.

    Raises:
        ImagesError: a path does not exist, or there is no picture in any of them.
        UsageError: `features` are given, and no source has any.
    """
    sources: list[tuple[Source, Listing | None]] = []
    total = 0
    for given in map(str, paths):
        source = Source(locations.absolute(given), given, features or {}, labelled=False)
        if locations.is_folder(source.path) and not shards.accepts(source.path):
            sources.append((source, None))
            total += folders.count_without_classes(source)
            continue
        listing = _listed(source, reporter, features)
        sources.append((source, listing))
        total += len(listing.files) + len(listing.quarantine)
    if not total:
        raise ImagesError(f"{', '.join(map(str, paths))}: there are no pictures")
    check_features(features, (listing for _, listing in sources if listing is not None))
    return Asked(tuple(sources), total)


def _listed(source: Source, reporter: Reporter, features: Mapping[str, str] | None) -> Listing:
    """Lists a file: an archive, a list and so on, else one picture, whatever its name."""
    if not locations.exists(source.path):
        raise ImagesError(
            f"{no_such_path(source.given)}; expected pictures, folders, lists, archives or TFRecord files"
        )
    try:
        kind_of(source)
    except ImagesError:
        facts = locations.stat(source.path)
        size, time, stamp = locations.version(facts)
        picture = Found(source.path, NO_CLASS, source.given, size, time, stamp=stamp)
        return Listing((picture,), (), (NO_CLASS,))
    listing = list_images([source.given], reporter, features, with_classes=False)
    for note in listing.notes:
        reporter.say(note)
    return listing
