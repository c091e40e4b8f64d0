"""Holds what is decided before the first step, with the objects in memory that carry it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kresume.evaluation.answers import Answers
from kresume.images.collect import Sources
from kresume.images.reader import PictureReader
from kresume.training.plan.feeding import Feeding
from kresume.training.plan.growth import Growth
from kresume.training.plan.images import Gathered
from kresume.training.plan.parent import Live, Parent
from kresume.training.plan.plan import Plan
from kresume.values.card import Card
from kresume.values.freezing import Freezing
from kresume.values.state import SavedOptimizer
from kresume.values.teaching import Teaching

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice
    from kresume.models.statistics import Statistics


@dataclass(frozen=True)
class Loaded:
    """The model that training starts from.

    Attributes:
        parent: the checkpoint, None for a new model.
        live: the model with every variable restored.
        classes: names of the outputs that the run will have, in order.
        classes_reason: where their order comes from.
        loss: the loss that trains.
        unused_metrics: names of the checkpoint's metrics that are not computed.
        generation: the generation of the new run.
        growth: the classes that this run adds; None if it adds none.
        pretrained: True for a new model with given weights below its head.
    """

    parent: Parent | None
    live: Live
    classes: tuple[str, ...]
    classes_reason: str
    loss: LossChoice
    unused_metrics: tuple[str, ...]
    generation: int
    growth: Growth | None = None
    pretrained: bool = False

    @property
    def fresh_head(self) -> bool:
        """Returns True if a new head stands on trained layers."""
        return self.pretrained or (self.growth is not None and self.growth.replaces)

    @property
    def known(self) -> tuple[str, ...]:
        """Returns the classes that the restored model knows."""
        return self.growth.before if self.growth else self.classes

    @property
    def answers(self) -> LossChoice:
        """Returns the loss that says how the restored model answers."""
        return self.growth.answers if self.growth else self.loss


@dataclass(frozen=True)
class Data:
    """The images that the run trains and validates on.

    Attributes:
        sources: the listed files that the images come from.
        gathered: the images of old and new sources in one manifest.
        feeding: how pictures are fed to the model.
        reader: reads decoded pictures by row of the manifest.
        card: the model card of the run.
    """

    sources: Sources
    gathered: Gathered
    feeding: Feeding
    reader: PictureReader
    card: Card


@dataclass(frozen=True)
class Before:
    """How the parent does on the validation images.

    Attributes:
        scores: its scores; None for a new model, and for a new head.
        answers: its answers, which the scores are computed from.
        statistics: those of batch normalisation with which it was scored; empty for its moving averages.
    """

    scores: Mapping[str, Any] | None = None
    answers: Answers | None = None
    statistics: Statistics = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """A plan, and the objects in memory that carry it out.

    Attributes:
        plan: the decisions that are printed and recorded in `run.json`.
        loaded: the model that training starts from.
        data: the images.
        optimizer: class and config of the optimizer that trains.
        freezing: which layers do not train; None if all train that do so in the checkpoint.
        teaching: how the parent teaches the run; None if it does not.
        seed: of the order, and of what is drawn at the start.
        before: how the parent does.
    """

    plan: Plan
    loaded: Loaded
    data: Data
    optimizer: SavedOptimizer
    freezing: Freezing | None
    teaching: Teaching | None
    seed: int
    before: Before = field(default_factory=Before)

    @property
    def statistics(self) -> Statistics:
        """Returns the statistics with which the parent was scored; empty for its moving averages."""
        return self.before.statistics
