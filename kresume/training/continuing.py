"""Checks that the images of an interrupted run are what they were when it began.

check_dropped("drop.txt", manifest, "runs/2-signs")
check_sources(config, run, manifest)
"""

from __future__ import annotations

import numpy as np

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import ImagesError, UsageError
from kresume.evaluation.caches import open_cache
from kresume.images import corrections
from kresume.images.manifest import Manifest
from kresume.images.remembered import are_there
from kresume.options.resolve import cache_limit
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.spelling import counted, option


def check_dropped(drop: str, manifest: Manifest, run: str) -> None:
    """Checks that a run that is continued has no image that its file of `--drop` names today.

    Args:
        drop: the file.
        manifest: the images of the run.
        run: its path, for the message.

    Raises:
        UsageError: the file was edited since: the run would train on what is to be forgotten.
    """
    hashes, _ = corrections.hashes_in(corrections.read_drop(drop), manifest)
    if count := len(hashes & {sha256.decode() for sha256 in manifest.sha256s.tolist()}):
        raise UsageError(
            f"{option('drop', drop)} names {counted(count, 'image')} that {run} trains or scores on, so the file was "
            f"edited since the run began: restore the file to continue, or begin a run without them in another {option('out')}"
        )


def check_sources(config: TrainConfig, run: runs.Run, manifest: Manifest) -> None:
    """Checks that no source of an interrupted run is gone as a whole, as on a drive that is not mounted.

    With `--on-missing drop` a source may be, but not all that the run trains on.

    A single file that is gone is named when it is read, and leaves at the next epoch: an unattended run goes on. A whole
    source would leave in the same way, and with it all that the run was begun for.

    Args:
        config: the options of the command.
        run: the run to continue.
        manifest: its images.

    Raises:
        ImagesError: none of the files of a source is there, and not all of its images are in the cache; or no training image
            can be read.
    """
    if _is_trained(run):
        return
    cache = open_cache(run.record.card.spec, settings_of(config).cache, cache_limit(config), writes=False)
    uncached = np.ones(len(manifest), bool) if cache is None else cache.find(manifest.sha256s) < 0
    if settings_of(config).on_missing == "drop":
        rows = manifest.train_rows()
        if uncached[rows].all() and not are_there(manifest, rows).any():
            raise ImagesError(
                f"none of the {counted(len(rows), 'training image')} of {run.path} is there or in the cache, the first is "
                f"{manifest.paths(rows[:1])[0]}: {option('on-missing', 'drop')} would leave nothing to train on. Restore them, "
                f"or give {option('remap', 'OLD=NEW')} if their folder was moved or renamed"
            )
        return
    sources = np.array(manifest.table.column("source").to_pylist(), object)
    for source in sorted(set(sources[uncached].tolist())):
        rows = np.nonzero(sources == source)[0]
        if are_there(manifest, rows).any():
            continue
        raise ImagesError(
            f"none of the {counted(len(rows), 'image')} that {run.path} has from {source} is there, and "
            f"{int(uncached[rows].sum()):,} of them are not in the cache: is its drive mounted? Restore them to continue, give "
            f"{option('remap', 'OLD=NEW')} if their folder was moved or renamed, or {option('on-missing', 'drop')} to go on "
            "without them"
        )


def _is_trained(run: runs.Run) -> bool:
    """Returns True if the newest snapshot is of the end of training, so that nothing is left to learn."""
    taken = snapshot.list_snapshots(run.snapshots)
    return bool(taken) and snapshot.records_of(taken[-1][1]).get("phase") == "done"
