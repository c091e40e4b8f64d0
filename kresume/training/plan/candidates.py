"""Lists the ways to feed a foreign model that are tried on its old images.

ways = as_adapted(feedings_of(None, layout, None, grey=False), pictures, adapted(model))
ways["0-1"]                            # ("0-1", layout)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kresume.images import conventions, inputs
from kresume.values.input_layout import InputLayout, alternatives

Feedings = dict[str, tuple[str, InputLayout]]
ALIKE = 5 / 3
"""Factor between the spread of the values to which a layer was adapted and that of old images; `0-1` and `-1-1` differ by 2."""
FEW = 64
"""Pictures whose values are looked at, about."""
NEAR = 0.05
"""How much further than the nearest one the mean of a channel may be, in deviations."""


def feedings_of(stated: str | None, layout: InputLayout, axes: str | None, *, grey: bool) -> Feedings:
    """Returns the (convention, layout) pairs to try, by the option that selects each."""
    layouts = (layout,) if axes is not None else alternatives(layout)
    names = (stated,) if stated else conventions.names_for(layout.channels, grey=grey)
    return {
        name if each == layouts[0] else f"{name} with axes {each.axes}": (name, each)
        for each in layouts
        for name in names
    }


def as_adapted(feedings: Feedings, pictures: np.ndarray, adapted: tuple[tuple[float, ...], float] | None) -> Feedings:
    """Returns the feedings whose values are those to which a Normalization was adapted, else all.

    Args:
        feedings: by name, the convention and the layout.
        pictures: `(n, height, width, 3) uint8`, of those on which the model was trained.
        adapted: means of the channels, and the standard deviation over all; None without such a layer.
    """
    if adapted is None:
        return feedings
    means, spread = np.asarray(adapted[0]), adapted[1]
    pictures = pictures[:: max(len(pictures) // FEW, 1)]
    distances: dict[str, float] = {}
    for name, (pixels, layout) in feedings.items():
        values = np.asarray(inputs.to_input(pixels, layout)(pictures), np.float32)
        size = float(values.std(dtype=np.float64))
        if not (
            spread < ALIKE * size and size < ALIKE * spread and abs(means.mean() - values.mean(dtype=np.float64)) < size
        ):
            continue
        found = values.reshape(-1, values.shape[-1]).mean(axis=0, dtype=np.float64)
        # Colours in another order have the same mean over all.
        found = found if found.shape == means.shape else values.mean()
        distances[name] = float(np.sqrt(np.mean((found - means) ** 2))) / size
    # Means of these pictures tell the order of the colours, too; those of others, such as ImageNet's, do not.
    nearest = min(distances.values(), default=0.0)
    furthest = nearest + NEAR if nearest < NEAR else np.inf
    return {name: feedings[name] for name, distance in distances.items() if distance <= furthest} or feedings


def twins(feedings: Mapping[str, tuple[str, InputLayout]]) -> list[tuple[str, str]]:
    """Returns the pairs of candidates whose conventions are twins, in the same layout."""
    ways = {fed: way for way, fed in feedings.items()}
    return [
        (way, ways[other, layout])
        for way, (name, layout) in feedings.items()
        for one, other in conventions.TWINS
        if name == one and (other, layout) in ways
    ]


def louder(feedings: Mapping[str, tuple[str, InputLayout]]) -> list[tuple[str, str]]:
    """Returns the pairs in the same layout of which the first gives much larger values."""
    return [
        (way, other)
        for way, (name, layout) in feedings.items()
        for other, (quiet, same) in feedings.items()
        if layout == same and conventions.is_louder(name, quiet)
    ]
