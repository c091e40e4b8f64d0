"""Decides the learning rate: the checkpoint's rate, the rate to use, and the reason.

    plan = decide_rate(saved=state.rate, lr=1e-4, lr_scale=None, schedule=None, ...)
    str(plan)      # "0.01 (checkpoint) -> 0.0001 by step 40, to 0 at step 790 (rewarm-cosine; ...)"

This module only computes numbers: Keras is imported only when `keras_rate` builds the object for the
optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kresume.errors import UsageError
from kresume.options.settings import (
    COOLDOWN_SHARE,
    EXTEND_FACTOR,
    LONGEST_WARMUP,
    TUNE_FACTOR,
    WARMUP_SHARE,
    default_rate,
)
from kresume.spelling import option
from kresume.values.rate import SCHEDULES, RatePlan, Schedule
from kresume.values.state import SavedRate

SUSPICIOUS_SHARE = 0.01


def keras_rate(plan: RatePlan, origin: int) -> Any:
    """Returns the float or Keras schedule that applies this plan.

    Args:
        plan: the rate of a run.
        origin: the optimizer's `iterations` at the start of the run.

    Raises:
        UsageError: `keep`, and the checkpoint's schedule has already decayed to 0, or its class is unknown.
    """
    if plan.schedule == "keep" and plan.saved:
        schedule = _revived(plan.saved)
        if float(schedule(origin)) <= 0.0:
            raise UsageError(
                f"the checkpoint's {plan.saved['class_name']} has ended at 0 after {origin:,} steps, so going on with it "
                f"({option('lr-schedule', 'keep')}) would learn nothing: give {option('lr')}, or "
                f"{option('lr-schedule', 'rewarm-cosine')}, which warms up to the checkpoint's rate again"
            )
        return schedule
    from kresume.models.schedules import Cosine, Warmup

    if plan.schedule in {"cosine", "rewarm-cosine", "cooldown"}:
        return Cosine(plan.peak, plan.steps, plan.warmup_steps, plan.start, 0.0, origin)
    return Warmup(plan.peak, plan.warmup_steps, plan.start, origin) if plan.warmup_steps else plan.peak


def look_ahead(plan: RatePlan, origin: int) -> tuple[RatePlan, str]:
    """Evaluates a kept schedule at both ends of the run.

    Args:
        plan: the rate of any run; one that does not keep the checkpoint's schedule is returned unchanged.
        origin: the optimizer's `iterations` at the start of the run.

    Returns:
        `(plan, note)`: the plan with `now` and `end`, and a note if the schedule reaches 0 well before the run ends. The
        peak of a schedule that does not say its own is the rate now.

    Raises:
        UsageError: as `keras_rate`.
    """
    saved = plan.saved
    if plan.schedule != "keep" or not saved:
        return plan, ""
    schedule = keras_rate(plan, origin)
    plan = replace(plan, now=float(schedule(origin)), end=float(schedule(origin + plan.steps - 1)))
    if plan.checkpoint is None and plan.now is not None:
        plan = replace(plan, peak=plan.now)
    if plan.end or plan.steps == 1:
        return plan, ""
    alive, dead = 0, plan.steps - 1
    while dead - alive > 1:  # schedules that end at 0 stay there
        middle = (alive + dead) // 2
        alive, dead = (middle, dead) if float(schedule(origin + middle)) > 0 else (alive, middle)
    if dead > (1 - WARMUP_SHARE) * plan.steps:
        return plan, ""  # it ends with the run, as it should
    return plan, (
        f"the checkpoint's {saved['class_name']} reaches 0 after {dead:,} of {plan.steps:,} steps: nothing is learned in "
        f"the steps after that ({option('lr')} or {option('lr-schedule', 'rewarm-cosine')} continues, "
        f"{option('steps')} ends with it)"
    )


def _revived(saved: Mapping[str, Any]) -> Any:
    """Returns the checkpoint's own schedule.

    Raises:
        UsageError: its class is unknown.
    """
    from kresume.models.schedules import deserialize

    try:
        return deserialize(saved)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the checkpoint's learning rate is a schedule of a class that is not known here, {saved.get('class_name')}: "
            f"register it with {option('import', 'FILE.py')} to go on with it, or give {option('lr')}"
        ) from error


def decide_rate(
    *,
    saved: SavedRate | None,
    optimizer: str,
    steps: int,
    lr: float | None = None,
    lr_scale: float | None = None,
    schedule: str | None = None,
    warmup_steps: int | None = None,
    adds_images: bool = False,
    lacks_old: bool = False,
    interrupted: bool = False,
    head_steps: int | None = None,
    goes_on: Callable[[], bool] = lambda: False,
    compiled: SavedRate | None = None,
) -> RatePlan:
    """Decides the rate of a run.

    Args:
        saved: the checkpoint's rate, None for a new model.
        optimizer: the optimizer's class, for its default rate.
        steps: steps of the run.
        lr: `--lr`, the rate or peak to use; always wins.
        lr_scale: `--lr-scale`, a factor on the checkpoint's rate.
        schedule: `--lr-schedule`.
        warmup_steps: `--warmup-steps`; default a twentieth of the run, at most 200.
        adds_images: True if images are added to, or corrected in, those that the checkpoint was trained on.
        lacks_old: True if none of the old images is there to train on: a high rate only forgets them.
        interrupted: True if the parent was interrupted: its rate had not come down yet.
        head_steps: where a new head stands on trained layers, the steps in which it trains alone: at the full rate, which
            falls to a tenth of it, the peak of the steps that follow; None elsewhere.
        goes_on: returns True if its own schedule still changes the rate in this run; called only if that decides.
        compiled: the rate that the function of a new model compiles.

    Raises:
        UsageError: options contradict each other, or a rate is implausible.
    """
    if lr is not None and lr_scale is not None:
        raise UsageError(f"{option('lr')} and {option('lr-scale')} both set the rate: give one of them")
    if lr is not None and not lr > 0:
        raise UsageError(f"{option('lr', lr)}: a learning rate must be above 0")
    if lr_scale is not None and not lr_scale > 0:
        raise UsageError(f"{option('lr-scale', lr_scale)}: a factor must be above 0")
    if schedule is not None and schedule not in SCHEDULES:
        raise UsageError(f"{option('lr-schedule', schedule)}: use one of {', '.join(SCHEDULES)}")
    if lr_scale is not None and saved is None:
        raise UsageError(
            f"{option('lr-scale')} is a factor on the checkpoint's rate, and there is none: give {option('lr')}"
        )
    if schedule == "keep" and saved is None:
        raise UsageError(
            f"{option('lr-schedule', 'keep')} needs a checkpoint whose rate is known: give {option('lr')} and another schedule"
        )
    asked = lr is not None or lr_scale is not None
    if head_steps is not None and schedule in {None, "cosine", "rewarm-cosine"} and warmup_steps is None:
        return _tuned(saved, optimizer, steps, lr, lr_scale, head_steps)
    if schedule == "keep" and asked and saved is not None and saved.schedule is not None:
        raise UsageError(
            f"{option('lr-schedule', 'keep')} continues the checkpoint's schedule, which sets the rate: leave it out, or "
            f"{option('lr' if lr is not None else 'lr-scale')}"
        )
    given: Schedule | None = next((name for name in SCHEDULES if name == schedule), None)
    chosen: Schedule = given or _default_schedule(
        saved, asked=asked, adds_images=adds_images, interrupted=interrupted, goes_on=goes_on
    )
    lowered_from = None
    forgets = adds_images and lacks_old and chosen not in {"keep", "cooldown"} and not asked
    if forgets and saved is not None:
        lowered_from = saved.lowered_from or saved.value
    peak, reason = _peak(saved, optimizer, lr, lr_scale, chosen, lowered_from)
    start = compiled.value if saved is None and lr is None and compiled is not None else None
    if compiled is not None and start is not None and not math.isclose(start, peak, rel_tol=1e-6):
        own = f"the start of the {compiled.schedule['class_name']}" if compiled.schedule else "the rate"
        peak, reason = start, f"{own} that --model compiles"
    if warmup_steps:
        _check_warms(chosen, saved, warmup_steps)
    if chosen == "cooldown":
        warmup_steps = round((1 - COOLDOWN_SHARE) * steps) if steps > 1 else 0
    if warmup_steps is None:
        warms = chosen in {"cosine", "rewarm-cosine"}
        warmup_steps = min(LONGEST_WARMUP, max(1, round(WARMUP_SHARE * steps))) if warms and steps > 1 else 0
    elif not 0 <= warmup_steps < steps:
        raise UsageError(f"{option('warmup-steps', warmup_steps)}: the run has {steps} steps; give fewer, 0 for none")
    return RatePlan(
        checkpoint=saved.value if saved else None,
        peak=peak,
        schedule=chosen,
        warmup_steps=warmup_steps,
        steps=steps,
        start=peak if chosen == "cooldown" else 0.0,
        reason=reason,
        saved=saved.schedule if saved and chosen == "keep" else None,
        lowered_from=lowered_from,
    )


def _tuned(
    saved: SavedRate | None, optimizer: str, steps: int, lr: float | None, lr_scale: float | None, head_steps: int
) -> RatePlan:
    """Returns the rate of a new head on trained layers, and then of all layers."""
    default = default_rate(optimizer)
    own = saved.value if saved is not None else None
    full = max(own or 0.0, default)  # the checkpoint's own may have come down
    whose = f"the default of {optimizer}" if full == default else "the checkpoint's"
    peak, reason = TUNE_FACTOR * full, f"{TUNE_FACTOR:g}x {whose}"
    if lr is not None:
        peak, reason = lr, "--lr"
    elif lr_scale is not None:
        _check_known(saved)
        peak, reason = lr_scale * full, f"--lr-scale {lr_scale:g}"
    warmup = head_steps or (min(LONGEST_WARMUP, max(1, round(WARMUP_SHARE * steps))) if steps > 1 else 0)
    return RatePlan(
        checkpoint=own,
        peak=peak,
        schedule="cosine" if saved is None else "rewarm-cosine",
        warmup_steps=warmup,
        steps=steps,
        start=(peak if lr is not None else max(full, peak)) if head_steps else 0.0,
        reason=reason,
    )


def _check_warms(schedule: Schedule, saved: SavedRate | None, steps: int) -> None:
    """Raises UsageError if a schedule has no place for a warm-up, which would be ignored."""
    if schedule == "keep" and saved is not None and saved.schedule is not None:
        raise UsageError(
            f"{option('warmup-steps', steps)}: the checkpoint's schedule goes on and sets the rate "
            f"({option('lr-schedule', 'keep')}): leave it out, or give another {option('lr-schedule')}"
        )
    reasons = {"plateau": "changes the rate itself", "cooldown": "starts at the rate that it holds"}
    if schedule in reasons:
        raise UsageError(
            f"{option('lr-schedule', schedule)} {reasons[schedule]}: {option('warmup-steps')} cannot be combined with it"
        )


def goes_on(saved: SavedRate | None, origin: int, steps: int) -> bool:
    """Returns True if a checkpoint's schedule still changes the rate, and ends no earlier than the run.

    Args:
        saved: the checkpoint's rate.
        origin: the optimizer's `iterations` at the start of the run.
        steps: steps of the run.
    """
    if saved is None or saved.schedule is None:
        return False
    schedule = _revived(saved.schedule)
    rates = {float(schedule(origin + steps * part // 8)) for part in range(9)}
    return float(schedule(origin + steps * 7 // 8)) > 0.0 and len(rates) > 1


def _default_schedule(
    saved: SavedRate | None, *, asked: bool, adds_images: bool, interrupted: bool, goes_on: Callable[[], bool]
) -> Schedule:
    """Returns the schedule if none was given: an interrupted parent's rate still has to come down."""
    if saved is None:
        return "cosine"
    if asked:
        return "rewarm-cosine"
    if interrupted:
        return "keep" if goes_on() else "cooldown"
    return "rewarm-cosine" if adds_images else "keep"


