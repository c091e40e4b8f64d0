"""Decides the size of pictures and how they are resized."""

from __future__ import annotations

from typing import Any

from kresume.errors import UsageError
from kresume.models.inputs import check_size, layout_of
from kresume.options.settings import DEFAULTS
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.values.card import Card
from kresume.values.decode_spec import DecodeSpec
from kresume.values.input_layout import InputLayout


def decode_spec(
    config: TrainConfig, card: Card | None, model: Any, asked: tuple[int, int] | None
) -> tuple[DecodeSpec, InputLayout]:
    """Decides size and resizing, and how the model takes an image.

    An option wins over the checkpoint's model card, which wins over the model's own input.

    Args:
        config: the options.
        card: the checkpoint's model card, None if it has none.
        model: the built model.
        asked: `--image-size` as `(height, width)`, or None.

    Raises:
        UsageError: an option contradicts the model's fixed input, or the model takes no images.
    """
    layout, fixed = layout_of(
        model, asked or (card.image_size if card else None), config.axes, card.input if card else None
    )
    check_size(asked, fixed)
    size = asked or fixed or (card.image_size if card else None)
    if size is None:
        raise UsageError(
            f"the model takes images of any size: say which to train on with {option('image-size')} (N or HxW)"
        )
    spec = DecodeSpec(
        size[0],
        size[1],
        config.resize or (card.resize if card else DEFAULTS.resize),
        config.interpolation or (card.interpolation if card else DEFAULTS.interpolation),
    )
    return spec, layout
