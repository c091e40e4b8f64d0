"""The learning rate as a function of the step.

    schedule = Cosine(start=0.0, peak=1e-4, warmup_steps=40, steps=790, origin=16431)
    optimizer.learning_rate = schedule

A restored optimizer keeps its count of `iterations` (Adam's bias correction needs it), so a schedule carries the count at
which it begins, `origin`. Rates are computed in float32 by Keras operations inside the training step: what is printed and
logged is read back from the same function.

Epochs grow when images arrive while a run trains, and N epochs stay N passes: a decay runs over the share of the planned
epochs that is done. So it reads a clock, which `wind` puts beside the optimizer's variables and `set_clock` sets between two
epochs; a compiled step sees the new time without being compiled again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from kresume import devices


@dataclass(frozen=True)
class Clock:
    """How steps of the run become steps of the plan.

    Attributes:
        step: of the run, where the images changed last.
        planned: the step at which the plan had those epochs done.
        pace: planned steps for each step from there on; below 1 where images arrived.
    """

    step: float = 0.0
    planned: float = 0.0
    pace: float = 1.0


def wind(optimizer: Any) -> None:
    """Gives the optimizer's schedule a clock that shows the plan's own time; nothing where the rate needs none."""
    schedule = _schedule_of(optimizer)
    if schedule is not None:
        inner = devices.inner(optimizer)
        schedule.clock = inner.add_variable((3,), dtype="float32", name=devices.CLOCK)
        set_clock(optimizer, Clock(), schedule.origin)


def set_clock(optimizer: Any, clock: Clock, iterations: int = 0) -> None:
    """Sets the clock of a schedule that has one; between two calls of `fit`, never within.

    Args:
        optimizer: wound.
        clock: in steps of the run.
        iterations: the optimizer's count when the run began. A schedule that is a parent's counts from an earlier one.
    """
    schedule = _schedule_of(optimizer)
    if schedule is not None:
        offset = iterations - schedule.origin
        schedule.now = Clock(clock.step + offset, clock.planned + offset, clock.pace)
        schedule.clock.assign(np.array(astuple(schedule.now), np.float32))


def time_of(optimizer: Any) -> list[float] | None:
    """What a schedule's `base` has to be for whoever goes on with it; None where its time is that of the steps."""
    schedule = _schedule_of(optimizer)
    if schedule is None or (
        schedule.base is None and schedule.now.pace == 1.0 and schedule.now.step == schedule.now.planned
    ):
        return None
    now, base = schedule.now, schedule.base or Clock()
    return [now.step, base.planned + (now.planned - base.step) * base.pace, now.pace * base.pace]


def _schedule_of(optimizer: Any) -> Cosine | None:
    schedule = devices.inner(optimizer)._learning_rate
    return schedule if isinstance(schedule, Cosine) else None


@keras.saving.register_keras_serializable(package="kresume")
class Cosine(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # keras is untyped
    """A linear warm-up to a peak, then half a cosine down to `end` (Loshchilov & Hutter 2017, arXiv:1608.03983).

    Args:
        peak: the highest rate.
        steps: batches from the beginning to the end of the decay; afterwards the rate stays at `end`.
        warmup_steps: batches of linear warm-up, fewer than `steps`. Step 0 trains at `start + (peak - start) / warmup`.
        start: the rate that the warm-up rises from.
        end: the rate at the end.
        origin: the optimizer's count of iterations at which the schedule begins.
        base: `(step, planned, pace)` of the clock of a run whose images changed, for one that goes on with its schedule.
    """

    def __init__(
        self,
        peak: float,
        steps: int,
        warmup_steps: int = 0,
        start: float = 0.0,
        end: float = 0.0,
        origin: int = 0,
        base: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_steps < steps:
            raise ValueError(f"warmup_steps must be in [0, steps): got {warmup_steps} of {steps}")
        self.peak = peak
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.start = start
        self.end = end
        self.origin = origin
        self.base = None if base is None else Clock(*base)
        self.clock: Any = None
        self.now = Clock()

    def __call__(self, step: Any) -> Any:
        done = ops.cast(step - self.origin, "float32")  # whole numbers first: float32 counts to 2^24 only
        if self.clock is not None:
            clock = ops.convert_to_tensor(self.clock)
            done = clock[1] + (done - clock[0]) * clock[2]
        if self.base is not None:
            done = self.base.planned + (done - self.base.step) * self.base.pace
        warm = self.start + (self.peak - self.start) * (done + 1.0) / max(self.warmup_steps, 1)
        share = ops.clip((done - self.warmup_steps) / (self.steps - self.warmup_steps), 0.0, 1.0)
        decayed = self.end + 0.5 * (self.peak - self.end) * (1.0 + ops.cos(math.pi * share))
        return ops.where(done < self.warmup_steps, warm, decayed)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for Keras's serialization."""
        names = ("peak", "steps", "warmup_steps", "start", "end", "origin")
        return {**{name: getattr(self, name) for name in names}, "base": self.base and list(astuple(self.base))}


@keras.saving.register_keras_serializable(package="kresume")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # keras is untyped
    """A linear warm-up to a rate that is then held. Arguments as for `Cosine`."""

    def __init__(self, peak: float, warmup_steps: int, start: float = 0.0, origin: int = 0) -> None:
        super().__init__()
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1: got {warmup_steps}; use a plain float to hold a rate")
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.start = start
        self.origin = origin

    def __call__(self, step: Any) -> Any:
        done = ops.cast(step - self.origin, "float32")  # whole numbers first: float32 counts to 2^24 only
        warm = self.start + (self.peak - self.start) * (done + 1.0) / self.warmup_steps
        return ops.minimum(warm, self.peak) if self.peak >= self.start else ops.maximum(warm, self.peak)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for Keras's serialization."""
        return {name: getattr(self, name) for name in ("peak", "warmup_steps", "start", "origin")}