def _check_known(saved: SavedRate | None) -> float:
    """Returns the checkpoint's rate.

    Raises:
        UsageError: it is a schedule of the user's own class, which does not say its peak.
    """
    if saved is None or saved.value is None:
        raise UsageError(
            f"the checkpoint's learning rate is {saved.custom if saved else 'unknown'}, whose peak cannot be read: give "
            f"{option('lr')}, the rate or peak to use, or {option('lr-schedule', 'keep')}, which goes on with that schedule"
        )
    return saved.value


def _peak(
    saved: SavedRate | None,
    optimizer: str,
    lr: float | None,
    lr_scale: float | None,
    schedule: Schedule,
    lowered_from: float | None,
) -> tuple[float, str]:
    """Returns the rate, or the peak of the schedule, and where it comes from.

    Args:
        saved: the checkpoint's rate, None for a new model.
        optimizer: the optimizer's class.
        lr: `--lr`.
        lr_scale: `--lr-scale`.
        schedule: the schedule of the run.
        lowered_from: the rate to lower, because none of the old images is there; None to lower none.

    Raises:
        UsageError: the checkpoint's rate has probably decayed, or is not known.
    """
    if lr is not None:
        return lr, "--lr"
    default = default_rate(optimizer)
    if saved is None:
        return default, f"the default of {optimizer}"
    if saved.value is None and schedule == "keep" and lr_scale is None:
        return 0.0, "the checkpoint's"  # `look_ahead` asks the schedule itself
    value = _check_known(saved)
    if lr_scale is not None:
        return lr_scale * value, f"--lr-scale {lr_scale:g}"
    if saved.origin == "float" and value < SUSPICIOUS_SHARE * default:
        raise UsageError(
            f"the checkpoint's rate is {value:g}, under 1 % of {optimizer}'s default: it has probably decayed to "
            f"there, and nothing would be learned. Give {option('lr')} (for example {option('lr', EXTEND_FACTOR * default)})"
        )
    # A chain of runs without old images is lowered once, and comes back to its rate when they are there again.
    whose = "the checkpoint's" if saved.lowered_from is None else "what the checkpoint's was lowered from"
    if lowered_from is not None:
        return EXTEND_FACTOR * lowered_from, f"{EXTEND_FACTOR:g}x {whose}: none of the old images is there"
    if schedule in {"keep", "cooldown"} or saved.lowered_from is None:
        return value, "the checkpoint's"
    return saved.lowered_from, whose
