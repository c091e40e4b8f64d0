"""Estimates the disk space that a run needs: its snapshots, and decoded images in the cache.

describe_disk(live, 1173, card.spec, config, extends=True)     # "3 snapshots of 1.2 MB; 14 MB in the cache ..."
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from kresume.backend.live_state import inner
from kresume.options.resolve import average_of, parse_bytes
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.spelling import in_bytes
from kresume.training.plan.parent import Live
from kresume.values.decode_spec import DecodeSpec


def describe_disk(live: Live, images: int, spec: DecodeSpec, config: TrainConfig, *, extends: bool) -> str:
    """Describes the space for snapshots and for decoded images.

    Args:
        live: the model with its optimizer.
        images: the images of the run, all of them decoded to the same size.
        spec: how they are decoded.
        config: the options.
        extends: True if there is a parent, whose weights may be mixed into the result.
    """
    variables = [*live.model.variables, *live.optimizer.variables, *_slots_to_come(live, config)]
    snapshot = sum(math.prod(variable.shape) * _bytes(str(variable.dtype)) for variable in variables)
    held = settings_of(config)
    kept = held.keep + (2 if extends and average_of(config) else 0)  # the first one, and the average
    words = [f"{kept:,} snapshot{'s' * (kept > 1)} of {in_bytes(snapshot)}"]
    if held.cache != "off":
        decoded, limit = images * spec.height * spec.width * 3, parse_bytes(held.cache_limit)
        words.append(
            f"{in_bytes(decoded)} of decoded images in the cache"
            if decoded <= limit
            else f"no room for {in_bytes(decoded)} of decoded images in a cache of {in_bytes(limit)}"
        )
    return ", ".join(words)


def _slots_to_come(live: Live, config: TrainConfig) -> Iterator[Any]:
    """Yields the weights, once for each kind of slot that the options add to the optimizer."""
    optimizer = inner(live.optimizer)
    if config.ema and not optimizer.use_ema:
        yield from live.model.trainable_variables
    if (config.accumulate or 1) > 1 and not optimizer.gradient_accumulation_steps:
        yield from live.model.trainable_variables


def _bytes(dtype: str) -> int:
    bits = "".join(character for character in dtype if character.isdigit())
    return int(bits) // 8 if bits else 1
