"""Decides how much a run trains.

    amount = decide_amount(images=873, new_images=501, batch_size=32, epochs=None, steps=None, new_model=False)

This module only computes numbers: it reads no file and does not import Keras.
"""

from __future__ import annotations

from kresume.errors import UsageError
from kresume.images.order import Order
from kresume.options.settings import DEFAULTS, FEWEST_EPOCHS, MORE_EPOCHS, NEW_SHARE_FACTOR
from kresume.spelling import counted, option
from kresume.values.amount import Amount

HUGE_ADDITION = 10


def epoch_boundary(order: Order, epoch: int, before: int, steps_per_execution: int) -> int:
    """Returns the step at which an epoch ends: after the call that holds its last image.

    Args:
        order: the order of the images.
        epoch: index of the epoch, from 0.
        before: the step at which the epoch begins. An epoch with fewer images than a batch still has one call.
        steps_per_execution: steps that Keras runs per call.
    """
    end = -(-order.epoch_end(epoch) // steps_per_execution) * steps_per_execution
    return max(end, before + steps_per_execution)


def decide_amount(
    *,
    images: int,
    new_images: int,
    batch_size: int,
    epochs: int | None,
    steps: int | None,
    new_model: bool,
    new_head: bool = False,
    epochs_left: int = 0,
    epoch_images: int | None = None,
    steps_per_execution: int = 1,
    back: int = 0,
) -> Amount:
    """Decides how much to train.

    Args:
        images: training images in all.
        new_images: training images that this run adds, or that are back.
        batch_size: images per step.
        epochs: `--epochs`, how much *more* to train.
        steps: `--steps`, likewise.
        new_model: True if training starts from initial weights, at least those of the head.
        new_head: True if they are those of the head alone.
        epochs_left: epochs that an interrupted parent had left.
        epoch_images: images per epoch, if `--mix` or `--replay` makes it differ from `images`.
        steps_per_execution: steps that Keras runs per call; an epoch ends with the call that holds its last image.
        back: how many of the new images only earlier generations had.

    Raises:
        UsageError: `steps_per_execution` does not divide `steps`, or exceeds the steps of an epoch.
    """
    if steps is not None and steps % steps_per_execution:
        raise UsageError(
            f"{option('steps', steps)}: Keras runs {steps_per_execution} steps per call "
            f"({option('steps-per-execution')}), so give a multiple "
            f"of it, {steps // steps_per_execution * steps_per_execution or steps_per_execution} for example"
        )
    dealt = epoch_images or images
    if epochs is None and steps is None:
        share = new_images / images
        if new_model:
            epochs, reason = DEFAULTS.epochs, "a new head" if new_head else "a new model"
        elif new_images:
            epochs = max(FEWEST_EPOCHS, round(DEFAULTS.epochs * min(1.0, NEW_SHARE_FACTOR * share)))
            reason = f"{100 * share:.0f} % of the training images are new{' or back' if back else ''}"
        else:
            epochs, reason = (0, "") if epochs_left else (MORE_EPOCHS, "no image is new")
        if epochs_left:
            epochs += epochs_left
            reason = f"{epochs_left} left over from the interrupted parent" + (f", and {reason}" if reason else "")
    else:
        reason = "--epochs" if steps is None else "--steps"
    if steps is not None:
        epochs_needed = -(-steps * batch_size // dealt)
        if epochs is not None and epochs < epochs_needed:
            reason = "--epochs"
        epochs = min(epochs, epochs_needed) if epochs is not None else epochs_needed
    order = Order(0, dealt, batch_size)
    if steps_per_execution > 1 and steps_per_execution > dealt // batch_size:
        raise UsageError(
            f"{option('steps-per-execution', steps_per_execution)}: an epoch has only "
            f"{dealt / batch_size:.1f} steps; give at most "
            f"{max(1, dealt // batch_size)}"
        )
    boundaries: list[int] = []
    for epoch in range(epochs or 0):
        boundaries.append(epoch_boundary(order, epoch, boundaries[-1] if boundaries else 0, steps_per_execution))
    if steps is not None:
        boundaries = [end for end in boundaries if end < steps] + (
            [steps] if boundaries and boundaries[-1] >= steps else []
        )
    return Amount(len(boundaries), boundaries[-1], batch_size, tuple(boundaries), reason, steps_per_execution)


def count_updates(accumulate: int | None, origin: int, steps: int, *, carried: bool = False) -> str:
    """Describes the updates of a run that accumulates gradients; empty if each batch is one.

    Keras updates when the optimizer's count, which a continued run takes over, reaches a multiple of the batches per update.

    Args:
        accumulate: batches per update; None for one.
        origin: the optimizer's count at the start of the run.
        steps: steps of the run.
        carried: True if the gradients of earlier batches are restored with the optimizer.

    Raises:
        UsageError: no update would happen.
    """
    if accumulate is None or accumulate < 2:
        return ""
    updates, left = (origin + steps) // accumulate - origin // accumulate, (origin + steps) % accumulate
    if not updates:
        raise UsageError(
            f"{option('accumulate', accumulate)}: {steps:,} steps are fewer than the batches of one update, so no weight would "
            f"change: give fewer, or more {option('steps')} or {option('epochs')}"
        )
    short = accumulate - origin % accumulate
    begins = (
        f"; the first adds up {short:,}, and divides by {accumulate:,}" if origin % accumulate and not carried else ""
    )
    unused = f"; the gradients of the last {left:,} are not used" if left else ""
    taken = f"{counted(steps, 'step', 'is', 'are')} {counted(updates, 'update')} of {accumulate:,} batches"
    return f"{taken} ({option('accumulate', accumulate)}){begins}{unused}"


def describe_batch_change(before: int, now: int, images: int, peak: float, optimizer: str) -> str:
    """Describes the effect of a new batch size: steps, and the fitting rate; empty if unchanged.

    SGD's rate scales in proportion (Goyal et al. 2017, arXiv:1706.02677), the rate of Adam and similar optimizers with
    the square root (Malladi et al. 2022, arXiv:2205.10287).

    Args:
        before: the parent's images per step.
        now: this run's images per step.
        images: images per epoch.
        peak: the planned rate.
        optimizer: its class.
    """
    if before == now:
        return ""
    factor = now / before if optimizer == "SGD" else (now / before) ** 0.5
    rule = "in proportion, for SGD" if optimizer == "SGD" else f"with the square root, for {optimizer}"
    return (
        f"{now} images per step, the parent had {before}: {images / before:.1f} -> {images / now:.1f} steps an epoch; a rate "
        f"that goes with it ({rule}) would be {option('lr', float(f'{peak * factor:.3g}'))} in place of {peak:g}"
    )
