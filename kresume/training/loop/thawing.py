"""Lets layers train that are frozen for the first epochs of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kresume.training.loop.fit import prepare
from kresume.values.freezing import Freezing


class Thawing:
    """The moment in a run at which its frozen layers begin to train.

    Args:
        freezing: which layers, and until when; None for none.
        thaw: gives the model its other optimizer, with the slots of these layers.
        say: tells the user.
    """

    def __init__(self, freezing: Freezing | None, thaw: Callable[[], None], say: Callable[[str], None]) -> None:
        self._until = freezing.until if freezing is not None else None
        self._always = bool(freezing and freezing.always)
        self._thaw = thaw
        self._say = say

    def restore(self, epochs_begun: int) -> None:
        """Brings the model to the form that a snapshot has.

        Args:
            epochs_begun: the number of epochs of which the snapshot has a step.
        """
        if self._until and epochs_begun > self._until:
            self._thaw()

    def before_epoch(self, done: int, model: Any) -> bool:
        """Thaws after the last frozen epoch.

        Args:
            done: the number of completed epochs.
            model: the model that trains.

        Returns:
            True if it did, and `fit` must begin again.
        """
        if not self._until or done != self._until:
            return False
        self._say(f"from epoch {done + 1} on all layers train{', but those frozen throughout' * self._always}")
        self._thaw()
        prepare(model.optimizer)
        return True

    def was_frozen(self, epoch: int) -> bool:
        """Returns True if the layers were frozen in this epoch, counted from 0, and train at the end."""
        return bool(self._until) and epoch < int(self._until or 0)
