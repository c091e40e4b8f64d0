"""Fills the caches of the caller's data in the order that the first epoch had.

    fill(data)                  # before the iterators of earlier epochs are made again

`Dataset.cache()` keeps the order in which its first iterator drew. Behind a `shuffle` with a seed that is the first of many, so
a process that continues in a later epoch has to draw from the first one, too. A cache in a file keeps its order by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kresume.reporter import Reporter

ENDLESS = -1
"""Is the `cardinality` of tf.data that never end."""


def fill(data: Any) -> None:
    """Draws the first order into each cache in memory that lies behind a `shuffle` with a seed.

    Does nothing for a cache that is filled: it is read then, without what follows it. One that repeats for ever is never full.
    """
    for cache in (each for each in _of_shuffled(data) if int(each.cardinality()) != ENDLESS):
        with Reporter().waiting("reading the data once, to fill their cache as the first epoch did"):
            for _ in cache:
                pass


def keeps_order(data: Any) -> bool:
    """Tests for a cache in memory that `fill` fills."""
    return next(_of_shuffled(data), None) is not None


def left_locked(data: Any) -> str:
    """Returns the file of a cache that a process left locked as it died; empty without one."""
    file = os.fsdecode(_constant(data._filename)) if _is(data, "CacheDataset") else ""
    path = Path(file)
    if file and not path.with_name(f"{path.name}.index").exists() and any(path.parent.glob(f"{path.name}_*.lockfile")):
        return file
    return next(filter(None, map(left_locked, _inputs(data))), "")


def _of_shuffled(data: Any) -> Iterator[Any]:
    """Yields the caches, the last of several in a row alone: it fills those before it."""
    if _is(data, "CacheDataset") and not _constant(data._filename) and has_shuffle(data):
        yield data
        return
    for part in _inputs(data):
        yield from _of_shuffled(part)


def has_shuffle(data: Any) -> bool:
    """Tests for a `shuffle` with a seed in tf.data."""
    return next(shuffles(data), None) is not None


def shuffles(data: Any) -> Iterator[Any]:
    """Yields each `shuffle` with a seed in tf.data, the last step first."""
    if _is(data, "ShuffleDataset") and (_constant(data._seed) or _constant(data._seed2)):
        yield data
    for part in _inputs(data):
        yield from shuffles(part)


def batch_size(data: Any) -> Any:
    """Returns the size of the batches that tf.data makes last; None if it makes none."""
    inputs = _inputs(data)
    size: Any = getattr(data, "_batch_size", None) if inputs else None
    if size is not None:  # the last step that makes batches
        return _constant(size)
    return batch_size(inputs[0]) if len(inputs) == 1 else None


def _is(data: Any, kind: str) -> bool:
    return type(data).__name__.strip("_") == kind


def _constant(tensor: Any) -> Any:
    return tensor.numpy() if hasattr(tensor, "numpy") else tensor


def _inputs(data: Any) -> list[Any]:
    # The user's own data may have a method of this name.
    inputs = getattr(data, "_inputs", None) if type(data).__module__.startswith("tensorflow.") else None
    return list(inputs()) if callable(inputs) else []
