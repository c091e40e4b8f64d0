"""Records where the images of an interrupted run have moved, as `--remap` says.

start = follow_moves(start, reporter)       # images.parquet and run.json have the current paths

Contents decide the bits of a result, and paths do not: no digest of a manifest has them. The old folders are in `events.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from kresume import runs
from kresume.errors import ImagesError, RunError, UsageError
from kresume.images import corrections, scans
from kresume.images.manifest import Manifest
from kresume.images.remembered import GONE, are_there, contents_now, files_now, files_recorded, with_files
from kresume.images.sources.moves import Moves
from kresume.lock import Lock
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import counted, option
from kresume.storage import locations
from kresume.training.start import Start, continue_run

SOURCES = ("data", "add", "val")


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
    told = (run, pair, new)
    checked = {key: _checked(*each, trained, told, config, reporter) for key, each in moved.items() if len(each[1])}
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
    taken, paths = (np.array(each.column("path").to_pylist(), object) for each in (table, after))
    inside = np.nonzero(paths != taken)[0]
    if not len(inside):
        return manifest, inside
    rows = inside[are_there(Manifest.from_table(after, manifest.classes), inside) | ~are_there(manifest, inside)]
    taken[rows] = paths[rows]
    index = table.column_names.index("path")
    table = table.set_column(index, table.schema.field("path"), pa.array(taken.tolist(), pa.string()))
    return Manifest.from_table(table, manifest.classes), rows


def _checked(
    manifest: Manifest,
    rows: np.ndarray,
    trained: np.ndarray,
    told: tuple[runs.Run, str, str],
    config: TrainConfig,
    reporter: Reporter,
) -> Manifest:
    """Returns the manifest with the moved files' versions; compares the content of those that differ.

    Raises:
        ImagesError: none of the files is there, or one that the run uses holds another picture.
    """
    import pyarrow as pa

    run, pair, new = told
    part = Manifest.from_table(manifest.table.take(pa.array(rows)), manifest.classes)
    files = files_now(part)
    there = files[:, 0] != GONE
    looked = np.nonzero(there & (files != files_recorded(part)).any(axis=1))[0]
    held = contents_now(part, looked, files, run.record.card.spec, None, reporter, writes=False)
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
    now = np.zeros((len(manifest), files.shape[1]), np.int64)
    now[rows] = files
    return with_files(manifest, rows[same], now)


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
