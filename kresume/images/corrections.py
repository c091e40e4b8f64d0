"""Applies the user's corrections: images that moved or are to be forgotten.

remembered = remap(remembered, Moves.parse(["/mnt/old=/data/old"]))
hashes, nowhere = hashes_in(read_drop("drop.txt"), remembered, prepared)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kresume.addresses import is_remote
from kresume.errors import UsageError
from kresume.images.cache import Cache
from kresume.images.file_index import forget_facts
from kresume.images.manifest import Manifest
from kresume.images.prepare import Prepared
from kresume.images.sources.moves import Moves
from kresume.spelling import option
from kresume.storage import locations, one_file
from kresume.values.decode_spec import spec_of_key

if TYPE_CHECKING:
    import pyarrow as pa


def remap(manifest: Manifest | None, moves: Moves, moved: Collection[str] = ()) -> Manifest | None:
    """Returns the manifest with the folders of paths replaced.

    Args:
        manifest: the recorded manifest; None if no images are recorded.
        moves: the folders before and now.
        moved: the folders, as the user gave them, from which images of lists have moved.

    Returns:
        The same images at their current paths.

    Raises:
        UsageError: no recorded path, and no path of a list, is in a folder.
    """
    for given, old, new in moves.absolute:
        if manifest is None:
            if given not in moved:
                raise UsageError(
                    f"{option('remap', f'{given}={new}')}: no image of a list is in {given}, and no images are recorded"
                )
            continue
        table, count = with_folder(manifest.table, old, new)
        if not count and given not in moved:
            first = manifest.paths(np.zeros(1, np.int64))[0] if len(manifest) else "none"
            raise UsageError(
                f"{option('remap', f'{given}={new}')}: no recorded image is in {old}; the first recorded path is {first}"
            )
        manifest = Manifest.from_table(table, manifest.classes)
    return manifest


def with_folder(table: pa.Table, old: str, new: str) -> tuple[pa.Table, int]:
    """Replaces the folder of the paths that are in it; returns the table and how many there are."""
    import pyarrow as pa
    import pyarrow.compute as compute

    # A prefix ends where a folder's name ends: /data/old does not match /data/older/cat.jpg.
    column = table.column("path")
    inside = compute.or_(compute.starts_with(column, pattern=f"{old}/"), compute.equal(column, old))
    replaced = compute.binary_replace_slice(column, 0, len(old.encode()), new)
    values = compute.if_else(inside, replaced, column)
    table = table.set_column(table.column_names.index("path"), pa.field("path", pa.string()), values)
    return table, compute.sum(inside).as_py() or 0


Drop = Mapping[str, tuple[str, ...]]
"""The lines of `--drop`, paths made absolute: each with the spellings that it may mean, the likeliest first."""


def read_drop(file: str | None) -> Drop:
    """Reads the lines of `--drop`: paths, made absolute, and SHA-256s.

    Lines that begin with # are comments. A path may be in quotes, and have Windows' slashes.

    Raises:
        UsageError: if the file does not exist or has no lines.
    """
    if file is None:
        return {}
    if not one_file.is_file(file):
        raise UsageError(
            f"{option('drop', file)}: the file does not exist; give a file with a path or a SHA-256 per line"
        )
    lines = [line.strip() for line in one_file.read_text(file).split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UsageError(f"{option('drop', file)}: the file is empty; expected a path or a SHA-256 per line")
    spelled = [_spellings(line) for line in lines]
    return {spellings[0]: spellings for spellings in spelled}


def _spellings(line: str) -> tuple[str, ...]:
    """Returns what a line may mean: as it is, else without quotes, else with Windows' slashes turned."""
    bare = line[1:-1].strip() if len(line) > 2 and line[0] == line[-1] and line[0] in "\"'" else line
    if _is_hash(bare):
        return (bare.lower(),)
    return tuple(dict.fromkeys(locations.absolute(each) for each in (line, bare, bare.replace("\\", "/"))))


def forget(cache: Cache, sha256s: Collection[str]) -> set[str]:
    """Removes images from a cache: their pixels of every size, and their thumbnails.

    Returns:
        The SHA-256s of the images of which the cache held pixels.
    """
    root = cache.folder.parent
    forgotten = cache.forget(sha256s)
    for folder in sorted(root.iterdir()):
        spec = spec_of_key(folder.name)
        if spec is not None and folder != cache.folder:
            other = Cache(folder, spec)
            other.refresh()
            forgotten |= other.forget(sha256s)
    forget_facts(root, sha256s)
    return forgotten


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(letter in "0123456789abcdefABCDEF" for letter in text)


def all_spellings(drop: Drop) -> frozenset[str]:
    """Returns every path and SHA-256 that the lines of `--drop` may mean."""
    return frozenset(each for spellings in drop.values() for each in spellings)


def check_found(drop: Drop, nowhere: Sequence[str], given: str) -> None:
    """Raises if no line of `--drop` names an image.

    Args:
        drop: the lines; a SHA-256 counts, because its image will never join.
        nowhere: those that match no image.
        given: the file.

    Raises:
        UsageError: all of them are paths, and none is that of an image.
    """
    if len(nowhere) == len(drop) and not any(map(_is_hash, drop)):
        raise UsageError(
            f"{option('drop', given)}: no line of it names an image; {first_of(nowhere)}. Give the path of an image, "
            "relative to the current folder or as `images.parquet` has it, or its SHA-256"
        )


def first_of(nowhere: Sequence[str]) -> str:
    """Says which line of `--drop` is the first that matches no image; a folder is not dropped as a whole."""
    folder = next((line for line in nowhere if not is_remote(line) and locations.is_folder(line)), None)
    if folder is not None:
        return f"{folder} is a folder, which is not dropped as a whole: name each image in it"
    return f"the first is {nowhere[0]}"


def hashes_in(drop: Drop, remembered: Manifest | None, *prepared: Prepared | None) -> tuple[set[str], list[str]]:
    """Finds the SHA-256s that the lines of `--drop` name, directly or by path.

    Args:
        drop: the result of `read_drop`. A path may be that of an image, an archive, or a member of an archive.
        remembered: the parent's images. Those that are away are not there to be named by a path, which may hold another
            picture now.
        *prepared: images that were given.

    Returns:
        `(hashes, the lines that match no image)`.
    """
    asked = all_spellings(drop)
    there: set[str] = set()
    named: dict[str, set[str]] = {}

    def look(path: str, name: str, sha256: str) -> None:
        there.add(sha256)
        for each in {path, name} & asked:
            named.setdefault(each, set()).add(sha256)

    if drop:
        for each in prepared:
            for image in each.images if each is not None else ():
                look(image.found.path, image.found.name, image.facts.sha256)
        if remembered is not None:
            files = remembered.found(np.arange(len(remembered)))
            for found, sha in zip(files, remembered.sha256s.tolist(), strict=True):
                look(found.path, found.name, sha.decode())
    hashes = {line for line in drop if _is_hash(line)}
    nowhere = []
    for line, spellings in drop.items():
        meant = next((each for each in spellings if each in named), None)
        if meant is not None:
            hashes |= named[meant]
        elif line not in there:
            nowhere.append(line)
    return hashes, sorted(nowhere)
