"""Reads the input shape of a serialized model without building it.

input_shapes(state.architecture)       # [(28, 28, 1)], without the batch
describe_input(state)                  # "grey (height, width, 1), 28x28", or None if unknown
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kresume.checkpoints.layers import layer_table
from kresume.checkpoints.layouts import names_of
from kresume.errors import UsageError
from kresume.values.input_layout import read_layout
from kresume.values.state import TrainState

Shape = tuple[int | None, ...]


def input_shapes(architecture: Mapping[str, Any]) -> list[Shape]:
    """Returns each input's shape, without the batch; empty if the config has none."""
    config = architecture.get("config")
    layers = config if isinstance(config, list) else config.get("layers") if isinstance(config, Mapping) else None
    layers = [layer for layer in layers or () if isinstance(layer, Mapping)]
    found = [_shape_of(layer) for layer in layers if layer.get("class_name") == "InputLayer"]
    if not found and layers and architecture.get("class_name") == "Sequential":
        inside = _shape_of(layers[0])
        found = [inside] if inside is not None else list(input_shapes(layers[0]))
    if not found and isinstance(config, Mapping):
        build = architecture.get("build_config")
        found = [
            _without_batch(config.get("build_input_shape"))
            or _without_batch(build.get("input_shape") if isinstance(build, Mapping) else None)
        ]
    return [shape for shape in found if shape is not None]


def _shape_of(layer: Mapping[str, Any]) -> Shape | None:
    config = layer.get("config")
    if not isinstance(config, Mapping):
        return None
    return _without_batch(config.get("batch_shape")) or _without_batch(config.get("batch_input_shape"))


def _without_batch(shape: Any) -> Shape | None:
    whole = isinstance(shape, Sequence) and not isinstance(shape, str) and len(shape) > 1
    if not whole or not all(length is None or isinstance(length, int) for length in shape):
        return None
    return tuple(shape[1:])


def describe_input(state: TrainState) -> str | None:
    """Describes the input from the model card, the architecture or the first convolution.

    Returns None if none of them says it.
    """
    if state.card is not None:
        height, width = state.card.image_size
        return f"{state.card.input}, {height}x{width}"
    shapes = input_shapes(state.architecture) if state.architecture is not None else []
    if len(shapes) > 1:
        return f"{len(shapes)} inputs, {', '.join(map(_shown, shapes))}: kresume train supports one image input"
    if shapes:
        return _describe_shape(shapes[0])
    channels = _first_convolution(state)
    if channels not in {1, 3}:
        return None
    return f"{'grey' if channels == 1 else 'RGB'}: the first convolution has {channels} input channel{'s' * (channels > 1)}"


def _describe_shape(shape: Shape) -> str:
    try:
        layout, size = read_layout(shape)
    except UsageError:
        row = len(shape) == 1 and shape[0] is not None
        return f"{_shown(shape)}: {'give --image-size HEIGHTxWIDTH' if row else 'not an RGB or grey image'}"
    found = "any size" if size is None else f"{size[0]}x{size[1]}"
    if layout.flat:
        colours = "RGB" if layout.channels == 3 else "grey"
        return (
            f"{colours}, {shape[0]} values in one row, {found}; kresume finds their order on old images, or give --axes"
        )
    return f"{layout}, {found}"


def _shown(shape: Shape) -> str:
    return f"({', '.join('any' if length is None else str(length) for length in shape)})"


def _first_convolution(state: TrainState) -> int:
    """Returns the first convolution's number of input channels, 0 if there is none."""
    for row in layer_table(state):
        for _, shape in row.arrays:
            if len(shape) == 4:
                return int(shape[names_of(state).kernel_axes[0]])
    return 0
