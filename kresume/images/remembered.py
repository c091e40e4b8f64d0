"""Finds out which remembered images are still where a run recorded them.

    remembered, notes = without_missing(remembered, spec, cache, reporter, "drop", "runs/1-signs", drop)

A file with the recorded size, time and stamp is taken as unchanged. Any other is read: with the same bytes it is the same image
(a copied folder has new times); with other bytes it holds another picture, and the recorded image is missing. Without
this, a cache would go on giving the old pixels of a file that the user has replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from kresume.addresses import is_remote
from kresume.errors import ImagesError
from kresume.images.cache import Cache
from kresume.images.manifest import Manifest
from kresume.images.prepare import prepare
from kresume.images.sources.found import key_of
from kresume.reporter import Reporter
from kresume.spelling import counted, option
from kresume.storage import locations
from kresume.values.decode_spec import DecodeSpec

GONE = -1
VERSION = ("bytes", "mtime_ns", "stamp")
"""Columns by which a changed file is told."""
REQUESTS = 32
"""Requests to a bucket at a time: each takes some 50 ms."""


def without_missing(
    manifest: Manifest,
    spec: DecodeSpec,
    cache: Cache | None,
    reporter: Reporter,
    policy: str,
    parent: str,
    drop: Collection[str] = (),
    given: Mapping[str, str] | None = None,
    *,
    writes: bool = True,
    unkept: Collection[str] = frozenset(),
) -> tuple[Manifest, list[str]]:
    """Applies `--on-missing`: returns the images that can be trained on.

    Args:
        manifest: manifest of the parent, after `corrections.remap`.
        spec: how images are decoded, for those that are read.
        cache: the cache that may still hold their pixels.
        reporter: shows progress while changed files are read.
        policy: `"error"`, `"drop"` or `"cache"`.
        parent: name of the parent, for messages.
        drop: paths and SHA-256s to forget; they may be missing.
        given: SHA-256s of the images that are given now, by `Found.key`. A missing image among them has only moved.
        writes: False writes nothing to the cache.
        unkept: SHA-256s of images of which the cache keeps nothing.

    Returns:
        `(the manifest, notes for the user)`. Unchanged images in changed files have the current size, time and stamp.

    Raises:
        ImagesError: if images are missing and the policy does not allow it.
    """
    given = given or {}
    files = files_now(manifest)
    gone = files[:, 0] == GONE
    recorded = files_recorded(manifest)
    places = manifest.table.select(["path", "offset", "length"]).to_pydict().values()
    now = [given.get(key_of(*place)) for place in zip(*places, strict=True)]
    held = np.array([sha or "" for sha in now], "S64")  # what the place of each image holds, as far as it was given
    changed = ~gone & (files != recorded).any(axis=1) & (held == b"")
    rows = np.nonzero(changed)[0]
    held[rows] = contents_now(manifest, rows, files, spec, cache, reporter, writes=writes, unkept=unkept)
    manifest = with_files(manifest, rows[held[rows] == manifest.sha256s[rows]], files)
    replaced = ~gone & (held != manifest.sha256s) & (changed | (held != b""))
    missing = np.nonzero(gone | replaced)[0]
    missing = missing[~np.isin(manifest.sha256s[missing], np.array(sorted(set(given.values())), "S64"))]
    if drop and len(missing):
        paths, hashes = manifest.paths(missing), manifest.sha256s[missing].tolist()
        wanted = [not {path, sha.decode()} & set(drop) for path, sha in zip(paths, hashes, strict=True)]
        missing = missing[np.array(wanted, bool)]
    if not len(missing):
        return manifest, []
    return _settled(manifest, missing, int(replaced[missing].sum()), cache, policy, parent)


def _settled(
    manifest: Manifest, missing: np.ndarray, replaced: int, cache: Cache | None, policy: str, parent: str
) -> tuple[Manifest, list[str]]:
    """Returns the manifest with or without the missing images, as the policy says."""
    first = manifest.paths(missing[:1])[0]
    what = f"missing ({replaced:,} of them overwritten)" if replaced else "missing"
    if policy == "drop":
        import pyarrow as pa

        keep = np.ones(len(manifest), bool)
        keep[missing] = False
        kept = Manifest.from_table(manifest.table.filter(pa.array(keep)), manifest.classes)
        return kept, [
            f"{counted(len(missing), 'recorded image', f'is {what} and was', f'are {what} and were')} dropped "
            f"({option('on-missing', 'drop')}); the first is {first}"
        ]
    cached = int((cache.find(manifest.sha256s[missing]) >= 0).sum()) if cache is not None else 0
    if policy == "cache" and cached == len(missing):
        return manifest, [
            f"{counted(len(missing), 'recorded image', 'is', 'are')} {what}, and read from the cache; the first is {first}"
        ]
    today = f"; {option('data')} with the old folder trains on what it holds now" if replaced else ""
    raise ImagesError(
        f"{counted(len(missing), 'image')} of {parent} {'is' if len(missing) == 1 else 'are'} {what}, the first "
        f"is {first} ({cached:,} of them are in the cache): "
        f"restore them, give their current location with {option('remap', 'OLD=NEW')} or {option('data')}, or give "
        f"{option('on-missing', 'drop')}{'' if policy == 'cache' else ' or ' + option('on-missing', 'cache')}{today}"
    )


def are_there(manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """Returns `(len(rows),) bool`: which of these rows have a file now. Each folder is listed once."""
    import pyarrow as pa

    some = Manifest.from_table(manifest.table.take(pa.array(rows)), manifest.classes)
    return np.asarray(files_now(some)[:, 0] != GONE)


def files_now(manifest: Manifest) -> np.ndarray:
    """Returns the version of the file of each row, `(n, 3) int64`; `GONE` if there is none.

    Each folder is listed once; no file is opened.
    """
    paths = manifest.table.column("path").to_pylist()
    wanted: dict[str, set[str]] = {}
    for path in dict.fromkeys(paths):
        folder, _, name = path.rpartition("/")
        wanted.setdefault(folder, set()).add(name)
    found: dict[str, locations.Version] = {}

    def look(entry: locations.Entry) -> None:
        with contextlib.suppress(OSError):  # a link to nowhere
            found[entry.path] = locations.version(entry.stat())

    with ThreadPoolExecutor(REQUESTS) as pool:
        for folder, names in wanted.items():
            try:
                entries = [entry for entry in locations.entries(folder or "/") if entry.name in names]
            except OSError:
                continue
            list(pool.map(look, entries) if is_remote(folder) else map(look, entries))
    return np.array([found.get(path, (GONE, GONE, GONE)) for path in paths], np.int64).reshape(-1, 3)


def files_recorded(manifest: Manifest) -> np.ndarray:
    """Returns the recorded version of the file of each row, `(n, 3) int64`."""
    return np.stack([manifest.table.column(name).to_numpy() for name in VERSION], axis=1)


def contents_now(
    manifest: Manifest,
    rows: np.ndarray,
    files: np.ndarray,
    spec: DecodeSpec,
    cache: Cache | None,
    reporter: Reporter,
    *,
    writes: bool,
    unkept: Collection[str] = frozenset(),
) -> np.ndarray:
    """Reads what the places of these rows hold today.

    Returns:
        SHA-256s, `(len(rows),) S64`, empty where there is no picture.
    """
    if not len(rows):
        return np.zeros(0, "S64")
    listed = [
        replace(found, bytes=int(size), mtime_ns=int(time), stamp=int(stamp))
        for found, (size, time, stamp) in zip(manifest.found(rows), files[rows], strict=True)
    ]
    label = "checking recorded images in changed files"
    known = manifest.known_files(listed)
    read = prepare(listed, spec, cache, reporter, known=known, label=label, writes=writes, unkept=unkept)
    hashes = {image.found.key: image.facts.sha256 for image in read.images}
    return np.array([hashes.get(found.key, "") for found in listed], "S64")


def with_files(manifest: Manifest, rows: np.ndarray, files: np.ndarray) -> Manifest:
    """Returns the manifest with today's versions of the files of these rows."""
    if not len(rows):
        return manifest
    import pyarrow as pa

    table = manifest.table
    for column, name in enumerate(VERSION):
        values = table.column(name).to_numpy().copy()
        values[rows] = files[rows, column]
        table = table.set_column(table.column_names.index(name), pa.field(name, pa.int64()), pa.array(values))
    return Manifest.from_table(table, manifest.classes)
