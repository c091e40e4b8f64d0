"""Converts PyTorch arrays into Keras's memory layout, by kind of layer.

    convert(weight, Conversion("conv1.weight", "conv"), (3, 3, 3, 64))         # OIHW -> HWIO
    convert(weight, Conversion("fc.weight", "dense", flatten=(7, 7, 64)), ...) # and columns from CHW to HWC order

PyTorch puts channels before rows and columns, Keras behind them. So the first dense layer after a Flatten sees the same
values in another order, which no shape shows. The same conversions apply to all arrays of a parameter's shape:
gradients, moments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["same", "vector", "dense", "conv", "depthwise"]
KINDS: tuple[Kind, ...] = ("same", "vector", "dense", "conv", "depthwise")


@dataclass(frozen=True)
class Conversion:
    """The source of a Keras variable's values, and their conversion.

    Attributes:
        source: name in the state dict.
        kind: `"conv"` OIHW to HWIO; `"depthwise"` (C·M)1HW to HWCM; `"dense"` (out, in) to (in, out), with attention's
            heads split off; `"vector"` one axis; `"same"` unchanged except for axes of length 1.
        part: 0, 1 or 2 if query, key and value are stacked along the first axis; None otherwise.
        flatten: `(height, width, channels)` before the Flatten that made the inputs; None if nothing was flattened.
    """

    source: str
    kind: Kind
    part: int | None = None
    flatten: tuple[int, int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the form used in a map file."""
        entry: dict[str, Any] = {"from": self.source, "as": self.kind}
        if self.part is not None:
            entry["part"] = self.part
        if self.flatten is not None:
            entry["flatten"] = list(self.flatten)
        return entry

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], default: Conversion | None) -> Conversion:
        """Reads an entry of a map file; missing fields come from the default.

        Raises:
            KeyError, TypeError, ValueError: the entry is invalid.
        """
        if unknown := sorted(set(value) - {"from", "as", "part", "flatten"}):
            raise ValueError(f"{unknown[0]}: is no field")
        kind = value.get("as", default.kind if default else "same")
        if kind not in KINDS:
            raise ValueError(f"as: {kind} is not one of {', '.join(KINDS)}")
        part = value.get("part", default.part if default else None)
        flatten = value.get("flatten", default.flatten if default else None)
        if flatten is not None:
            height, width, channels = (int(side) for side in flatten)
            flatten = (height, width, channels)
        return cls(str(value["from"]), kind, int(part) if part is not None else None, flatten)


def convert(array: np.ndarray, conversion: Conversion, shape: tuple[int, ...]) -> np.ndarray | None:
    """Converts an array to a Keras variable's layout; None if it does not fit.

    The result is contiguous.

    Args:
        array: in PyTorch's layout.
        conversion: the conversion.
        shape: the variable's shape.
    """
    if conversion.part is not None:
        if array.shape[0] % 3:
            return None
        array = np.split(array, 3, axis=0)[conversion.part]
    result = _CONVERTERS[conversion.kind](array, conversion, tuple(shape))
    return None if result is None else np.ascontiguousarray(result).reshape(shape)


def _same(array: np.ndarray, conversion: Conversion, shape: tuple[int, ...]) -> np.ndarray | None:
    def without_ones(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(size for size in sizes if size != 1)

    return array if without_ones(array.shape) == without_ones(shape) else None


def _vector(array: np.ndarray, conversion: Conversion, shape: tuple[int, ...]) -> np.ndarray | None:
    if array.ndim != 1 or array.size != math.prod(shape):
        return None
    if conversion.flatten is None:
        return array
    height, width, channels = conversion.flatten
    if array.size != height * width * channels:
        return None
    return array.reshape(channels, height, width).transpose(1, 2, 0)


def _dense(array: np.ndarray, conversion: Conversion, shape: tuple[int, ...]) -> np.ndarray | None:
    if array.ndim != 2:
        return None
    outputs, inputs = array.shape
    # Attention's EinsumDense splits its outputs or its inputs into heads; the order in memory is the same.
    if not any(
        (math.prod(shape[:cut]), math.prod(shape[cut:])) == (inputs, outputs) for cut in range(1, max(len(shape), 2))
    ):
        return None
    if conversion.flatten is not None:
        height, width, channels = conversion.flatten
        if inputs != height * width * channels:
            return None
        array = array.reshape(outputs, channels, height, width).transpose(0, 2, 3, 1).reshape(outputs, inputs)
    return array.T


def _conv(array: np.ndarray, conversion: Conversion, shape: tuple[int, ...]) -> np.ndarray | None:
    if array.ndim < 3:
        return None
    moved = np.moveaxis(array, (0, 1), (-1, -2))
    return moved if moved.shape == shape else None


def _depthwise(array: np.ndarray, conversion: Conversion, shape: tuple[int, ...]) -> np.ndarray | None:
    if array.ndim != 4 or len(shape) != 4 or array.shape != (shape[2] * shape[3], 1, *shape[:2]):
        return None
    return array.reshape(shape[2], shape[3], *shape[:2]).transpose(2, 3, 0, 1)


_CONVERTERS = {"same": _same, "vector": _vector, "dense": _dense, "conv": _conv, "depthwise": _depthwise}
