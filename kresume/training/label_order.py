"""Refuses an assumed order of classes where another one fits the checkpoint's answers, and says where it cannot be told.

    note = check_order("model.keras", found, classes, images=256)      # raises where another order fits beyond chance

Class folders are sorted by name; a model trained with another order restores to the last bit and is wrong, wholly or for a few
classes. `kresume.evaluation.class_order` tests it on old images.
"""

from __future__ import annotations

from collections.abc import Sequence

from kresume.class_names import join_classes
from kresume.errors import UsageError
from kresume.evaluation.class_order import OrderFound, describe_order


def check_order(
    source: str, found: OrderFound, classes: Sequence[str], images: int, *, pixels: str = "", asked: bool = False
) -> str:
    """Refuses the sorted class folders where the model's answers fit another order beyond chance.

    Args:
        source: the checkpoint, for the message.
        found: what its answers on old images say.
        classes: the order that was assumed, or asked for.
        images: how many they were.
        pixels: the convention under which that order was found, if it says something.
        asked: `classes` is what `--classes` said: then nothing is refused.

    Returns:
        A line for the plan where another order than the one asked for fits, or where the order cannot be told; else an
        empty text.

    Raises:
        UsageError: another order fits; the message is the option that says it.
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
