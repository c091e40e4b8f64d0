"""Holds how a step was scored, and predicts the validation images of a run.

scorer = make_scorer(session, cache)
scored = Scored(step, statistics, answers)
answers_of(session, step)               # those of this process, else predicted again
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kresume.evaluation.answers import Answers
from kresume.evaluation.caches import open_cache
from kresume.evaluation.live import LiveScorer
from kresume.images.cache import Cache
from kresume.images.reader import PictureReader
from kresume.models.statistics import Statistics
from kresume.options.resolve import cache_limit

if TYPE_CHECKING:
    from kresume.training.loop.session import Session

WITHOUT = "the scores of this run are computed without it"


@dataclass(frozen=True)
class Scored:
    """How a step was scored.

    Attributes:
        step: the step; -1 for none.
        statistics: those of batch normalisation; empty if the moving averages were used.
        answers: the answers to the validation images; None if another process scored.
    """

    step: int = -1
    statistics: Statistics = field(default_factory=dict)
    answers: Answers | None = None

    def statistics_of(self, step: int) -> Statistics:
        """Returns the statistics of this step; empty if another one was scored."""
        return self.statistics if step == self.step else {}


def make_scorer(session: Session, cache: Cache | None) -> LiveScorer:
    """Returns the scorer of a run's validation images.

    They are those of its start: images that arrive later are scored by the next generation.
    """
    return LiveScorer(
        session.model,
        PictureReader(session.manifest, session.card.spec, cache),
        session.manifest,
        session.card,
        session.loss,
        session.amount.batch_size,
        session.run.generation,
    )


def answers_of(session: Session, step: int) -> Answers:
    """Returns the answers of a step, whose state the model has.

    Predicts again if this process did not score the step, or scored a later one.

    Raises:
        ImagesError: no validation image can be read any more.
    """
    scored = session.scored
    if scored.step == step and scored.answers is not None:
        return scored.answers
    scorer = make_scorer(session, open_cache(session.card.spec, session.settings.cache, cache_limit(session.config)))
    scorer.statistics = scored.statistics_of(step)
    return scorer.score(
        session.reporter,
        "answers of the result",
        on_broken=lambda row, reason: session.changes.broke(session.manifest, row, reason, WITHOUT),
    )[1]
