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
            assumed="--classes" if asked else "the sorted order",
            fed=f" with pixels {pixels}" if pixels else "",
        )
        if asked:
            return f"{better}: --classes {join_classes(found.order)} would be that order"
        raise UsageError(
            f"{source} does not name its outputs, and the sorted class folders are not their order: {better}: give --classes "
            f"{join_classes(found.order)} (or --classes {join_classes(classes)} if that is meant all the same)"
        )
    if found.doubtful and not asked:
        return (
            f"whether the sorted class folders are the order of the outputs cannot be told from {images} old images: {source} "
            f"is right on {100 * found.assumed:.1f} % in that order and on {100 * found.explained:.1f} % in another, and "
            "chance or an untrained model may do as much; --classes a,b,c says the order"
        )
    return ""
