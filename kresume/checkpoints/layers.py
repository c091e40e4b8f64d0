"""Groups a checkpoint's arrays by layer, using only their names.

    for row in layer_table(state):
        row.name, row.arrays, row.parameters         # "layer1.0.conv1", (("weight", (64, 64, 3, 3)),), 36864

Nothing is built and no framework is imported. A run's record holds the paths of its variables. If the names identify no
layers (a bare snapshot, lists of arrays), there are no rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from kresume.checkpoints.layouts import names_of, natural
from kresume.values.state import TrainState

ADAPTED = {"0": "mean", "1": "variance", "mean": "mean", "variance": "variance"}
"""Roles of the weights of an adapted Normalization, by its order in files that give no names, and what they are."""


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: the layer's name in the file.
        arrays: (role, shape) of each of its arrays.
        parameters: number of elements in all its arrays.
    """

    name: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def parameters(self) -> int:
        """Returns the number of elements in all arrays of the layer."""
        return sum(int(np.prod(shape)) for _, shape in self.arrays)


def layer_table(state: TrainState) -> tuple[LayerRow, ...]:
    """Returns the layers in file order; empty if the names identify none."""
    names = names_of(state)
    weights = names.weights(state)
    rows: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for weight, (layer, role) in zip(weights, names.layers(state, weights), strict=True):
        if layer:
            rows.setdefault(layer, []).append((role, tuple(state.arrays[weight].shape)))
    return tuple(LayerRow(layer, tuple(arrays)) for layer, arrays in rows.items())


def adapted_of(state: TrainState, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns mean and variance to which a Normalization was adapted, from a checkpoint's weights.

    Args:
        state: the checkpoint.
        name: of the layer in the architecture. Where files name layers by their class, it must be the only one.

    Returns:
        None if the names of the weights do not show them.
    """
    names = names_of(state)
    weights = names.weights(state)
    found: dict[str, dict[str, np.ndarray]] = {}
    for weight, (layer, role) in zip(weights, names.layers(state, weights), strict=True):
        if role in ADAPTED:
            found.setdefault(layer, {})[ADAPTED[role]] = state.arrays[weight]
    of_class = [layer for layer in found if re.fullmatch(r"normalization(_\d+)?", layer.rpartition("/")[2])]
    own = [layer for layer in found if name in layer.split("/")]
    (arrays,) = [found[layer] for layer in own or of_class] if len(own or of_class) == 1 else ({},)
    return (arrays["mean"], arrays["variance"]) if len(arrays) == 2 else None


def output_width(state: TrainState) -> int | None:
    """Returns the number of outputs of the last layer, None if unknown.

    Keras's saving library sorts layers by class; for its files, the last Dense outside nested models is used.
    """
    names = names_of(state)
    rows = [row for row in layer_table(state) if any(len(shape) > 1 for _, shape in row.arrays)]
    if names.sorted_by_class:
        dense = [row for row in rows if re.fullmatch(r"dense(_\d+)?", row.name.rpartition("/")[2])]
        depth = min((row.name.count("/") for row in dense), default=0)
        rows = sorted((row for row in dense if row.name.count("/") == depth), key=lambda row: natural(row.name))
    if not rows:
        return None
    kernel = next(shape for _, shape in rows[-1].arrays if len(shape) > 1)
    return kernel[names.kernel_axes[1]]
