"""Which class each output stands for, where a checkpoint does not say it: the assumed order is tried on old images.

    check_order("model.keras", predicted, labels, classes, proposed, assumed=0.1)      # raises where `proposed` explains more

Class folders are sorted by name; a model trained with another order restores to the last bit and is wrong about everything it
knows. That is seen at once on images it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kresume.errors import UsageError

EXPLAINED, GAIN, IMAGES_PER_CLASS = 0.7, 0.2, 4
"""What another order must explain, and explain more, before a command is refused; and on how many images."""


def check_order(
    source: str,
    predicted: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    proposed: Sequence[str],
    *,
    assumed: float,
    pixels: str = "",
) -> None:
    """Refuses an assumed order of classes when another one explains what the model says.

    Args:
        source: the checkpoint, for the message.
        predicted: `(n,)` the outputs that were highest on old images.
        labels: `(n,)` their classes, indices into `classes`.
        classes: the order that was assumed.
        proposed: the order that explains most.
        assumed: how often the model is right with the assumed order, at best.
        pixels: the convention under which the predictions were made, if it says something.

    Raises:
        UsageError: another order explains the predictions; the message is the option that says it.
    """
    if len(labels) < IMAGES_PER_CLASS * len(classes):
        return
    meant = np.array([proposed.index(name) for name in classes])
    explained = float((predicted == meant[labels]).mean())
    if explained < EXPLAINED or explained - assumed < GAIN:
        return
    moved = [f"{place} as {name!r}" for place, name in enumerate(proposed) if classes[place] != name]
    shown = f"{', '.join(moved[:4])}{f' and {len(moved) - 4} more' if len(moved) > 4 else ''}"
    fed = f" with pixels {pixels}" if pixels else ""
    raise UsageError(
        f"{source} does not name its outputs, and the sorted class folders are not their order: reading output {shown}{fed} "
        f"is right on {100 * explained:.0f} % of {len(labels)} old images, the sorted order on {100 * assumed:.0f} %: give "
        f"--classes {','.join(proposed)} (or --classes {','.join(classes)} if that is meant all the same)"
    )
