"""Lists what the array names of each layout mean.

    names_of(state).weights(state)         # the names of the weights, without optimizer, metrics and seeds

Nothing is built and no framework is imported. `kresume.models.layouts` is the table for live models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kresume.checkpoints.graph_optimizer import find_optimizers, owned
from kresume.values.state import Layout, TrainState

APART = frozenset({"optimizer", "optimizer_variables", "optimizer_weights", "metrics", "metrics_variables", "callbacks",
                   "compile_metrics", "save_counter", "keras_api", "_all_variables", "seed_generator"})  # fmt: skip
"""Parts of array names that mark arrays other than weights."""
GROUPS = ("trainable", "non_trainable")
"""The groups of a snapshot that are weights."""
COUNTERS = frozenset({"num_batches_tracked", "seed_generator_state"})

LayerAndRole = tuple[str, str]


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Returns a sort key that orders `optimizer/10` after `optimizer/2`."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def weights_by_name(state: TrainState) -> list[str]:
    """Returns the arrays whose names mark no optimizer, metrics, seeds or counters."""
    return _without(state.arrays, APART)


def unknown_layers(state: TrainState, names: Sequence[str]) -> list[LayerAndRole]:
    """Returns no layer for any array."""
    return [("", "")] * len(names)


@dataclass(frozen=True)
class LayoutNames:
    """The meaning of a layout's array names.

    Attributes:
        weights: returns the names of the weights of a checkpoint: no optimizer, metrics, seeds or counters.
        layers: returns the layer and the role of each weight; the layer is empty if the name does not say it.
        kernel_axes: the axes of a kernel's input and output channels.
        sorted_by_class: True if layers are stored by class instead of in the model's order.
        skeleton: True if `inspect --write-model` can write the layers and their sizes.
        proved_on_images: True if layers are matched by guess: training must first be right on labelled old images.
        optimizer_apart: True if the optimizer's state may be in a file of its own (`--optimizer-from`).
    """

    weights: Callable[[TrainState], list[str]] = weights_by_name
    layers: Callable[[TrainState, Sequence[str]], list[LayerAndRole]] = unknown_layers
    kernel_axes: tuple[int, int] = (-2, -1)
    sorted_by_class: bool = False
    skeleton: bool = False
    proved_on_images: bool = False
    optimizer_apart: bool = False


def _without(names: Mapping[str, object] | Sequence[str], apart: frozenset[str]) -> list[str]:
    return [
        name
        for name in names
        if not set(name.split("/")) & apart and name.rpartition(".")[2] not in COUNTERS and "seed_generator" not in name
    ]


def _in_groups(state: TrainState) -> list[str]:
    chosen = [name for name in state.arrays if name.partition("/")[0] in GROUPS]
    chosen.sort(key=lambda name: (GROUPS.index(name.partition("/")[0]), int(name.rpartition("/")[2])))
    return [name for name in chosen if "seed_generator" not in _path_of(state, name)]


def _in_graph(state: TrainState) -> list[str]:
    """Returns the weights of an object graph by its edges.

    The keys do not show them: TensorFlow may store a weight under a key of the optimizer that trains it. TensorFlow
    sorts its keys as text, 10 before 2; here they are in natural order.
    """
    nodes = find_optimizers(state.graph)
    others = {state.graph[index].array for node in nodes for index in owned(state.graph, node)}
    counters = (state.graph[child].array for child in state.graph[0].children.values())  # the script's own
    others |= {name for name in counters if name is not None and state.arrays[name].shape == ()}
    names = _without([name for name in state.arrays if name not in others], APART - {"optimizer"})
    return sorted(names, key=natural)


def _path_of(state: TrainState, name: str) -> str:
    """Returns the path that Keras gave a snapshot's variable when the run began.

    Returns an empty string if the path is not recorded.
    """
    group, _, index = name.rpartition("/")
    paths = state.records.get("paths", {}).get(group)
    if paths is None:  # a backup has no variable paths, only each variable's location in the model
        paths = [entry[-1] for entry in state.records.get("structure", {}).get(group, ())]
    return str(paths[int(index)]) if int(index) < len(paths) else ""


def _split(path: str, separator: str = "/") -> LayerAndRole:
    layer, _, role = path.rpartition(separator)
    return layer, role


def _layers_of_groups(state: TrainState, names: Sequence[str]) -> list[LayerAndRole]:
    return [_split(_path_of(state, name)) for name in names]


def _layers_of_keras(state: TrainState, names: Sequence[str]) -> list[LayerAndRole]:
    found = (name.partition("/vars/") for name in names)
    return [(layer.removeprefix("layers/").replace("/layers/", "/"), role) for layer, _, role in found]


def _layers_by_name(state: TrainState, names: Sequence[str]) -> list[LayerAndRole]:
    found = []
    for name in names:
        layer, role = _split(name.removeprefix("model_weights/").partition(":")[0])
        parts = layer.split("/")
        found.append(("/".join(parts[1:] if len(parts) > 1 and parts[0] == parts[1] else parts), role))
    return found


def _layers_of_graph(state: TrainState, names: Sequence[str]) -> list[LayerAndRole]:
    full_names = {node.array: node.full_name for node in state.graph if node.array is not None}
    return [_split(full_names.get(name) or name.partition("/.ATTRIBUTES")[0]) for name in names]


def _layers_of_tree(state: TrainState, names: Sequence[str]) -> list[LayerAndRole]:
    return [_split(name.partition("/")[2]) for name in names]


def _layers_of_torch(state: TrainState, names: Sequence[str]) -> list[LayerAndRole]:
    """Splits at the last dot; a parameter of the whole network is a layer by itself."""
    found = (_split(name, ".") for name in names)
    return [(layer or role, role) for layer, role in found]


LAYOUTS: Mapping[Layout, LayoutNames] = {
    "groups": LayoutNames(weights=_in_groups, layers=_layers_of_groups),
    "keras": LayoutNames(layers=_layers_of_keras, sorted_by_class=True),
    "layers": LayoutNames(layers=_layers_by_name),
    "graph": LayoutNames(weights=_in_graph, layers=_layers_of_graph),
    "torch": LayoutNames(
        layers=_layers_of_torch, kernel_axes=(1, 0), skeleton=True, proved_on_images=True, optimizer_apart=True
    ),
    "tree": LayoutNames(layers=_layers_of_tree),
    "mapped": LayoutNames(),
}


def names_of(state: TrainState) -> LayoutNames:
    """Returns the entry of a checkpoint's layout."""
    return LAYOUTS[state.layout]
