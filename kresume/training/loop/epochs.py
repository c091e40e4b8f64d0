"""Computes each epoch's order, last step and schedule time while images may change.

    passes = Passes(manifest, amount, order_of, steps=None)
    passes.order.batch(412), passes.boundaries         # the images of a step; the step at which each epoch ends
    passes.change(3, manifest)                         # three epochs are done: later epochs use these images

N epochs stay N passes over the images: images that arrive make later epochs longer, images that leave make them
shorter. With `--steps`, the number of steps stays and the number of epochs changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kresume.images.manifest import Manifest
from kresume.images.mixing import Mixed, Shares
from kresume.images.order import LaterOrder, Order
from kresume.models.schedules import Clock
from kresume.options.settings import MOST_STATISTICS_IMAGES, STATISTICS_SHARE
from kresume.training.plan.amount import epoch_boundary
from kresume.values.amount import Amount


def statistics_images(images: int, batch_size: int, *, last: bool) -> int:
    """Counts the images from which statistics are recomputed after an epoch.

    The last epoch, usually the result, may take as long as it needs.

    Args:
        images: those of the epoch.
        batch_size: images per step.
        last: True for the last epoch.
    """
    count = max(int((1.0 if last else STATISTICS_SHARE) * images), batch_size)
    return min(count, images, MOST_STATISTICS_IMAGES)


class Passes:
    """The epochs of a run whose images may change between two epochs.

    Args:
        manifest: the images at the start of the run.
        amount: the amount of training planned for them.
        order_of: makes the order of a manifest's training rows.
        steps: `--steps`, None if epochs set the amount of training.
        epochs: `--epochs`, the upper bound of epochs for `steps` if images leave; None for no bound.

    Attributes:
        manifest: the images of the current epoch and of later ones.
        digest: the manifest's digest.
        order: the order of the manifest's training rows.
        boundaries: the step at which each epoch ends; changed in place, so every holder of the list sees the change.
        clock: maps steps of the run to steps of the plan.
    """

    def __init__(
        self,
        manifest: Manifest,
        amount: Amount,
        order_of: Callable[[Manifest], Mixed],
        steps: int | None,
        epochs: int | None = None,
    ) -> None:
        self.manifest, self.digest = manifest, manifest.digest()
        self.boundaries = list(amount.boundaries)
        self.clock = Clock()
        self._amount = amount
        self._order_of = order_of
        self._steps = steps if steps == amount.steps else None
        self._epochs = epochs if self._steps is not None else amount.epochs
        self._dealt: Mixed = order_of(manifest)
        self.order: Order = self._dealt

    def shares(self) -> Shares:
        """Returns the composition of an epoch."""
        return self._dealt.shares()

    def change(self, epoch: int, manifest: Manifest) -> None:
        """Replaces the images after a number of completed epochs.

        Args:
            epoch: the number of completed epochs.
            manifest: the images of the epochs that follow.
        """
        step = self.boundaries[epoch - 1]
        taken = self._taken(epoch, step, manifest)
        self._dealt = self._order_of(manifest)
        self.order = LaterOrder(self._dealt, epoch, step, taken)
        self.manifest, self.digest = manifest, manifest.digest()
        self.boundaries[epoch:] = self._rest(epoch, step)
        if self._steps is None:
            planned = self._amount.boundaries[epoch - 1]
            pace = (self._amount.steps - planned) / (self.boundaries[-1] - step)
            self.clock = Clock(step, planned, pace)

    def _taken(self, epoch: int, step: int, manifest: Manifest) -> np.ndarray:
        """Returns rows of the new manifest that the last batch already used beyond its own epoch."""
        position = self.order.dealt_by(epoch - 1)
        indices = self.order.take(position, step * self.order.batch_size - position)
        shas = self.manifest.sha256s[self.manifest.train_rows()[indices]]
        following = manifest.sha256s[manifest.train_rows()]
        order = np.argsort(following)
        places = order[np.minimum(np.searchsorted(following, shas, sorter=order), len(following) - 1)]
        here: np.ndarray = places[following[places] == shas]
        return here

    def _rest(self, epoch: int, step: int) -> list[int]:
        ends: list[int] = []
        while (self._epochs is None or epoch + len(ends) < self._epochs) and (
            self._steps is None or step < self._steps
        ):
            step = epoch_boundary(self.order, epoch + len(ends), step, self._amount.steps_per_execution)
            ends.append(step if self._steps is None else min(step, self._steps))
        return ends

    def rows_of_statistics(self, epoch: int) -> np.ndarray:
        """Returns the training images from which statistics are recomputed after an epoch: its first ones.

        Args:
            epoch: its number, counted from 0.
        """
        dealt = self.order.deal(epoch)
        last = epoch + 1 == len(self.boundaries)
        count = statistics_images(len(dealt), self._amount.batch_size, last=last)
        rows: np.ndarray = self.manifest.train_rows()[dealt[:count]]
        return rows
