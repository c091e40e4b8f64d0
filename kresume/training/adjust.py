"""Gives a model its optimizer, learning rate, loss and metrics, alike for new and continued runs.

adjust(live.model, draft.adjustment, restored=live.optimizer)      # a new run
model = rebuild(run, config)                                                        # an interrupted one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kresume.backend.live_state import inner
from kresume.options.given import code_of, given
from kresume.options.table import TrainConfig
from kresume.runs import Run
from kresume.storage import atomic
from kresume.training.plan.rate import keras_rate
from kresume.values.amount import Amount
from kresume.values.card import Card
from kresume.values.rate import RatePlan
from kresume.values.state import SavedOptimizer

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice


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
    from kresume.models import averages, optimizers, schedules, slots

    optimizer = optimizers.make_optimizer(to.optimizer, keras_rate(to.rate, to.iterations))
    _compile(model, optimizer, to)
    if restored is not None:
        slots.carry(restored, model.optimizer)
        if averages.uses_averages(model) and not inner(restored).use_ema:
            averages.start_from_weights(model)
    schedules.wind(model.optimizer)


def rebuild(run: Run, config: TrainConfig) -> Any:
    """Builds and adjusts the model of a run with initial weights; its snapshots fit this model.

    Args:
        run: a new or interrupted run.
        config: its options.

    Returns:
        The compiled model.
    """
    from kresume.models import build
    from kresume.models.losses import from_record
    from kresume.models.own_code import own_code

    record, imports = run.record, code_of(given(config))
    model = build.from_architecture(atomic.read_json(run.architecture), imports=imports, trust=bool(config.trust))
    loss = from_record(record.loss, own_code(None, imports))
    metrics = tuple(config.metric or ())
    adjust(
        model,
        Adjustment(record.optimizer, record.rate, record.iterations, loss, record.card, record.amount, metrics),
    )
    return model


def _compile(model: Any, optimizer: Any, to: Adjustment) -> None:
    from kresume.training.loop import fit

    predict, made = getattr(model, "predict_function", None), _how_it_runs(model)
    model.compile(
        optimizer=optimizer,  # wrapped for loss scaling if the layers need it, whatever the global policy says
        loss=to.loss.keras_loss(),
        loss_weights=to.loss.weight,
        metrics=[*to.loss.keras_metrics(), *to.metrics],
        auto_scale_loss=False,
        steps_per_execution=to.amount.steps_per_execution,
    )
    if made == _how_it_runs(model):
        # Keep the function that scoring the parent traced: tracing again takes seconds.
        model.predict_function = predict
    batch_size = to.amount.batch_size
    labels, dtype = to.loss.target_spec(batch_size, len(to.card.classes))
    fit.build(model, (batch_size, *to.card.input_shape), labels, dtype)


def _how_it_runs(model: Any) -> tuple[Any, ...]:
    """Returns the settings on which Keras's compiled functions depend."""
    return model.jit_compile, model.run_eagerly, model.steps_per_execution
