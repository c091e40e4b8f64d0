"""How a model in memory takes a picture, read from the shape of its input.

layout, size = layout_of(model, size=None, axes=None, known=card.input)
"""

from __future__ import annotations

from typing import Any

from kresume.errors import UsageError
from kresume.input_layout import InputLayout, read_layout


def layout_of(
    model: Any, size: tuple[int, int] | None, axes: str | None, known: InputLayout | None
) -> tuple[InputLayout, tuple[int, int] | None]:
    """Finds a model's layout.

    Args:
        model: built.
        size: `(height, width)` that was asked for or is recorded.
        axes: order of the axes that the user says (`--axes`), or None.
        known: layout in the checkpoint's card, or None.

    Returns:
        The layout, and the `(height, width)` that the input fixes, or None where it takes any.

    Raises:
        UsageError: the model takes several inputs, or none that is a picture.
    """
    # `plan` imports this module, and a usage error must not wait for Keras.
    from kresume.models.shapes import input_shape_of

    given = input_shape_of(model)
    if isinstance(given, (list, dict)):
        raise UsageError(f"the model takes {len(given)} inputs of the shapes {given}; kresume feeds it one picture")
    shape = tuple(given)[1:]
    if axes is None and known is not None and (fixed := known.sizes(shape, size)):
        return known, fixed[0]
    return read_layout(shape, size, axes)
