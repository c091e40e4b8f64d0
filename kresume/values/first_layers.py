"""Tells from a model's first layers which pixels it expects.

pixels_of([("InputLayer", None), ("Rescaling", 1 / 255)])     # "0-255"
pixels_of(of_architecture(state.architecture))                # without building the model
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

LARGEST_SCALE = 0.1
"""Largest factor by which a model that expects bytes multiplies them; a larger one is meant for values around 1."""
PASSED = frozenset(
    {
        "InputLayer", "Identity", "Resizing", "CenterCrop", "Permute", "Reshape", "Flatten",
        "Concatenate",  # repeats grey three times, for a network that expects colours
        "AutoContrast", "RandAugment",
    }
)  # fmt: skip
"""Layers that keep the values in prediction, beside those whose name begins with `Random`."""


def pixels_of(layers: Iterable[tuple[str, Any]]) -> str | None:
    """Returns `"0-255"` if the first layers rescale or normalise, else None.

    Args:
        layers: the class of each layer and its `scale`, None without one, in the order of the model.
    """
    for name, scale in layers:
        if name == "Normalization":
            return "0-255"
        if name == "Rescaling":
            import numpy as np

            try:
                factor = np.max(np.abs(np.asarray(scale, np.float64)), initial=0.0)
            except (TypeError, ValueError, OverflowError):  # of a damaged file
                return None
            return "0-255" if 0 < factor <= LARGEST_SCALE else None
        if name not in PASSED and not name.startswith("Random"):
            return None
    return None


def of_architecture(architecture: Any) -> Iterator[tuple[str, Any]]:
    """Yields the class and the `scale` of each layer of a serialized model, inner models unfolded.

    Yields nothing behind a part that does not have the expected form.
    """
    config = architecture.get("config") if isinstance(architecture, Mapping) else None
    layers = config.get("layers") if isinstance(config, Mapping) else None
    for layer in layers if isinstance(layers, list) else ():
        inside = layer.get("config") if isinstance(layer, Mapping) else None
        if not isinstance(inside, Mapping):
            return
        if isinstance(inside.get("layers"), list):
            yield from of_architecture(layer)
        else:
            yield str(layer.get("class_name")).rpartition(">")[2], inside.get("scale")
