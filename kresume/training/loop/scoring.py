"""Scores the validation images after an epoch, and stops a training whose predictions are no numbers.

scores, flat = score_step(session, scorer, reader)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kresume.backend import hosts, live_state
from kresume.checkpoints import snapshot
from kresume.errors import NotFinite
from kresume.evaluation.live import LiveScorer
from kresume.evaluation.score import flatten
from kresume.images.reader import PictureReader
from kresume.models.statistics import GROUP
from kresume.training.loop.scored import WITHOUT, Scored

if TYPE_CHECKING:
    from kresume.training.loop.session import Session


class _Asked(Exception):
    """A signal asked to stop while other weights are swapped in."""


def score_step(session: Session, scorer: LiveScorer, reader: PictureReader) -> tuple[dict[str, Any], dict[str, float]]:
    """Scores the current step, with statistics recomputed for it.

    A signal is answered after the scorer has put the weights and statistics of training back: it predicts with others.

    Args:
        session: its model is scored; `session.scored` is set.
        scorer: predicts the validation images.
        reader: reads training images, for the statistics.

    Returns:
        The scores, nested and by flat names.

    Raises:
        Stopped: a signal requested it; a snapshot was written.
        NotFinite, TrainingError: the predictions are not numbers.
    """

    def raise_if_asked() -> None:
        # Several processes predict together, so that none may leave before the end.
        if session.stop.signal is not None and hosts.this().alone:
            raise _Asked

    try:
        scores, session.scored = score_model(session, scorer, reader, session.progress.epoch, raise_if_asked)
    except _Asked:
        session.poll("scoring")
        raise
    scores = hosts.decided(lambda: scores)  # equal to the bit also where processors are not
    _check_scores(session, scores)
    return scores, flatten(scores)


def score_model(
    session: Session, scorer: LiveScorer, reader: PictureReader, epoch: int, poll: Callable[[], None]
) -> tuple[dict[str, Any], Scored]:
    """Scores the weights that the model has, with statistics recomputed for them.

    Args:
        session: of the run.
        scorer: predicts the validation images.
        reader: reads training images, for the statistics.
        epoch: whose first images the statistics are recomputed from, counted from 0.
        poll: called after each batch; may raise.

    Returns:
        The scores, and how the step was scored.
    """
    if session.run.record.statistics == "recomputed":
        rows = session.passes.rows_of_statistics(epoch)
        with session.reporter.progress("statistics of batch normalisation", len(rows), "images") as advance:

            def counted(count: int) -> None:
                advance(count)
                poll()

            scorer.recompute(reader, rows, counted)
    scores, answers = scorer.score(
        session.reporter,
        "scoring",
        poll=poll,
        on_broken=lambda row, reason: session.changes.broke(session.manifest, row, reason, WITHOUT),
    )
    return scores, Scored(session.progress.step, scorer.statistics, answers)


def _check_scores(session: Session, scores: Mapping[str, Any]) -> None:
    """Raises if the validation loss is not a number: the highest of outputs that are none means nothing."""
    loss = scores["all"]["loss"]
    if loss is None or math.isfinite(loss):
        return
    groups = live_state.read_state(session.model)
    groups[GROUP] = list(session.scored.statistics.values())
    if broken := snapshot.broken_arrays(groups, session.not_finite):
        raise NotFinite(broken, session.progress.step)
    raise session.broke(f"the loss of the validation images became {loss}")
