"""Describes how a checkpoint's optimizer changes: state that another class keeps, settings, decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kresume.errors import UsageError
from kresume.options.table import TrainConfig
from kresume.spelling import counted, option
from kresume.training.plan.parent import Live, Parent
from kresume.values.state import UNDECAYED, SavedOptimizer


def describe_optimizer(config: TrainConfig, parent: Parent | None, live: Live, wanted: SavedOptimizer) -> list[str]:
    """Describes how the optimizer differs from the checkpoint's, a line for each kind of change.

    Args:
        config: the options.
        parent: the checkpoint, None for a new model.
        live: the restored model.
        wanted: the optimizer to train with.

    Raises:
        UsageError: an option on the optimizer has no effect.
    """
    from kresume.models import optimizers

    settings = optimizers.make_optimizer(replace(wanted, loss_scale=False), 1e-3).get_config()
    changes = (
        _kept_state(live, wanted),
        _changed_settings(config, parent, live, settings),
        _decay(config, parent, live, wanted, settings.get("weight_decay")),
    )
    return [change for change in changes if change]


def _kept_state(live: Live, wanted: SavedOptimizer) -> str:
    """Describes which state a new optimizer class keeps; empty if the class is unchanged."""
    from kresume.models import optimizers, slots

    if not live.kept or wanted.class_name == live.saved.class_name:
        return ""
    other = optimizers.make_optimizer(wanted, 1e-3)
    other.build(live.model.trainable_variables)
    kept, fresh = slots.compare(live.optimizer, other)
    words = [f"{', '.join(name.strip('_') for name in kept)} carried over" if kept else "no slot has a counterpart"]
    if fresh:
        words.append(f"{', '.join(name.strip('_') for name in fresh)} start fresh")
    return f"optimizer {live.saved.class_name} -> {wanted.class_name}: {', '.join(words)}; iterations kept"


SETTINGS = (
    "weight_decay", "clipnorm", "global_clipnorm", "clipvalue", "beta_1", "beta_2", "epsilon", "amsgrad", "momentum",
    "nesterov", "rho", "use_ema", "gradient_accumulation_steps",
)  # fmt: skip
"""Settings of Keras's optimizers that are named if they change without being asked for."""


def _changed_settings(config: TrainConfig, parent: Parent | None, live: Live, now: Mapping[str, Any]) -> str:
    """Describes which settings of the optimizer are no longer those of the checkpoint; empty if all are.

    What the options set is not named. For a new model, or a checkpoint that does not record them, the function of the
    model may have compiled settings.
    """
    from kresume.models import saved_optimizer

    stored = parent.state.optimizer if parent is not None else None
    before = stored.config if stored is not None else None
    if before is None:
        own = saved_optimizer.describe_compiled(getattr(live.model, "optimizer", None), live.model)
        before = own.config if own is not None else None
    if before is None:
        return ""
    asked = {
        "weight_decay": config.weight_decay,
        "use_ema": config.ema,
        "gradient_accumulation_steps": config.accumulate,
    }
    changed = [
        f"{name} {_setting(before[name])} -> {_setting(now[name])}"
        for name in SETTINGS
        if name in before and name in now and asked.get(name) is None and _setting(before[name]) != _setting(now[name])
    ]
    if not changed:
        return ""
    decay = before.get("weight_decay")
    keep = (
        f"; {option('weight-decay', decay)} keeps that one" if decay and changed[0].startswith("weight_decay") else ""
    )
    others = f"others are set where the function of {option('model')} compiles"
    return f"settings of the optimizer change: {', '.join(changed)}{keep}; {others}"


def _decay(config: TrainConfig, parent: Parent | None, live: Live, wanted: SavedOptimizer, decay: float | None) -> str:
    """Describes what weight decay leaves out, or that a checkpoint cannot say it; may be empty.

    Raises:
        UsageError: `--exclude-from-weight-decay` has no effect.
    """
    from kresume.models import structure

    names = (wanted.config or {}).get(UNDECAYED)
    if not decay:
        if config.exclude_from_weight_decay and names:
            given = option("exclude-from-weight-decay", ",".join(config.exclude_from_weight_decay))
            raise UsageError(
                f"{given}: {wanted.class_name} has no weight decay here: give {option('weight-decay')} too"
            )
        return ""
    if names:
        addresses = structure.address_of(live.model)
        known = {addresses[id(weight)].name for weight in structure.can_train(live.model)}
        gone = [name for name in names if name not in known]
        lost = f"; it no longer has {_few(gone)}" if gone else ""
        weights, out = counted(len(known), "weight"), len(known.intersection(names))
        return f"weight decay {decay:g} leaves out {out:,} of the model's {weights} ({_few(names)}){lost}"
    if names is not None:
        return ""
    stored = parent.state.optimizer if parent is not None and live.kept else None
    by_keras = stored is not None and "learning_rate" in (stored.config or {})
    if parent is None or not by_keras or parent.state.card is not None or parent.run is not None:
        return ""
    if config.weight_decay is not None:
        return ""
    return (
        f"weight decay {decay:g} applies to every weight: a file of Keras does not hold what exclude_from_weight_decay left "
        f"out; {option('exclude-from-weight-decay', 'bias')} leaves weights out, none ends this note"
    )


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}{' ...' * (len(names) > 4)}"


def _setting(value: Any) -> str:
    """Describes a setting; those that do nothing alike."""
    return "none" if value in (None, False, 0, 0.0) else f"{value:.6g}" if isinstance(value, float) else str(value)
