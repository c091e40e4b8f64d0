"""Keeps the averages (EMA) with which a checkpoint predicts, where its optimizer starts fresh.

saved, optimizer, note = keep_averages(model, parent.state, saved, optimizer, own, config.ema)

Keras stores the averages among the optimizer's variables, but they are no state of it: they are the model that was scored.
"""

from __future__ import annotations

from typing import Any

from kresume.backend import live_state
from kresume.errors import RestoreError
from kresume.values.state import SavedOptimizer, TrainState


def keep_averages(
    model: Any, state: TrainState, saved: SavedOptimizer, optimizer: Any, own: Any, ema: float | None
) -> tuple[SavedOptimizer, Any, str]:
    """Restores the averages of a checkpoint whose optimizer starts fresh (`--optimizer NAME:reset`).

    With `--ema` they are those of the new optimizer; else they become the weights.

    Args:
        model: built, with the checkpoint's weights.
        state: the checkpoint.
        saved: the new optimizer.
        optimizer: the same, built on the model.
        own: the optimizer that the user's model function compiled, if any.
        ema: `--ema`, or the parent run's.

    Returns:
        The new optimizer's description and the optimizer, with averages if it keeps some, and a note for the plan.
    """
    from kresume.models import averages, optimizers, saved_optimizer, structure
    from kresume.models.restore import restore_averages

    stored = saved_optimizer.named_or_compiled(state, own)
    if stored is None or not (stored.config or {}).get("use_ema"):
        return saved, optimizer, ""
    before = saved_optimizer.build_optimizer(model, state, stored, weights=structure.can_train(model))
    try:
        restore_averages(model, state, before)
    except RestoreError as error:
        return saved, optimizer, f"its averages (EMA) are lost, so its raw weights go on ({error})"
    if ema is None:
        averages.use_averages(before)
        return saved, optimizer, "its averages (EMA), with which it predicts, are the weights from here on"
    values = {id(weight): live_state.host_array(average.value) for weight, average in averages.pairs_of(before)}
    saved = optimizers.with_config(saved, {"use_ema": True, "ema_momentum": ema})
    optimizer = optimizers.make_optimizer(saved, 1e-3)
    optimizer.build(model.trainable_variables)
    for weight, average in averages.pairs_of(optimizer):
        average.assign(values[id(weight)])
    return saved, optimizer, "its averages (EMA) go on"
