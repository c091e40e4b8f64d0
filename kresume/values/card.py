"""Defines the model card: the input that a model expects and what its outputs mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kresume.values.decode_spec import DecodeSpec
from kresume.values.input_layout import RGB, InputLayout


@dataclass(frozen=True)
class Card:
    """The model card: expected input and meaning of the outputs, stored as `kresume.json`.

    Attributes:
        classes: names of the outputs, in output order.
        image_size: `(height, width)` in pixels.
        pixels: pixel convention that the model expects, a name of `kresume.images.conventions`.
        resize: `"stretch"`, `"crop"`, `"pad"` or `"keraspad"`.
        interpolation: one of `kresume.values.decode_spec.INTERPOLATIONS`.
        lineage: history of the model: run, parent, generation, digests.
        input: layout of the input image: colours and order of axes.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    pixels: str
    resize: str
    interpolation: str
    lineage: Mapping[str, Any] = field(default_factory=dict)
    input: InputLayout = RGB

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Returns the shape of one input image, without the batch axis."""
        return self.input.shape(self.image_size)

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "classes": list(self.classes),
            "image_size": list(self.image_size),
            "pixels": self.pixels,
            "resize": self.resize,
            "interpolation": self.interpolation,
            "lineage": dict(self.lineage),
            "input": self.input.as_dict(),
        }

    @property
    def spec(self) -> DecodeSpec:
        """Returns how pictures are decoded for the model."""
        return DecodeSpec(*self.image_size, self.resize, self.interpolation)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Card:
        """Reads the JSON form.

        Earlier versions wrote no `input`; a missing `input` means RGB images `(height, width, 3)`.

        Raises:
            KeyError, TypeError, ValueError: if `value` is not the JSON form of a card.
        """
        height, width = value["image_size"]
        return cls(
            classes=tuple(str(name) for name in value["classes"]),
            image_size=(int(height), int(width)),
            pixels=str(value["pixels"]),
            resize=str(value["resize"]),
            interpolation=str(value["interpolation"]),
            lineage=dict(value.get("lineage", {})),
            input=InputLayout.from_dict(value["input"]) if "input" in value else RGB,
        )
