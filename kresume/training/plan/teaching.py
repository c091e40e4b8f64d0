"""Decides how the parent teaches a run: `--distill`.

check_asked(config, parent)
teaching = decide_teaching(config, loaded)        # None without the option
teacher = take_teacher(draft)                     # before the model is changed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kresume.errors import UsageError
from kresume.images.manifest import Manifest
from kresume.options.settings import DISTILL_TEMPERATURE
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.training.plan.draft import Draft, Loaded
from kresume.training.plan.parent import Parent
from kresume.values.loss import Loss
from kresume.values.teaching import Teaching


@dataclass(frozen=True, eq=False)
class Teacher:
    """The parent as it predicts.

    Attributes:
        architecture: its serialized model.
        arrays: its weights, by index.
    """

    architecture: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


def check_asked(config: TrainConfig, parent: Parent | None) -> None:
    """Checks `--distill` before anything is restored.

    Raises:
        UsageError: there is no parent, or its classes are given up.
    """
    if config.distill is None:
        return
    if parent is None:
        raise UsageError(
            f"{option('distill', config.distill)} keeps a run near its checkpoint, but there is none: give {option('from')}, "
            "or leave it out"
        )
    if config.new_head:
        raise UsageError(
            f"{option('new-head', True)} gives up the classes of the checkpoint, so {option('distill', config.distill)} has no "
            "answers to keep: leave one of them out"
        )


def decide_teaching(config: TrainConfig, loaded: Loaded, manifest: Manifest) -> Teaching | None:
    """Returns how the parent teaches; None without `--distill`.

    Args:
        config: the options.
        loaded: the restored parent.
        manifest: the images.

    Raises:
        UsageError: the model's own training ignores the loss that it is compiled with.
    """
    if config.distill is None:
        return None
    from kresume.models.distill import check_teachable

    check_teachable(loaded.growth.wider if loaded.growth else loaded.live.model)
    classes = tuple(loaded.classes.index(name) for name in loaded.known)
    labels = manifest.labels[manifest.train_rows()]
    gone = loaded.growth is not None and not np.isin(labels, classes).any()
    # A loss of the user's own may be made for the number of classes.
    return Teaching(
        config.distill, classes, Loss(**loaded.answers.as_dict()), new_only=gone and loaded.loss.settings is None
    )


def describe_teaching(teaching: Teaching | None, loaded: Loaded) -> str:
    """Describes the teaching in words; empty if there is none."""
    if teaching is None:
        return ""
    new = f" over its {len(loaded.known)} classes" if len(loaded.classes) > len(loaded.known) else ""
    alone = (
        "; the loss itself is over the new classes, because no image of the others is left" if teaching.new_only else ""
    )
    return (
        f"loss + {teaching.weight:g} x the distance to the checkpoint's answers{new} (temperature {DISTILL_TEMPERATURE:g})"
        f"{alone}; the checkpoint predicts every batch, too, so a step takes about a third longer"
    )


def take_teacher(draft: Draft) -> Teacher | None:
    """Copies the restored parent as it predicts, before the run changes it; None if it does not teach."""
    if draft.teaching is None:
        return None
    from kresume.models import architecture
    from kresume.models.distill import teacher_arrays

    live = draft.loaded.live
    return Teacher(architecture.serialize(live.model), teacher_arrays(live.model, live.optimizer, draft.statistics))
