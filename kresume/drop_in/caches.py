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

ENDLESS, UNKNOWN = -1, -2
"""Are the values of `cardinality` of tf.data that never end, and of those that do not know."""
AHEAD = ("Parallel", "Prefetch", "Shuffle")
"""How the kinds of steps begin that draw more than what they are asked for."""


def fill(data: Any) -> None:
    """Draws the first order into each cache in memory that lies behind a `shuffle` with a seed.

    Does nothing for a cache that is filled: it is read then, without what follows it. One that repeats for ever is never full,
    and one whose end no epoch reaches draws anew in each.
    """
    for cache in (each for each in _of_shuffled(data) if _is_filled(each, data)):
        with Reporter().waiting("reading the data once, to fill their cache as the first epoch did"):
            for _ in cache:
                pass


def _is_filled(cache: Any, data: Any) -> bool:
    """Tests whether an epoch reaches a cache's end.

    It does not before a `take`, unless a `shuffle` in between asks for all. Else Keras draws to the end, but stops at the count
    of batches if the data know it. If the cache does not know its own, it is full only when a step behind it asks for more:
    TensorFlow adds such a step, unless the caller's options turn that off.
    """
    steps, count = _steps_behind(cache, data), int(cache.cardinality())
    if count == ENDLESS:
        return False
    inner = next((index for index, step in enumerate(steps) if _cuts(step, steps[index - 1] if index else cache)), None)
    if inner is not None:
        return any(_is(step, "ShuffleDataset") and not _is_larger(step) for step in steps[:inner])
    if count != UNKNOWN or int(data.cardinality()) == UNKNOWN:
        return True
    kinds = list(map(_kind, steps))
    return any(kind.startswith(AHEAD) for kind in kinds) or _added_ahead(data.options(), maps="MapDataset" in kinds)


def _steps_behind(cache: Any, data: Any) -> list[Any]:
    """Lists the steps from a cache to the data that are drawn, without the cache."""
    if data is cache:
        return []
    behind = next(part for part in _inputs(data) if any(each is cache for each in _of_shuffled(part)))
    return [*_steps_behind(cache, behind), data]


def _cuts(step: Any, behind: Any) -> bool:
    """Tests for a `take` or `zip` that may end before what lies behind it."""
    available = int(behind.cardinality())
    if _is(step, "ZipDataset"):
        return 0 <= int(step.cardinality()) < available - 1  # it asks each part for one more before it ends
    if not _is(step, "TakeDataset") or (count := int(_constant(step._count))) < 0:
        return False
    return available < 0 or count < available


def _is_larger(shuffle: Any) -> bool:
    """Tests whether a `shuffle` holds fewer elements than there are."""
    return int(_inputs(shuffle)[0].cardinality()) > int(_constant(shuffle._buffer_size))


def _added_ahead(options: Any, *, maps: bool) -> bool:
    """Tests whether TensorFlow adds a step that reads ahead.

    It adds a prefetch at the end, and makes a plain `map` parallel.

    Source: https://www.tensorflow.org/api_docs/python/tf/data/experimental/OptimizationOptions.
    """
    chosen = options.experimental_optimization
    usual = chosen.apply_default_optimizations is not False
    asked = (chosen.inject_prefetch, chosen.map_parallelization if maps else False)
    return options.autotune.enabled is not False and any(usual if each is None else each for each in asked)


def is_shared(one: Any, other: Any) -> bool:
    """Tests for a cache in memory behind a `shuffle` with a seed that is part of both."""
    return any(each is cache for each in _of_shuffled(one) for cache in _of_shuffled(other))


def keeps_order(data: Any) -> bool:
    """Tests for a cache in memory that lies behind a `shuffle` with a seed."""
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
    return _kind(data) == kind


def _kind(data: Any) -> str:
    return type(data).__name__.strip("_")


def _constant(tensor: Any) -> Any:
    return tensor.numpy() if hasattr(tensor, "numpy") else tensor


def _inputs(data: Any) -> list[Any]:
    # The user's own data may have a method of this name.
    inputs = getattr(data, "_inputs", None) if type(data).__module__.startswith("tensorflow.") else None
    return list(inputs()) if callable(inputs) else []
