"""Describes the image layout that a model expects: colours, axis order, flat or not.

    layout, size = read_layout((28, 28, 1))               # grey (height, width, 1), (28, 28)
    layout, size = read_layout((784,), axes="wh")         # grey, 784 numbers, column by column
    layout.shape((28, 28))                                # the shape of one input image

Shapes are those of the model's input without the batch. `kresume.images.inputs` applies a layout to images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from kresume.errors import UsageError
from kresume.spelling import option

AXES = tuple("".join(axes) for letters in ("hwc", "hw") for axes in permutations(letters))
"""All orders of height, width and channels; grey images may have no channel axis."""

Shape = Sequence[int | None]
Size = tuple[int, int]


@dataclass(frozen=True)
class InputLayout:
    """The layout of a model's input image.

    Attributes:
        channels: 3 for red, green and blue, 1 for grey.
        axes: order of height, width and channels, for example `"hwc"` or `"chw"`; `"hw"` has no channel axis.
        flat: True if the numbers form a single axis in that order.

    Raises:
        ValueError: if the arguments form no layout.
    """

    channels: int = 3
    axes: str = "hwc"
    flat: bool = False

    def __post_init__(self) -> None:
        if self.axes not in AXES or self.channels not in {1, 3} or (self.channels == 3 and "c" not in self.axes):
            raise ValueError(f"no input layout: {self.channels} channels, axes {self.axes}")

    def shape(self, size: Size) -> tuple[int, ...]:
        """Returns the shape of one image of `(height, width)`."""
        sides = self.sides(size)
        return (math.prod(sides),) if self.flat else sides

    def sides(self, size: Size) -> tuple[int, ...]:
        """Returns the length of each axis, in the order of the axes."""
        lengths = {"h": size[0], "w": size[1], "c": self.channels}
        return tuple(lengths[axis] for axis in self.axes)

    def sizes(self, shape: Shape, size: Size | None = None) -> list[Size | None]:
        """Returns the `(height, width)` at which images of this layout have a given shape.

        Args:
            shape: shape of the input, without the batch.
            size: known image size; an image stored as one axis need not be square.

        Returns:
            A list of sizes, empty if no size has the shape; None in it means any size.
        """
        if self.flat:
            return self._sizes_of_row(shape[0] if len(shape) == 1 else None, size)
        lengths = dict(zip(self.axes, shape, strict=True)) if len(shape) == len(self.axes) else {"c": -1}
        if lengths.get("c", self.channels) != self.channels:
            return []
        height, width = lengths["h"], lengths["w"]
        return [(height, width) if height is not None and width is not None else None]

    def _sizes_of_row(self, numbers: int | None, size: Size | None) -> list[Size | None]:
        pixels, rest = divmod(numbers or 1, self.channels)
        side = math.isqrt(pixels)
        if numbers is None or rest:
            return []
        if size is not None and size[0] * size[1] == pixels:
            return [size]
        return [(side, side)] if side * side == pixels else []

    def __str__(self) -> str:
        colours = "RGB" if self.channels == 3 else "grey"
        words = {"h": "height", "w": "width", "c": str(self.channels)}
        order = ", ".join(words[axis] for axis in self.axes)
        return f"{colours}, one row of numbers in the order ({order})" if self.flat else f"{colours} ({order})"

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> InputLayout:
        """Reads the JSON form.

        Raises:
            KeyError, TypeError, ValueError: if `value` is not the JSON form of a layout.
        """
        return cls(int(value["channels"]), str(value["axes"]), bool(value["flat"]))


RGB = InputLayout()

PREFERRED = (
    RGB,
    InputLayout(1, "hwc"),
    InputLayout(3, "chw"),
    InputLayout(1, "chw"),
    InputLayout(1, "hw"),
    InputLayout(1, "hw", flat=True),
    InputLayout(3, "hwc", flat=True),
)
"""The layouts that a shape alone can mean, most likely first."""


def read_layout(shape: Shape, size: Size | None = None, axes: str | None = None) -> tuple[InputLayout, Size | None]:
    """Finds the image layout from the shape of a model's input.

    Args:
        shape: shape of the input, without the batch; None for an axis of any length.
        size: known `(height, width)` of the images; decides if a shape can have several meanings.
        axes: axis order given by the user (`--axes`); None to infer it from the shape.

    Returns:
        The layout, and the `(height, width)` that the shape fixes, or None if any size fits.

    Raises:
        UsageError: if no layout has that shape; the message says what to give.
    """
    if axes is not None and axes not in AXES:
        raise UsageError(f"{option('axes', axes)}: give the order of height, width and channels: {', '.join(AXES)}")
    fitting = [(layout, found) for layout in _candidates(axes) for found in layout.sizes(shape, size)]
    if not fitting:
        raise UsageError(_refusal(tuple(shape), size, axes))
    # A known size chooses among several layouts; the caller reports a size that no layout has.
    return next(((layout, found) for layout, found in fitting if found == size), fitting[0])


def alternatives(layout: InputLayout) -> tuple[InputLayout, ...]:
    """Returns layouts of the same shape that only the model's predictions can distinguish.

    The most likely comes first. Only a flat layout has alternatives, because its shape does not show the axis order.
    """
    if not layout.flat:
        return (layout,)
    orders = ("hwc", "chw") if layout.channels == 3 else ("hw", "wh")
    return tuple(InputLayout(layout.channels, axes, flat=True) for axes in orders)


def _candidates(axes: str | None) -> Iterator[InputLayout]:
    if axes is None:
        yield from PREFERRED
        return
    for flat in (False, True):
        if "c" in axes:
            yield InputLayout(3, axes, flat)
        yield InputLayout(1, axes.replace("c", "") if flat else axes, flat)


def _refusal(shape: tuple[int | None, ...], size: Size | None, axes: str | None) -> str:
    shown = f"the model's input has the shape (batch, {', '.join('any' if n is None else str(n) for n in shape)})"
    if len(shape) == 1 and shape[0] is not None and axes is None:
        given = "no square picture has so many"
        if size:
            given = f"{option('image-size', f'{size[0]}x{size[1]}')} has not so many pixels"
        return f"{shown}: {given}, grey or RGB; give {option('image-size', 'HEIGHTxWIDTH')}"
    if axes is not None:
        return f"{shown}, which is none of a picture with {option('axes', axes)}"
    return (
        f"{shown}; kresume feeds it pictures, RGB or grey: (batch, height, width, 3), (batch, height, width, 1), "
        "(batch, 3, height, width), (batch, height, width) or one row of numbers"
    )
