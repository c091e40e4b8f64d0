"""Checks the assumed class order against the checkpoint's predictions on old images.

    note = check_order("model.keras", found, classes, images=256)      # raises if another order fits beyond chance

Class folders are sorted by name. A model trained with another order restores bit for bit and still predicts wrongly,
for all classes or for a few. `kresume.evaluation.class_order` finds the order on old images.
"""

from __future__ import annotations

from collections.abc import Sequence

from kresume.class_names import join_classes
from kresume.errors import UsageError
from kresume.evaluation.class_order import OrderFound, describe_order
from kresume.spelling import option


def check_order(
    source: str, found: OrderFound, classes: Sequence[str], images: int, *, pixels: str = "", asked: bool = False
) -> str:
    """Raises if the predictions fit another order than the sorted class folders beyond chance.

    Args:
        source: the checkpoint, for the message.
        found: the order that the predictions on old images fit.
        classes: the assumed or requested order.
        images: the number of old images.
        pixels: the pixel convention under which the order was found; empty if there was no choice.
        asked: True if `--classes` gave `classes`; then nothing is raised.

    Returns:
        A note for the plan if another order than the requested one fits, or if the order cannot be told; else an empty
        string.

    Raises:
        UsageError: another order fits; the message names the option that sets it.
    """
    if found.order is not None:
        better = describe_order(
            found,
            classes,
            f"{images} old images",
            assumed=option("classes") if asked else "the sorted order",
            fed=f" with pixels {pixels}" if pixels else "",
        )
        if asked:
            return f"{better}: {option('classes', join_classes(found.order))} would be that order"
        raise UsageError(
            f"{source} does not record the names of its outputs, and they are not in the order of the sorted class folders: "
            f"{better}: give {option('classes', join_classes(found.order))} (or "
            f"{option('classes', join_classes(classes))} to use the sorted order anyway)"
        )
    if found.doubtful and not asked:
        order = join_classes(found.likely) if found.likely else "a,b,c"
        return (
            f"{images} old images do not show whether the outputs are in the order of the sorted class folders: {source} is "
            f"{found.describe_doubt()}; {option('classes', order)} sets {'that order' if found.likely else 'the order'}"
        )
    return ""
