"""Makes the line of an epoch: the facts that sinks write, and the text that a user reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kresume import runs
from kresume.images.mixing import Shares
from kresume.training.loop.progress import Progress
from kresume.training.plan.plan import describe_epoch


def epoch_line(
    epoch: int,
    progress: Progress,
    logs: Mapping[str, Any],
    scores: Mapping[str, Any],
    *,
    rate: float,
    batch_size: int,
    shares: Shares,
    steps_per_second: float | None,
    waiting: float | None,
) -> dict[str, Any]:
    """Returns the line of an epoch; only its last three fields may differ after an interruption.

    Args:
        epoch: counted from 0.
        progress: the step at its end.
        logs: Keras's logs.
        scores: of all, old and new validation images, and of each class.
        rate: the learning rate at its last step.
        batch_size: images per step.
        shares: what the epoch was made of.
        steps_per_second: while it trained; None if unknown.
        waiting: share of the time that steps waited for their images, 0 to 1; None if unknown.
    """
    trained = {name: value for name, value in logs.items() if "." not in name and not name.startswith("val_")}
    return {
        "epoch": epoch + 1,
        "step": progress.step,
        "position": progress.step * batch_size,
        "lr": rate,
        **trained,
        "old": scores["old"],
        "new": scores["new"],
        "all": scores["all"],
        "classes": scores["classes"],
        "shares": shares.as_dict(),
        "images_per_second": round(steps_per_second * batch_size, 1) if steps_per_second else None,
        "waiting_for_images": None if waiting is None else round(waiting, 4),
        "time": runs.now(),
    }


def describe_line(line: Mapping[str, Any], epochs: int) -> str:
    """Returns the line of an epoch as a user reads it.

    Args:
        line: from `epoch_line`.
        epochs: how many there are in all.
    """
    return (
        f"epoch {line['epoch']}/{epochs}  step {line['step']:,}  lr {line['lr']:.3g}  "
        f"train {100 * line['accuracy']:.1f} %, loss {line['loss']:.3f}  validation {describe_epoch(line)}"
    )
