"""Restores a checkpoint that holds no slots for the layers of `--freeze`.

They were frozen when it was written.

    restored, note = with_frozen(config, model, lambda: restore(model))

A file with an architecture says itself what was frozen. Where there is none, the optimizer is first built on every weight
that trains in the model. Only if the file lacks slots, the layers that lack them are frozen before it is restored: slots
that the file does hold for other layers of `--freeze` are kept, for when these train again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kresume.errors import CheckpointError, RestoreError
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.values.freezing import NONE, Freezing

T = TypeVar("T")


def with_frozen(config: TrainConfig, model: Any, restore: Callable[[], T]) -> tuple[T, str]:
    """Restores a checkpoint, if need be with layers of `--freeze` frozen.

    Args:
        config: the options.
        model: built; layers stay frozen if that is needed.
        restore: assigns nothing where it raises.

    Returns:
        What `restore` returns, and a note on the layers that were frozen for it; empty if none were.

    Raises:
        CheckpointError: it cannot be restored in either way.
    """
    try:
        return restore(), ""
    except CheckpointError as error:
        layers = _without_slots(config, model, error)
        if not layers:
            raise
    from kresume.models import freeze

    names = [name for address, (name, _) in freeze.layers_of(model).items() if address in layers]
    freeze.set_frozen(model, Freezing(layers, None), 0)
    restored = restore()
    shown = f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}"
    return restored, f"no slots in the file for layers that {option('freeze')} freezes: {shown}"


def _without_slots(config: TrainConfig, model: Any, error: CheckpointError) -> tuple[str, ...]:
    """Returns the addresses of the layers of `--freeze` for which the file holds no slots, by an error.

    Raises:
        UsageError: a pattern matches nothing.
    """
    from kresume.models import freeze

    if not config.freeze or NONE in config.freeze:
        return ()
    named = freeze.matching(model, config.freeze)
    if not isinstance(error, RestoreError):
        return named  # the number of slots alone is known, and does not fit
    return freeze.closed(model, [address for address in named if address in error.slotless])
