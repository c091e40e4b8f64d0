"""Measures a few steps before the first one, to say how long a run takes.

estimate(draft, model, teacher, config, reporter)       # None with --no-trial

The steps are those of the run: its pictures, its `fit`, and its compiled function, which the run then uses. Afterwards every
variable and random state is put back to the bit, as if a snapshot of step 0 had been restored.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from kresume.backend import hosts
from kresume.images.tf_data import for_fit
from kresume.options.resolve import cache_limit
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.training.plan.draft import Draft
from kresume.training.plan.teaching import Teacher
from kresume.values.amount import Amount
from kresume.values.estimate import Estimate

FEW, MANY = 2, 20
"""Steps that are measured: more where they are fast."""
ENOUGH_SECONDS = 1.0
"""Measured steps that take as long as this are enough."""
SCORED_SHARE = 0.25
"""Time to predict a picture, as a share of the time to train on it."""


def timed(draft: Draft, model: Any, teacher: Teacher | None, config: TrainConfig, reporter: Reporter) -> Draft:
    """Returns the draft with the time that the run takes, and says it."""
    found = estimate(draft, model, teacher, config, reporter)
    if found is None:
        return draft
    reporter.say(f"time:     {found}")
    return replace(draft, plan=replace(draft.plan, time=found))


def estimate(
    draft: Draft, model: Any, teacher: Teacher | None, config: TrainConfig, reporter: Reporter, *, writes: bool = True
) -> Estimate | None:
    """Measures some steps; the model is as before afterwards.

    Args:
        draft: what was decided.
        model: adjusted to it, at step 0.
        teacher: the parent, if it teaches the run.
        config: the run's options.
        reporter: told what takes long.
        writes: False for `plan`: nothing is written to the cache.

    Returns:
        The estimate; None with `--no-trial`.
    """
    held = settings_of(config)
    if not held.trial or not hosts.joined().alone:  # the steps of one process say nothing about those of several
        return None
    from kresume.backend import live_state
    from kresume.images.mixing import make_order
    from kresume.models import other_variables
    from kresume.training.loop.epochs import statistics_images
    from kresume.training.loop.feed import Feed
    from kresume.training.loop.fit import prepare
    from kresume.training.loop.teaching import parent_teaches

    plan, manifest = draft.plan, draft.data.gathered.manifest
    generation = draft.loaded.generation
    order = make_order(manifest, draft.seed, plan.amount.batch_size, held.mix, config.replay, plan.balance, generation)
    feed = Feed(
        plan.card,
        draft.loaded.loss,
        draft.seed,
        held,
        cache_limit(config),
        reporter,
        lambda *broken: None,
        writes=writes,
    )
    before = live_state.read_state(model)
    names, values = other_variables.capture(model)
    prepare(model.optimizer)
    with (
        live_state.random_kept(),
        parent_teaches(model, draft.teaching, teacher, draft.loaded.loss.head, config) as prepared,
        reporter.waiting("measuring a few steps"),
    ):
        try:
            first, step, tried = _measure(model, prepared(feed.dataset(manifest, order, 0)), plan.amount)
        finally:
            live_state.put_back(model, before)
            other_variables.restore(model, {other_variables.GROUP: names}, {other_variables.GROUP: values})
    epochs, steps = plan.amount.epochs, plan.amount.steps
    trained = steps * step
    pictures = epochs * len(manifest.val_rows())
    if held.bn_stats == "recomputed":
        images = plan.shares.images if plan.shares else len(manifest.train_rows())
        counts = [statistics_images(images, plan.amount.batch_size, last=last) for last in (False, True)]
        pictures += (epochs - 1) * counts[0] + counts[1]
    scored = pictures / plan.amount.batch_size * step * SCORED_SHARE
    thaws = (draft.freezing.until if draft.freezing is not None else None) or 0
    return Estimate(trained + scored, step, tried, max(0.0, first - step), scored / (trained + scored), thaws)


def _measure(model: Any, dataset: Any, amount: Amount) -> tuple[float, float, int]:
    """Returns the seconds of the first step, of a later one, and how many of these were measured."""
    import keras

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            ends.append(time.perf_counter())
            if len(ends) > FEW and ends[-1] - ends[1] > ENOUGH_SECONDS:
                model.stop_training = True

    per_execution = amount.steps_per_execution
    calls = max(FEW + 1, min(MANY, amount.steps // per_execution))
    ends = [time.perf_counter()]
    with for_fit(dataset) as batches:
        model.fit(
            batches,
            epochs=1,
            steps_per_epoch=calls * per_execution,
            callbacks=[Clock()],
            verbose=0,
            shuffle=False,
        )
    model.stop_training = False
    tried = (len(ends) - 2) * per_execution
    return ends[1] - ends[0], (ends[-1] - ends[1]) / tried, tried
