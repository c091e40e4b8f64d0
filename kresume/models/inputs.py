"""Reads a live model's input layout from the shape of its input.

layout, size = layout_of(model, size=None, axes=None, known=card.input)
"""

from __future__ import annotations

from typing import Any

from kresume.errors import UsageError
from kresume.spelling import option
from kresume.values.input_layout import InputLayout, read_layout


def check_size(asked: tuple[int, int] | None, fixed: tuple[int, int] | None) -> None:
    """Checks that a requested size is the one that the model accepts.

    Args:
        asked: `--image-size` as `(height, width)`; None if it was not given.
        fixed: the model's own size; None if it accepts any.

    Raises:
        UsageError: they differ.
    """
    if fixed is not None and asked is not None and asked != fixed:
        given, only = (f"{height}x{width}" for height, width in (asked, fixed))
        raise UsageError(f"{option('image-size', given)}: the model's input is fixed at {only}; leave it out")


def layout_of(
    model: Any, size: tuple[int, int] | None, axes: str | None, known: InputLayout | None
) -> tuple[InputLayout, tuple[int, int] | None]:
    """Returns a model's input layout and the image size that it fixes.

    Args:
        model: built.
        size: requested or recorded `(height, width)`, or None.
        axes: axis order that the user gives (`--axes`), or None.
        known: layout in the checkpoint's model card, or None.

    Returns:
        The layout, and the `(height, width)` that the input fixes; None if it accepts any size.

    Raises:
        UsageError: the model has several inputs, or its input is not a picture.
    """
    # Imported late: `plan` imports this module, and a usage error must not wait for Keras.
    from kresume.models.shapes import input_shape_of

    given = input_shape_of(model)
    if isinstance(given, (list, dict)):
        raise UsageError(f"the model has {len(given)} inputs, of the shapes {given}; kresume supports one image input")
    shape = tuple(given)[1:]
    if axes is None and known is not None and (fixed := known.sizes(shape, size)):
        return known, fixed[0]
    return read_layout(shape, size, axes)
