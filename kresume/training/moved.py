"""Records where the images of an interrupted run have moved, as `--remap` says.

start = follow_moves(start, reporter)       # images.parquet and run.json have the current paths

Contents decide the bits of a result, and paths do not: no digest of a manifest has them. The old folders are in `events.jsonl`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume import runs
from kresume.errors import ImagesError, RunError, UsageError
from kresume.images import corrections, scans
from kresume.images.manifest import Manifest
from kresume.images.remembered import GONE, VERSION, files_now
from kresume.images.sources.found import STREAM_CODINGS, Found
from kresume.images.sources.moves import Moves
from kresume.lock import Lock
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import counted, option
from kresume.storage import locations
from kresume.training.start import Start, continue_run

if TYPE_CHECKING:
    import pyarrow as pa

SOURCES = ("data", "add", "val")
THREADS = 8


def follow_moves(start: Start, reporter: Reporter) -> Start:
    """Records the current places of an interrupted run's images, if the command gives `--remap`.

    Args:
        start: how the command starts.
        reporter: told how many images have moved.

    Returns:
        The start with the run and its options as they are recorded now.

    Raises:
        UsageError: no image of the run is in the folder before or now.
        ImagesError: none of the images is in the folder now, or some of the files hold other pictures.
        RunError: another process has the run, or its disk cannot be written.
    """
    if start.run is None or not start.given.remap:
        return start
    path = start.run.path
    moves = Moves.parse(start.given.remap)
    try:
        with Lock(path, take_over=bool(start.given.take_over), say=reporter.say):
            run = runs.open_run(path)  # the process that held the lock before may have finished it
            if not run.finished:
                for pair, (_, old, new) in zip(start.given.remap, moves.absolute, strict=True):
                    run = _move(run, pair, old, new, start.config, reporter)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}): make room or bring its disk back"
        ) from error
    return replace(continue_run(run, start.given), aside=start.aside)


def _move(run: runs.Run, pair: str, old: str, new: str, config: TrainConfig, reporter: Reporter) -> runs.Run:
    """Records that what was in one folder is in another now; changes nothing if that is recorded already."""
    whole = Manifest.read(run.manifest)
    recorded = scans.read_scans(run.path / scans.FOLDER)
    trained = scans.manifest_of(run.path).sha256s
    tables = {0: whole, **{key: Manifest.from_table(scan.added, whole.classes) for key, scan in recorded.items()}}
    moved = {key: _moved(table, old, new) for key, table in tables.items()}
    count = sum(len(rows) for _, rows in moved.values())
    sources = _moved_sources(run, old, new)
    if not count and not sources:
        _check_known(run, pair, old, new, tables.values())
        return run
    checked = {key: _checked(*each, trained, (run, pair, new), config) for key, each in moved.items() if len(each[1])}
    for key, table in checked.items():
        if key:
            scans.replace_scan(run.path / scans.FOLDER, replace(recorded[key], added=table.table))
        else:
            table.write(run.manifest)
    pairs = (*(run.record.options.get("remap") or ()), f"{old}={new}")
    options = {**run.record.options, **sources, "remap": list(dict.fromkeys(pairs))}
    run = run.update(options=options)
    run.event("images moved", old=old, new=new, count=count)
    reporter.say(f"moved:    {counted(count, 'image')} from {old} to {new}")
    return run


def _moved(manifest: Manifest, old: str, new: str) -> tuple[Manifest, np.ndarray]:
    """Returns the manifest with the paths of the images that have moved, and their rows.

    An image stays where its recorded file is still there and the new folder has none.
    """
    import pyarrow as pa

    table = manifest.table
    after, _ = corrections.with_folder(table, old, new)
    before = table.column("path").to_pylist()
    paths = np.array(after.column("path").to_pylist(), object)
    inside = np.nonzero(paths != np.array(before, object))[0]
    if not len(inside):
        return manifest, inside
    gone = files_now(Manifest.from_table(after.take(pa.array(inside)), manifest.classes))[:, 0] == GONE
    here = files_now(Manifest.from_table(table.take(pa.array(inside)), manifest.classes))[:, 0] != GONE
    rows = inside[~(gone & here)]
    taken = np.array(before, object)
    taken[rows] = paths[rows]
    return Manifest.from_table(_with(table, "path", taken.tolist()), manifest.classes), rows


def _checked(
    manifest: Manifest, rows: np.ndarray, trained: np.ndarray, told: tuple[runs.Run, str, str], config: TrainConfig
) -> Manifest:
    """Returns the manifest with the moved files' versions; compares the content of those that differ.

    Raises:
        ImagesError: none of the files is there, or one that the run uses holds another picture.
    """
    import pyarrow as pa

    (run, pair, new), table = told, manifest.table
    part = Manifest.from_table(table.take(pa.array(rows)), manifest.classes)
    files = files_now(part)
    there = files[:, 0] != GONE
    recorded = np.stack([part.table.column(name).to_numpy() for name in VERSION], axis=1)
    looked = np.nonzero(there & (files != recorded).any(axis=1))[0]
    held = np.array(_sha256s(part.found(looked)), "S64")
    other = looked[held != part.sha256s[looked]]
    used = other[np.isin(part.sha256s[other], trained)]
    given = option("remap", pair)
    if not there.any():
        raise ImagesError(
            f"{given}: none of the {counted(len(rows), 'image')} of {run.path} is in {new}, the first would be "
            f"{part.paths(np.zeros(1, np.int64))[0]}: give the folder where they are now"
        )
    if len(used) and (settings_of(config).on_missing != "drop" or len(other) == int(there.sum())):
        raise ImagesError(
            f"{given}: {len(used):,} of {counted(len(rows), 'file')} in {new} hold other pictures than {run.path} recorded, "
            f"the first is {part.paths(used[:1])[0]}: give the folder of the same images, or restore them"
        )
    same = np.setdiff1d(looked, other)
    for column, name in enumerate(VERSION):
        values = table.column(name).to_numpy().copy()
        values[rows[same]] = files[same, column]
        table = _with(table, name, values)
    return Manifest.from_table(table, manifest.classes)


def _sha256s(listed: list[Found]) -> list[str]:
    """Returns the SHA-256 of each picture; empty for one that cannot be read."""
    hashes = [""] * len(listed)
    packed: dict[tuple[str, str], list[int]] = {}
    for index, found in enumerate(listed):
        if found.coding in STREAM_CODINGS:
            packed.setdefault((found.path, found.coding), []).append(index)
    plain = [index for index, found in enumerate(listed) if found.coding not in STREAM_CODINGS]
    with ThreadPoolExecutor(THREADS) as pool:
        for index, sha256 in zip(plain, pool.map(_sha256, [listed[index] for index in plain]), strict=True):
            hashes[index] = sha256
    for (path, coding), inside in packed.items():
        inside.sort(key=lambda index: listed[index].offset)
        ranges = [(listed[index].offset, listed[index].length) for index in inside]
        for index, sha256 in zip(inside, _of_stream(path, coding, ranges), strict=False):
            hashes[index] = sha256
    return hashes


def _sha256(found: Found) -> str:
    try:
        data = locations.read_range(found.path, found.offset, found.length, found.coding)
    except (OSError, EOFError, ImagesError):
        return ""
    return hashlib.sha256(data).hexdigest()


def _of_stream(path: str, coding: str, ranges: list[tuple[int, int]]) -> Iterator[str]:
    """Yields the SHA-256s of ranges of an archive compressed as a whole; ends at an unreadable one."""
    try:
        for data in locations.read_stream(path, coding, ranges):
            yield hashlib.sha256(data).hexdigest()
    except (OSError, EOFError):
        return


def _check_known(run: runs.Run, pair: str, old: str, new: str, tables: Iterable[Manifest]) -> None:
    """Raises if a pair moves nothing, unless it has been applied before.

    Raises:
        UsageError: no image of the run is in either folder, and the command that began the run did not give the pair.
    """
    paths = [path for table in tables for path in table.table.column("path").to_pylist()]
    if pair in (run.record.given.get("remap") or ()) or any(_inside(path, new) for path in paths):
        return
    raise UsageError(
        f"{option('remap', pair)}: no image of {run.path} is in {old}; the first recorded path is {(paths or ['none'])[0]}"
    )


def _moved_sources(run: runs.Run, old: str, new: str) -> dict[str, list[str]]:
    """Returns the options of the run whose sources are gone from the folder before, with their paths now."""
    found = {}
    for name in SOURCES:
        before = [str(path) for path in run.record.options.get(name) or ()]
        now = [
            f"{new}{path[len(old) :]}" if _inside(path, old) and not locations.exists(path) else path for path in before
        ]
        if now != before:
            found[name] = now
    return found


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Returns the table with other values in one column."""
    import pyarrow as pa

    index = table.column_names.index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))
