"""How a model takes a picture: its colours, the order of its axes, and whether it is one row of numbers.

    layout, size = read_layout((28, 28, 1))               # grey (height, width, 1), (28, 28)
    layout, size = read_layout((784,), axes="wh")         # grey, 784 numbers, column by column
    layout.shape((28, 28))                                # the shape of one picture, as the model takes it

A shape is that of the model's input without the batch. `kresume.images.inputs` does what a layout says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from kresume.errors import UsageError

AXES = tuple("".join(axes) for letters in ("hwc", "hw") for axes in permutations(letters))
"""Every order of height, width and channels; grey pictures may have no axis of channels."""

Shape = Sequence[int | None]
Size = tuple[int, int]


@dataclass(frozen=True)
class InputLayout:
    """How a model takes a picture.

    Attributes:
        channels: 3 for red, green and blue, 1 for grey.
        axes: order of height, width and channels, `"hwc"` or `"chw"` for example; `"hw"` has no axis of channels.
        flat: the numbers are one row in that order.

    Raises:
        ValueError: it is no layout.
    """

    channels: int = 3
    axes: str = "hwc"
    flat: bool = False

    def __post_init__(self) -> None:
        if self.axes not in AXES or self.channels not in {1, 3} or (self.channels == 3 and "c" not in self.axes):
            raise ValueError(f"no input layout: {self.channels} channels, axes {self.axes}")

    def shape(self, size: Size) -> tuple[int, ...]:
        """Returns the shape of one picture of `(height, width)`."""
        sides = self.sides(size)
        return (math.prod(sides),) if self.flat else sides

    def sides(self, size: Size) -> tuple[int, ...]:
        """Returns the length of each axis, in the order of the axes."""
        lengths = {"h": size[0], "w": size[1], "c": self.channels}
        return tuple(lengths[axis] for axis in self.axes)

    def sizes(self, shape: Shape, size: Size | None = None) -> list[Size | None]:
        """Returns the `(height, width)` with which pictures of this layout have a shape.

        Args:
            shape: of the input, without the batch.
            size: what pictures are known to have: a row of numbers need not be a square.

        Returns:
            Nothing where none has it; None stands for any size.
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
            KeyError, TypeError, ValueError: it is not one.
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
"""The layouts that a shape alone can mean, the likeliest first."""


def read_layout(shape: Shape, size: Size | None = None, axes: str | None = None) -> tuple[InputLayout, Size | None]:
    """Finds how a model takes a picture by the shape of its input.

    Args:
        shape: of the input, without the batch; None for an axis of any length.
        size: `(height, width)` that pictures are known to have; decides where a shape can mean several.
        axes: order of the axes that the user says (`--axes`); None for what the shape tells.

    Returns:
        The layout, and the `(height, width)` that the shape fixes, or None where it takes any.

    Raises:
        UsageError: no layout has that shape; the message says what to give.
    """
    if axes is not None and axes not in AXES:
        raise UsageError(f"--axes {axes}: give the order of height, width and channels: {', '.join(AXES)}")
    fitting = [(layout, found) for layout in _candidates(axes) for found in layout.sizes(shape, size)]
    if not fitting:
        raise UsageError(_refusal(tuple(shape), size, axes))
    # A size that is known chooses among several; one that none has is the caller's to name.
    return next(((layout, found) for layout, found in fitting if found == size), fitting[0])


def alternatives(layout: InputLayout) -> tuple[InputLayout, ...]:
    """Returns the layouts of the same shape that nothing but the model's answers tells apart, the likeliest first.

    Only a row of numbers hides its order.
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
        given = f"--image-size {size[0]}x{size[1]} has not so many pixels" if size else "no square picture has so many"
        return f"{shown}: {given}, grey or RGB; give --image-size HEIGHTxWIDTH"
    if axes is not None:
        return f"{shown}, which is none of a picture with --axes {axes}"
    return (
        f"{shown}; kresume feeds it pictures, RGB or grey: (batch, height, width, 3), (batch, height, width, 1), "
        "(batch, 3, height, width), (batch, height, width) or one row of numbers"
    )
