"""Finds the names of classes that are known before the images are listed.

known_classes(config, None)            # those of the options and of a run's record
"""

from __future__ import annotations

from kresume.checkpoints.run import recorded_classes
from kresume.class_names import read_classes
from kresume.class_renames import read_renames
from kresume.options.table import TrainConfig
from kresume.training.plan.parent import Parent


def known_classes(config: TrainConfig, parent: Parent | None) -> tuple[str, ...]:
    """Returns the names of classes that are known without the images.

    A single top folder of such a name is a class.

    Args:
        config: the options.
        parent: the checkpoint; None if it was not read yet, then what a run records is read.
    """
    names = read_classes(config.classes) if config.classes is not None else ()
    if isinstance(config.grow, tuple):
        names += config.grow
    renames = read_renames(config.rename)
    names += (*renames, *renames.values())
    if config.new_head or config.from_ is None:
        return names
    if parent is None:
        return (*names, *recorded_classes(config.from_))
    pinned = parent.card.classes if parent.card is not None else ()
    return (*names, *(pinned or tuple(parent.state.records.get("classes") or ())))
