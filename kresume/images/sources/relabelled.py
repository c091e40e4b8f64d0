"""Reads labels of classes that were renamed: images in a folder of the old name are the class.

listing = relabelled(listing, {"plum": "Pflaume"})
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from kresume.class_names import show_class
from kresume.images.sources.found import Listing
from kresume.spelling import counted, option


def relabelled(listing: Listing, names: Mapping[str, str]) -> Listing:
    """Returns a listing in which images under the old name of a class have the new one.

    Args:
        listing: images of one role.
        names: new names of classes by old ones. Labels that number outputs are not names.
    """
    counts = Counter(found.label for found in listing.files if not found.numbered and found.label in names)
    if not counts:
        return listing
    files = tuple(
        replace(found, label=names[found.label]) if not found.numbered and found.label in names else found
        for found in listing.files
    )
    notes = tuple(
        f"{counted(count, 'image', 'is', 'are')} still under the name {show_class(old)} and "
        f"{'counts' if count == 1 else 'count'} as {show_class(names[old])} ({option('rename')}): rename "
        "the folder or the list, too, because a later run knows the new name alone"
        for old, count in sorted(counts.items())
    )
    spelled = tuple(
        {names.get(name, name): folder for name, folder in sorted(each.items(), key=lambda pair: pair[0] not in names)}
        for each in listing.spelled
    )
    classes = tuple(sorted({names.get(name, name) for name in listing.classes}))
    return replace(listing, files=files, notes=(*listing.notes, *notes), classes=classes, spelled=spelled)
