"""Gives a model its outputs for new classes, its optimizer, learning rate, loss and metrics.

draft = grow(draft, reporter)                                                       # a new run with new classes
adjust(live.model, draft.adjustment, restored=live.optimizer)      # a new run
model = rebuild(run, config)                                                        # an interrupted one
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.backend import live_state, tpu
from kresume.backend.live_state import inner
from kresume.checkpoints import sealed_arrays
from kresume.images.inputs import to_input
from kresume.images.order import permutation
from kresume.images.pipeline import scoring_batches
from kresume.options.given import code_of, given
from kresume.options.settings import IMPRINT_IMAGES, IMPRINT_OLD_IMAGES
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.runs import Run
from kresume.storage import sealed
from kresume.training.plan.draft import Draft
from kresume.training.plan.growth import Growth
from kresume.training.plan.parent import Parent
from kresume.training.plan.rate import keras_rate
from kresume.values.amount import Amount
from kresume.values.card import Card
from kresume.values.freezing import Freezing
from kresume.values.rate import RatePlan
from kresume.values.state import SavedOptimizer

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice
    from kresume.models.statistics import Statistics


@dataclass(frozen=True)
class Adjustment:
    """Optimizer, rate, loss and amount that a model is adjusted to.

    Attributes:
        optimizer: class and config of the optimizer that trains.
        rate: the learning rate.
        iterations: the optimizer's count when the run begins.
        loss: the loss that trains.
        card: the model card.
        amount: how much is trained.
        metrics: names of further Keras metrics.
    """

    optimizer: SavedOptimizer
    rate: RatePlan
    iterations: int
    loss: LossChoice
    card: Card
    amount: Amount
    metrics: tuple[str, ...] = ()


def adjust(model: Any, to: Adjustment, *, restored: Any = None) -> None:
    """Compiles a model with its optimizer at the planned rate, and creates every variable of both.

    Args:
        model: the built model.
        to: what trains it.
        restored: the checkpoint's optimizer, whose slots and `iterations` are copied; None for a run whose snapshot will
            be assigned.
    """
    from kresume.models import averages, optimizers, schedules, slots, weight_decay

    optimizer = optimizers.make_optimizer(to.optimizer, keras_rate(to.rate, to.iterations))
    weight_decay.settle(optimizer, model)
    _compile(model, optimizer, to)
    if restored is not None:
        slots.carry(restored, model.optimizer)
        if averages.uses_averages(model) and not inner(restored).use_ema:
            averages.start_from_weights(model)
    schedules.wind(model.optimizer)


def grow(draft: Draft, reporter: Reporter) -> Draft:
    """Gives the restored model the outputs of new classes; does nothing if no class is new.

    Args:
        draft: what was decided.
        reporter: shown progress.

    Returns:
        The draft with the grown model and its optimizer.
    """
    growth, live = draft.loaded.growth, draft.loaded.live
    if growth is None:
        return draft
    from kresume.models import grow as growing

    features = _features(draft, growth, reporter) if growth.rows == "imprinted" else None
    rows = growing.new_rows(growth.head, features, len(growth.new), draft.seed)
    optimizer = growing.fill(
        live.model,
        live.optimizer,
        growth.head,
        growth.wider,
        growth.wider_head,
        live.saved,
        rows,
        replaces=growth.replaces,
    )
    grown = replace(live, model=growth.wider, optimizer=optimizer)
    return replace(draft, loaded=replace(draft.loaded, live=grown))


def _features(draft: Draft, growth: Growth, reporter: Reporter) -> np.ndarray:
    """Returns the mean features of every class over a sample of its training images."""
    from kresume.models.grow import mean_features

    data, classes = draft.data, draft.data.card.classes
    rows = data.gathered.manifest.train_rows()
    labels = data.gathered.manifest.labels[rows].astype(np.int64)
    chosen = []
    for number in range(len(classes)):
        mine = np.nonzero(labels == number)[0]
        most = IMPRINT_IMAGES if number >= len(growth.before) else IMPRINT_OLD_IMAGES // max(1, len(growth.before))
        chosen.append(mine[permutation(draft.seed, 0, len(mine))[: max(1, min(most, IMPRINT_IMAGES))]])
    sample = np.concatenate(chosen)
    to_model = to_input(data.card.pixels, data.card.input)
    batches = scoring_batches(data.reader, rows[sample], draft.plan.amount.batch_size, to_model)
    with reporter.progress("features of the classes", len(sample), "images") as advance:
        live = draft.loaded.live
        return mean_features(
            live.model,
            growth.head,
            batches,
            labels[sample],
            len(classes),
            draft.statistics,
            advance,
            live.optimizer,
        )


def freeze(
    model: Any, to: Adjustment, freezing: Freezing | None, statistics: Statistics, parent: Run | None = None
) -> dict[str, np.ndarray]:
    """Freezes layers of an adjusted model; its optimizer then has slots for the others alone.

    Args:
        model: compiled and built.
        to: what trains it.
        freezing: which layers, and until when; None freezes nothing.
        statistics: those of batch normalisation with which the parent predicts. A frozen layer predicts with them in
            training, too, so they replace its moving averages, which trail the weights.
        parent: the run that is extended, which holds the slots of layers that it froze and never let train again; None if
            slots start fresh.

    Returns:
        The slots of the frozen weights, which `thaw` needs. Those that the parent holds for layers that stay frozen are
        among them.
    """
    if freezing is None:
        return {}
    from kresume.models import averages
    from kresume.models import freeze as freezer
    from kresume.models.statistics import assign_statistics

    held = freezer.held_slots(model, model.optimizer, freezing.frozen(0))
    before = model.optimizer
    frozen = freezer.variables_of(model, freezing.frozen(0))
    if averages.uses_averages(model):  # a frozen layer is the one that the checkpoint predicts with
        averages.use_averages(before, frozen)
    own = [id(variable) in frozen for variable in model.non_trainable_variables]
    assign_statistics(model, {place: array for place, array in statistics.items() if own[place]})
    freezer.set_frozen(model, freezing, 0)
    adjust(model, to, restored=before)
    waiting: dict[str, np.ndarray] = {}
    if parent is not None:
        classes = [str(each.class_name) for each in (parent.record.optimizer, to.optimizer)]
        waiting = freezer.held_for(_read_held(parent.held), *classes)
        batches = parent.record.optimizer.batches, to.optimizer.batches
        waiting = freezer.regrouped(waiting, *batches, frozen_at=parent.record.iterations)
    frozen_at = parent.record.iterations if parent is not None and waiting else to.iterations
    if freezing.thawed(0):
        freezer.give_back(model, model.optimizer, waiting, freezing.first, frozen_at)
    if not freezing.until:
        return {}
    return freezer.held_longer(waiting, held, freezing.first, model, to.iterations - frozen_at)


def adjusted(draft: Draft, config: TrainConfig) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns the restored model with all that the plan decided, and the slots of frozen layers."""
    live, loss, plan = draft.loaded.live, draft.loaded.loss, draft.plan
    metrics = tuple(config.metric or ())
    to = Adjustment(draft.optimizer, plan.rate, live.iterations, loss, plan.card, plan.amount, metrics)
    adjust(live.model, to, restored=live.optimizer)
    parent = draft.loaded.parent
    if parent is not None and live.kept:
        _scale_momentum(live.model.optimizer, to, -float(parent.state.records.get("scale", 0.0)))
    run = parent.run if parent is not None and not (config.optimizer or "").endswith(":reset") else None
    return live.model, freeze(live.model, to, draft.freezing, draft.statistics, run)


