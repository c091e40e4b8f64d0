"""Reads from a manifest how the class folders of its images spell the names of their classes.

    folder_names(manifest)        # {"zwetschge": (" zwetschge",), "apfel": ("apfel",)}

Labels are in canonical form (`canonical`), and folders need not be: macOS decomposes letters, and names may have blanks
around them. Keras sorts the names of folders as they are, and takes only these as `class_names`.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from kresume.images.manifest import Manifest
from kresume.images.sources.folder_order import folder_of

LAST = r"[^/]*$"
"""Matches the name of a file in its path."""


def folder_names(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Returns the names of the class folders of each class, the most frequent first.

    A class is left out if none of its images lies in a folder of its name.
    """
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (folder, member, label), count in _places(manifest).items():
        named = folder_of(folder, member, label)
        if named is not None:
            found[label][named] += count
    return {
        label: tuple(sorted(counts, key=lambda name, counts=counts: (-counts[name], name)))  # type: ignore[misc]
        for label, counts in found.items()
    }


def _places(manifest: Manifest) -> dict[tuple[str, str, str], int]:
    """Counts the images of each `(folder, folder in an archive, label)`.

    Parts of records lie in no folder, and are left out.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    table = manifest.table
    kept = compute.or_(compute.less(table.column("length"), 0), compute.not_equal(table.column("member"), ""))
    table = table.filter(kept)
    in_archive = compute.not_equal(table.column("member"), "")
    folders = compute.replace_substring_regex(table.column("path"), LAST, "")
    members = compute.replace_substring_regex(table.column("member"), LAST, "")
    places = pa.table(
        {
            "folder": compute.if_else(in_archive, "", folders),
            "member": compute.if_else(in_archive, members, ""),
            "label": table.column("label"),
        }
    )
    counted = places.group_by(["folder", "member", "label"]).aggregate([([], "count_all")]).to_pydict()
    keys = zip(counted["folder"], counted["member"], counted["label"], strict=True)
    return dict(zip(keys, counted["count_all"], strict=True))
