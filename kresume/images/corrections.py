"""Applies the user's corrections: images that moved, are missing or are to be forgotten.

remembered = remap(remembered, ["/mnt/old=/data/old"])
remembered, notes = without_missing(remembered, cache, "drop", "runs/1-signs", drop)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from kresume.errors import ImagesError, UsageError
from kresume.images.cache import Cache
from kresume.images.file_index import forget_facts
from kresume.images.manifest import Manifest
from kresume.images.prepare import Prepared
from kresume.images.sources.found import key_of
from kresume.spelling import option
from kresume.storage import locations
from kresume.values.decode_spec import spec_of_key


def remap(manifest: Manifest, pairs: Sequence[str] | None) -> Manifest:
    """Returns the manifest with the prefixes of paths replaced.

    Args:
        manifest: the recorded manifest.
        pairs: `OLD=NEW` each: the prefix of paths before and now.

    Returns:
        The same images at their current paths.

    Raises:
        UsageError: if a pair is malformed, or no recorded path begins with its old prefix.
    """
    for pair in pairs or ():
        import pyarrow as pa
        import pyarrow.compute as compute

        old, equals, new = pair.partition("=")
        if not equals or not old or not new:
            raise UsageError(
                f"{option('remap', pair)}: give OLD=NEW, for example {option('remap', '/mnt/old=/data/old')}"
            )
        old, new = locations.absolute(old), locations.absolute(new)
        table, count = manifest.table, 0
        # A prefix ends where a folder's name ends: /data/old does not match /data/older/cat.jpg.
        column = table.column("path")
        inside = compute.or_(compute.starts_with(column, pattern=f"{old}/"), compute.equal(column, old))
        count = compute.sum(inside).as_py() or 0
        moved = compute.binary_replace_slice(column, 0, len(old.encode()), new)
        values = compute.if_else(inside, moved, column)
        table = table.set_column(table.column_names.index("path"), pa.field("path", pa.string()), values)
        if not count:
            first = manifest.paths(np.zeros(1, np.int64))[0] if len(manifest) else "none"
            raise UsageError(
                f"{option('remap', pair)}: no recorded image is in {old}; the first recorded path is {first}"
            )
        manifest = Manifest.from_table(table, manifest.classes)
    return manifest


def missing_rows(manifest: Manifest) -> np.ndarray:
    """Returns the indices of rows whose file no longer exists.

    Each folder is listed once; no file is opened.
    """
    paths = manifest.table.column("path").to_pylist()
    listed: dict[str, set[str]] = {}
    gone = []
    for row, path in enumerate(paths):
        folder, _, name = path.rpartition("/")
        if folder not in listed:
            try:
                listed[folder] = {entry.name for entry in locations.entries(folder or "/")}
            except OSError:
                listed[folder] = set()
        if name not in listed[folder]:
            gone.append(row)
    return np.array(gone, np.int64)


def without_missing(
    manifest: Manifest,
    cache: Cache | None,
    policy: str,
    parent: str,
    drop: Collection[str],
    given: Mapping[str, str] | None = None,
) -> tuple[Manifest, list[str]]:
    """Applies `--on-missing`: returns the images that can be trained on.

    Args:
        manifest: manifest of the parent, after `remap`.
        cache: the cache that may still hold their pixels.
        policy: `"error"`, `"drop"` or `"cache"`.
        parent: name of the parent, for messages.
        drop: paths and SHA-256s to forget; they may be missing.
        given: SHA-256s of the images that are given now, by `Found.key`. A missing image among them has only
            moved; one whose path holds another of them was overwritten, and is missing.

    Returns:
        `(the manifest, notes for the user)`.

    Raises:
        ImagesError: if images are missing and the policy does not allow it.
    """
    gone = missing_rows(manifest)
    replaced: list[int] = []
    if given:
        places = manifest.table.select(["path", "offset", "length"]).to_pydict().values()
        replaced = [row for row, place in enumerate(zip(*places, strict=True)) if key_of(*place) in given]
        gone = np.union1d(gone, np.array(replaced, np.int64))
        gone = gone[~np.isin(manifest.sha256s[gone], np.array(sorted(set(given.values())), "S64"))]
    if drop and len(gone):
        paths, hashes = manifest.paths(gone), manifest.sha256s[gone].tolist()
        wanted = [not {path, sha.decode()} & set(drop) for path, sha in zip(paths, hashes, strict=True)]
        gone = gone[np.array(wanted, bool)]
    if not len(gone):
        return manifest, []
    first = manifest.paths(gone[:1])[0]
    over = len(np.intersect1d(gone, np.array(replaced, np.int64)))
    missing = f"missing ({over:,} of them overwritten by other pictures)" if over else "missing"
    if policy == "drop":
        import pyarrow as pa

        keep = np.ones(len(manifest), bool)
        keep[gone] = False
        kept = Manifest.from_table(manifest.table.filter(pa.array(keep)), manifest.classes)
        return kept, [
            f"{len(gone):,} recorded images are {missing} and were dropped ({option('on-missing', 'drop')}); the first is "
            f"{first}"
        ]
    cached = int((cache.find(manifest.sha256s[gone]) >= 0).sum()) if cache is not None else 0
    if policy == "cache" and cached == len(gone):
        return manifest, [
            f"{len(gone):,} recorded images are {missing} and are read from the cache; the first is {first}"
        ]
    raise ImagesError(
        f"{len(gone):,} images of {parent} are {missing}, the first is {first} ({cached:,} of them are in the cache): "
        f"restore them, give their current location with {option('remap', 'OLD=NEW')} or {option('data')}, or give "
        f"{option('on-missing', 'drop')}{'' if policy == 'cache' else ' or ' + option('on-missing', 'cache')}"
    )


def read_drop(file: str | None) -> frozenset[str]:
    """Reads the lines of `--drop`: paths, made absolute, and SHA-256s.

    Lines that begin with # are comments.

    Raises:
        UsageError: if the file does not exist or has no lines.
    """
    if file is None:
        return frozenset()
    path = Path(file)
    if not path.is_file():
        raise UsageError(
            f"{option('drop', file)}: the file does not exist; give a file with a path or a SHA-256 per line"
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UsageError(f"{option('drop', file)}: the file is empty; expected a path or a SHA-256 per line")
    return frozenset(line.lower() if _is_hash(line) else locations.absolute(line) for line in lines)


def forget(cache: Cache, sha256s: Collection[str]) -> int:
    """Removes images from a cache: their pixels of every size, and their thumbnails.

    Returns:
        The number of images that the cache held.
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
    return len(forgotten)


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(letter in "0123456789abcdefABCDEF" for letter in text)


def hashes_in(
    drop: Collection[str], remembered: Manifest | None, *prepared: Prepared | None
) -> tuple[set[str], list[str]]:
    """Finds the SHA-256s that the lines of `--drop` name, directly or by path.

    Args:
        drop: the result of `read_drop`. A path may be that of an image, an archive, or a member of an archive.
        remembered: the parent's images.
        *prepared: images that were given.

    Returns:
        `(hashes, the lines that match no image)`.
    """
    asked = frozenset(drop)
    hashes = {line for line in asked if _is_hash(line)}
    there: set[str] = set()
    named: set[str] = set()

    def look(path: str, name: str, sha256: str) -> None:
        there.add(sha256)
        if found := {each for each in (path, name) if each in asked}:
            named.update(found)
            hashes.add(sha256)

    if drop:
        for each in prepared:
            for image in each.images if each is not None else ():
                look(image.found.path, image.found.name, image.facts.sha256)
        for found, sha in zip(
            remembered.found(np.arange(len(remembered))) if remembered is not None else (),
            remembered.sha256s.tolist() if remembered is not None else (),
            strict=True,
        ):
            look(found.path, found.name, sha.decode())
    return hashes, sorted(line for line in drop if line not in named and line not in there)