def _scale_momentum(optimizer: Any, to: Adjustment, before: float) -> None:
    """Scales the momentum of PyTorch's SGD to the rate of the first step.

    PyTorch multiplies its momentum by the rate of each step, so a new rate takes effect at once. Keras's momentum holds steps
    at the rate of their time.

    Args:
        optimizer: adjusted.
        to: what trains the model.
        before: the rate at which the restored momentum was converted; 0 for one that needs no rate.
    """
    if before <= 0.0 or type(inner(optimizer)).__name__ != "SGD":
        return
    rate = keras_rate(to.rate, to.iterations)
    first = float(rate(to.iterations)) if callable(rate) else float(rate)
    for momentum in getattr(inner(optimizer), "momentums", None) or ():
        if momentum is not None:
            value = live_state.host_array(momentum.value)
            momentum.assign((value * (first / before)).astype(value.dtype))


def carry_others(model: Any, parent: Parent | None, reporter: Reporter) -> None:
    """Restores the variables of the parent that its code keeps beside those of Keras.

    Args:
        model: adjusted: its loss may keep some, too.
        parent: the checkpoint; None for a new model.
        reporter: told which ones begin with their first values.
    """
    from kresume.models import other_variables
    from kresume.training.loop.fit import groups_of

    if parent is None:
        return
    groups = groups_of(parent.state) if other_variables.GROUP in parent.state.records else {}
    for note in other_variables.restore(model, parent.state.records, groups):
        reporter.say(f"note: {note}")


