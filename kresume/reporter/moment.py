"""Defines what is shown of a training while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """How far a training is.

    Attributes:
        epoch: the current epoch, counted from 1.
        epochs: how many there are.
        step: steps done in the current epoch.
        steps: steps of the current epoch.
        done: steps done in all.
        total: steps in all.
        images_per_second: while it trained in this epoch; None if unknown.
        seconds_left: until the last step, without scoring; None if unknown.
        loss: mean over the epoch so far; None if unknown.
        accuracy: mean over the epoch so far, 0 to 1; None if unknown.
        rate: the learning rate; None if unknown.
        data_share: share of the time that steps waited for images, 0 to 1; None if unknown.
        snapshot: the step of the newest snapshot on disk; None if this process has written none.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    done: int
    total: int
    images_per_second: float | None = None
    seconds_left: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    rate: float | None = None
    data_share: float | None = None
    snapshot: int | None = None

    def facts(self) -> list[str]:
        """Returns what is known, in words, the most asked first."""
        known = [
            ("loss {:.3f}", self.loss),
            ("accuracy {:.1f} %", None if self.accuracy is None else 100 * self.accuracy),
            ("lr {:.3g}", self.rate),
            ("{:,.0f} images/s", self.images_per_second),
            ("waiting for images {:.0f} %", None if self.data_share is None else 100 * self.data_share),
            ("snapshot {:,}", self.snapshot),
        ]
        return [text.format(value) for text, value in known if value is not None]

    @property
    def left(self) -> str:
        """Returns the time left in words; empty if unknown."""
        return "" if self.seconds_left is None else f"{duration(self.seconds_left)} left"


def duration(seconds: float) -> str:
    """Formats a duration: `"0:07"`, `"12:31"`, `"3:05:12"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
