"""Mixes the weights with which a run began into its result: `--average F|auto`.

    averaged = average(session, step, scores)      # None if the result stays as it was trained

The average of the weights before and after a fine-tuning often answers better than either, on the old images above all
(Wortsman et al. 2022, https://arxiv.org/abs/2109.01903). Its snapshot stands beside those of the training, which it does not
change: a process that was killed meanwhile averages again, from the same two states, with the same result.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kresume.backend import live_state
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, ImagesError, Stopped
from kresume.evaluation.caches import open_cache
from kresume.evaluation.score import flatten
from kresume.images.reader import PictureReader
from kresume.models import structure
from kresume.models.between import Between
from kresume.models.freeze import frozen_as_saved
from kresume.models.keras_metrics import better
from kresume.models.statistics import GROUP
from kresume.options.resolve import cache_limit
from kresume.spelling import in_percent
from kresume.training.loop.fit import groups_of
from kresume.training.loop.scored import Scored, make_scorer
from kresume.training.loop.scoring import score_model
from kresume.training.plan.judging import chooser
from kresume.values.state import TrainState

if TYPE_CHECKING:
    from kresume.training.loop.session import Session

SHARES = (0.25, 0.5, 0.75)
"""The shares that `auto` tries beside 0, the result as it was trained: few enough that the best of them is not the luckiest."""


@dataclass(frozen=True)
class Tried:
    """A share that was scored.

    Attributes:
        share: of the weights with which the run began.
        scores: on the validation images.
        scored: how it was scored.
    """

    share: float
    scores: Mapping[str, Any]
    scored: Scored


def average(session: Session, step: int, scores: Mapping[str, Any]) -> Tried | None:
    """Assigns the average to the model, and writes its snapshot.

    Args:
        session: training is done; its model has the state of the step that is the result.
        step: of the result.
        scores: of this step.

    Returns:
        The average; None if the result stays as it was trained: it is best so, or nothing was asked. Where a snapshot is
        damaged or the images are gone, that is recorded as a failure.

    Raises:
        Stopped: a signal requested it; everything that training wrote is safe.
    """
    shutil.rmtree(session.run.averaged, ignore_errors=True)  # a process that was killed left it
    if not session.average:
        return None
    try:
        began, trained = (
            snapshot.read_snapshot(snapshot.snapshot_path(session.run.snapshots, each)) for each in (0, step)
        )
        between = Between(session.model, began)
    except CheckpointError as error:
        _not_averaged(session, str(error))
        return None
    try:
        tried = list(_scored(session, between, step))
    except ImagesError as error:  # the drive of the images is gone; the model and its scores are not
        between.assign(0.0)
        _not_averaged(session, str(error))
        return None
    by_share = {0.0: scores} | {each.share: each.scores for each in tried}
    share = _best(session, by_share)
    between.assign(share or 0.0)
    if share is None:
        _not_averaged(session, "its predictions are no numbers")
        return None
    _tell(session, by_share, share)
    best = next((each for each in tried if each.share == share), None)
    if best is None:
        return None
    session.scored = best.scored
    _write(session, trained, best)
    return best


def _not_averaged(session: Session, reason: str) -> None:
    """Records why the result stays as it was trained."""
    session.writer.record_failure("the average with the checkpoint", f"{reason}: the result is as it was trained")


def _scored(session: Session, between: Between, step: int) -> Iterator[Tried]:
    """Assigns and scores each share."""
    spec, cache = session.card.spec, session.settings.cache
    pictures = open_cache(spec, cache, cache_limit(session.config))
    scorer = make_scorer(session, pictures)
    reader = PictureReader(session.passes.manifest, spec, pictures)
    last = len(session.passes.boundaries) - 1  # its statistics may use as many images as they need

    def stop_if_asked() -> None:
        # Not as between two steps: a snapshot of this moment would hold weights that no training had.
        if session.stop.signal is not None:
            text = f"stopped while averaging after step {session.progress.step:,}, its snapshot is safe"
            raise Stopped(text, session.stop.exit_code)

    for share in SHARES if session.average == "auto" else (session.average,):
        between.assign(share)
        scores, scored = score_model(session, scorer, reader, last, stop_if_asked)
        yield Tried(share, scores, replace(scored, step=step))


def _best(session: Session, by_share: Mapping[float, Mapping[str, Any]]) -> float | None:
    """Returns the share to use; None if no predictions are numbers.

    What meets the gates is better than what does not. Then the metric decides, and of equals the smallest share. The result as
    it was trained has the scores that its epoch had, because those are what it would be delivered with.
    """
    asked = [share for share in by_share if share or session.average == "auto"]
    usable = [share for share in asked if math.isfinite(by_share[share]["all"]["loss"] or 0.0)]
    name, before = chooser(session.config), session.run.record.before
    sign = 1.0 if better(name, session.config.metric or ()) == "max" else -1.0

    def worth(scores: Mapping[str, Any]) -> tuple[bool, float]:
        return not session.gates.failures(scores, before), sign * flatten(scores).get(name, -sign * math.inf)

    return max(usable, key=lambda share: worth(by_share[share]), default=None)


def _tell(session: Session, by_share: Mapping[float, Mapping[str, Any]], best: float) -> None:
    """Shows and records what each share gives."""
    name = chooser(session.config)
    values = {share: flatten(scores).get(name) for share, scores in by_share.items()}
    shown = ", ".join(f"{in_percent(each)} {value:.4g}" for each, value in values.items() if value is not None)
    why = f" ({name}: {shown})" if shown else ""
    chosen = "chosen: " if session.average == "auto" else ""
    session.reporter.say(f"average: {chosen}{in_percent(best)} of the checkpoint's weights{why}")
    session.run.event("averaged", share=best, metric=name, tried={f"{each:g}": value for each, value in values.items()})


def _write(session: Session, trained: TrainState, best: Tried) -> None:
    """Writes the snapshot of the average: as that of its step, with other weights and their statistics."""
    model = session.model
    listed = [id(variable) for variable in model.non_trainable_variables]
    with frozen_as_saved(model, trained):  # layers that trained later only have slots of another epoch now
        state, described = live_state.read_state(model), structure.describe(model)
        places = {id(variable): place for place, variable in enumerate(model.non_trainable_variables)}
    statistics = {places[listed[place]]: array for place, array in best.scored.statistics.items()}
    own = [place for place, (_, _, *frozen) in enumerate(described["optimizer"]) if not frozen]
    state["optimizer"] = [state["optimizer"][place] for place in own]
    described["optimizer"] = [described["optimizer"][place] for place in own]
    groups = {**groups_of(trained), **{name: state[name] for name in ("trainable", "non_trainable", "optimizer")}}
    groups = {name: arrays for name, arrays in groups.items() if name != GROUP}
    if statistics:
        groups[GROUP] = list(statistics.values())
    records = {
        **trained.records,
        GROUP: list(statistics),
        structure.RECORD: described,
        snapshot.AVERAGE: best.share,
    }
    session.lock.check()
    snapshot.write_snapshot(session.run.averaged, best.scored.step, groups, records)