def thaw(model: Any, run: Run, config: TrainConfig) -> None:
    """Lets the layers train that were frozen for the first epochs, and gives their slots back.

    Args:
        model: of the run, as `rebuild` or `freeze` left it.
        run: its run, whose recorded architecture follows.
        config: its options.
    """
    from kresume.models import architecture, slots
    from kresume.models import freeze as freezer

    freezing = run.record.freezing
    if freezing is None or freezing.until is None:
        return
    before = model.optimizer
    freezer.set_frozen(model, freezing, freezing.until)
    adjust(model, _recorded(run, config), restored=before)
    rate, fresh = slots.rate_variable(before), slots.rate_variable(model.optimizer)
    if rate is not None and fresh is not None:
        fresh.assign(live_state.host_array(rate.value))  # a plateau may have changed it
    held = _read_held(run.held)
    freezer.give_back(model, model.optimizer, held, freezing.first, run.record.iterations)
    sealed.write(run.architecture, architecture.serialize(model))


def _read_held(file: Path) -> dict[str, np.ndarray]:
    """Reads the slots that a run holds for its frozen layers; empty if it holds none."""
    return sealed_arrays.read(file) if file.is_file() else {}


def rebuild(run: Run, config: TrainConfig) -> Any:
    """Builds and adjusts the model of a run with initial weights; its snapshots fit this model.

    Args:
        run: a new or interrupted run.
        config: its options.

    Returns:
        The compiled model.
    """
    from kresume.models import build
    from kresume.models.freeze import set_frozen

    imports = code_of(given(config))
    model = build.from_architecture(run.read_architecture(), imports=imports, trust=bool(config.trust))
    if run.record.freezing is not None:
        set_frozen(model, run.record.freezing, 0)
    adjust(model, _recorded(run, config))
    return model


def _recorded(run: Run, config: TrainConfig) -> Adjustment:
    """Returns what a run is adjusted to."""
    from kresume.models.losses import from_record
    from kresume.models.own_code import own_code

    record = run.record
    loss = from_record(record.loss, own_code(None, code_of(given(config))))
    metrics = tuple(config.metric or ())
    return Adjustment(record.optimizer, record.rate, record.iterations, loss, record.card, record.amount, metrics)


def _compile(model: Any, optimizer: Any, to: Adjustment) -> None:
    import keras

    from kresume.models.keras_metrics import own_metrics
    from kresume.training.loop import fit

    predict, made = getattr(model, "predict_function", None), _how_it_runs(model)
    model.compile(
        optimizer=optimizer,  # wrapped for loss scaling if the layers need it, whatever the global policy says
        loss=to.loss.keras_loss(),
        loss_weights=to.loss.weight,
        metrics=[*to.loss.keras_metrics(), *own_metrics(to.metrics, to.loss.head, to.loss.form)],
        auto_scale_loss=False,
        steps_per_execution=to.amount.steps_per_execution,
        # A TPU compiles the whole step itself, and fails on parts that are compiled already.
        jit_compile=False if tpu.on_tpu() else "auto",
    )
    if made == _how_it_runs(model) and keras.distribution.distribution() is None:
        # Keep the function that scoring the parent traced: tracing again takes seconds. For several devices it is bound to
        # the number of weights that train.
        model.predict_function = predict
    batch_size = to.amount.batch_size
    labels, dtype = to.loss.target_spec(batch_size, len(to.card.classes))
    fit.build(model, (batch_size, *to.card.input_shape), labels, dtype)


def _how_it_runs(model: Any) -> tuple[Any, ...]:
    """Returns the settings on which Keras's compiled functions depend."""
    return model.jit_compile, model.run_eagerly, model.steps_per_execution
