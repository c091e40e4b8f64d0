"""Defines learning-rate schedules as functions of the step.

    schedule = Cosine(start=0.0, peak=1e-4, warmup_steps=40, steps=790, origin=16431)
    optimizer.learning_rate = schedule

A restored optimizer keeps its `iterations`, because Adam's bias correction needs them. So a schedule holds `origin`,
the count at which it begins. Keras operations compute the rate in float32 inside the training step; printed and logged
rates come from the same function.

Epochs become longer when images arrive during a run, and N epochs stay N passes over the images. So a decay runs over
the share of the planned epochs that is done. It reads a clock: `wind` stores the clock in a variable of the optimizer,
and `set_clock` sets it between two epochs. A compiled step reads the new value without being compiled again.

Keras finds the classes by their registered names (`kresume>Cosine`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from kresume.backend import live_state

RECORDED_MODULE = "kresume.training.schedules"
"""Module name that Keras writes beside the registered names. It stays that of kresume 0.1.0, so that runs and files keep
their bytes; Keras does not import it."""


@dataclass(frozen=True)
class Clock:
    """A linear map from steps of the run to steps of the plan.

    Attributes:
        step: the step of the run at which the images last changed.
        planned: the step at which the plan completes the same epochs.
        pace: planned steps per step of the run from there on; below 1 if images arrived.
    """

    step: float = 0.0
    planned: float = 0.0
    pace: float = 1.0


def wind(optimizer: Any) -> None:
    """Adds a clock variable to the optimizer if its schedule reads one.

    The clock starts at the plan's own time.
    """
    schedule = _schedule_of(optimizer)
    if schedule is not None:
        inner = live_state.inner(optimizer)
        schedule.clock = inner.add_variable((3,), dtype="float32", name=live_state.CLOCK)
        set_clock(optimizer, Clock(), schedule.origin)


def set_clock(optimizer: Any, clock: Clock, iterations: int = 0) -> None:
    """Sets the clock of the optimizer's schedule, if it has one.

    Call it only between two calls of `fit`.

    Args:
        optimizer: an optimizer that `wind` has prepared.
        clock: the clock, in steps of the run.
        iterations: the optimizer's `iterations` at the start of the run; a parent's schedule has an earlier origin.
    """
    schedule = _schedule_of(optimizer)
    if schedule is not None:
        offset = iterations - schedule.origin
        schedule.now = Clock(clock.step + offset, clock.planned + offset, clock.pace)
        schedule.clock.assign(np.array(astuple(schedule.now), np.float32))


def time_of(optimizer: Any) -> list[float] | None:
    """Returns the clock to pass as a child run's `base`; None if the images never changed."""
    schedule = _schedule_of(optimizer)
    if schedule is None or (
        schedule.base is None and schedule.now.pace == 1.0 and schedule.now.step == schedule.now.planned
    ):
        return None
    now, base = schedule.now, schedule.base or Clock()
    return [now.step, base.planned + (now.planned - base.step) * base.pace, now.pace * base.pace]


def rate_at(optimizer: Any, iterations: int) -> float:
    """Computes the rate that a schedule gives, without reading a variable that a running step may hold.

    Args:
        optimizer: its learning rate is a schedule.
        iterations: the optimizer's count.
    """
    schedule = live_state.inner(optimizer)._learning_rate
    if isinstance(schedule, Cosine) and schedule.clock is not None:
        still = copy.copy(schedule)
        still.clock = np.array(astuple(schedule.now), np.float32)
        schedule = still
    return float(ops.convert_to_numpy(schedule(iterations)))


def _schedule_of(optimizer: Any) -> Cosine | None:
    schedule = live_state.inner(optimizer)._learning_rate
    return schedule if isinstance(schedule, Cosine) else None


@keras.saving.register_keras_serializable(package="kresume")
class Cosine(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # keras is untyped
    """A linear warm-up to a peak, then half a cosine down to `end`.

    Source of the cosine: Loshchilov & Hutter 2017, arXiv:1608.03983.

    Args:
        peak: the highest rate.
        steps: batches from the start of the schedule to the end of the decay; later the rate stays at `end`.
        warmup_steps: batches of linear warm-up, fewer than `steps`. Step 0 trains at `start + (peak - start) / warmup`.
        start: the rate at which the warm-up starts.
        end: the final rate.
        origin: the optimizer's `iterations` at the start of the schedule.
        base: `(step, planned, pace)` of the parent run's clock, if a child run continues the schedule of a run whose
            images changed.
    """

    __module__ = RECORDED_MODULE

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
        done = ops.cast(step - self.origin, "float32")  # subtract as integers: float32 is exact only up to 2^24
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
        """Returns the arguments, for Keras's serialization."""
        names = ("peak", "steps", "warmup_steps", "start", "end", "origin")
        return {**{name: getattr(self, name) for name in names}, "base": self.base and list(astuple(self.base))}


@keras.saving.register_keras_serializable(package="kresume")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # keras is untyped
    """A linear warm-up to a rate that is then held. Arguments as for `Cosine`."""

    __module__ = RECORDED_MODULE

    def __init__(self, peak: float, warmup_steps: int, start: float = 0.0, origin: int = 0) -> None:
        super().__init__()
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1: got {warmup_steps}; use a plain float to hold a rate")
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.start = start
        self.origin = origin

    def __call__(self, step: Any) -> Any:
        done = ops.cast(step - self.origin, "float32")  # subtract as integers: float32 is exact only up to 2^24
        warm = self.start + (self.peak - self.start) * (done + 1.0) / self.warmup_steps
        return ops.minimum(warm, self.peak) if self.peak >= self.start else ops.maximum(warm, self.peak)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras's serialization."""
        return {name: getattr(self, name) for name in ("peak", "warmup_steps", "start", "origin")}


def for_plain_keras(optimizer: Any, rate: float) -> Any:
    """Returns an optimizer's rate for a file that plain Keras loads.

    Args:
        optimizer: its learning rate is a float or a schedule.
        rate: a plain rate, in place of a schedule whose class Keras finds only with kresume or the user's code.
    """
    own = live_state.inner(optimizer)._learning_rate
    is_schedule = isinstance(own, keras.optimizers.schedules.LearningRateSchedule)
    return own if is_schedule and of_keras(keras.saving.serialize_keras_object(own)) else rate


def of_keras(config: Mapping[str, Any]) -> bool:
    """Returns True if the Keras config of a schedule names a class of Keras itself."""
    return str(config.get("module")).startswith("keras.") and config.get("registered_name") is None


def deserialize(config: Mapping[str, Any]) -> Any:
    """Creates a schedule of Keras, kresume or the user from its Keras config.

    kresume's schedules are found even if Keras's registry was cleared.

    Raises:
        ValueError, TypeError: the class is unknown, or does not accept the config.
    """
    own = {f"kresume>{schedule.__name__}": schedule for schedule in (Cosine, Warmup)}
    found = keras.optimizers.schedules.deserialize(dict(config), custom_objects=own)
    if isinstance(found, str):  # Keras returns the name of a class that it does not know
        raise ValueError(f"unknown class {found}")
    return found
