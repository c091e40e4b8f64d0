"""Groups a checkpoint's arrays by layer, using only their names.

    for row in layer_table(state):
        row.name, row.arrays, row.parameters         # "layer1.0.conv1", (("weight", (64, 64, 3, 3)),), 36864

Nothing is built and no framework is imported. A run's record holds the paths of its variables. If the names identify no
layers (a bare snapshot, lists of arrays), there are no rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kresume.checkpoints.graph_optimizer import find_optimizer, owned
from kresume.values.state import TrainState

APART = frozenset({"optimizer", "optimizer_variables", "optimizer_weights", "metrics", "metrics_variables", "callbacks",
                   "compile_metrics", "save_counter", "keras_api", "_all_variables", "seed_generator"})  # fmt: skip
"""Parts of array names that mark arrays other than weights."""
GROUPS = ("trainable", "non_trainable")
"""The groups of a snapshot that are weights."""
COUNTERS = frozenset({"num_batches_tracked", "seed_generator_state"})


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


def weights(state: TrainState) -> list[str]:
    """Returns the names of the weights: no optimizer, metrics, seeds or counters."""
    if state.layout == "groups":
        chosen = [name for name in state.arrays if name.partition("/")[0] in GROUPS]
        chosen.sort(key=lambda name: (GROUPS.index(name.partition("/")[0]), int(name.rpartition("/")[2])))
        return [name for name in chosen if "seed_generator" not in path_of(state, name)]
    apart = APART
    names = list(state.arrays)
    if state.layout == "graph":
        # Use edges, not keys: TensorFlow may store a weight under a key of the optimizer that trains it.
        node = find_optimizer(state.graph)
        others = {state.graph[index].array for index in owned(state.graph, node)} if node is not None else set()
        counters = (state.graph[child].array for child in state.graph[0].children.values())  # the script's own
        others |= {name for name in counters if name is not None and state.arrays[name].shape == ()}
        names, apart = [name for name in names if name not in others], APART - {"optimizer"}
    return [
        name
        for name in names
        if not set(name.split("/")) & apart and name.rpartition(".")[2] not in COUNTERS and "seed_generator" not in name
    ]


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Returns a sort key that orders `optimizer/10` after `optimizer/2`."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def path_of(state: TrainState, name: str) -> str:
    """Returns the path that Keras gave a snapshot's variable when the run began.

    Returns an empty string if the path is not recorded.
    """
    group, _, index = name.rpartition("/")
    paths = state.records.get("paths", {}).get(group)
    if paths is None:  # a backup has no variable paths, only each variable's location in the model
        paths = [entry[-1] for entry in state.records.get("structure", {}).get(group, ())]
    return str(paths[int(index)]) if int(index) < len(paths) else ""


def layer_table(state: TrainState) -> tuple[LayerRow, ...]:
    """Returns the layers in file order; empty if the names identify none."""
    rows: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, layer, role in _named(state):
        rows.setdefault(layer, []).append((role, tuple(state.arrays[name].shape)))
    return tuple(LayerRow(layer, tuple(arrays)) for layer, arrays in rows.items())


def output_width(state: TrainState) -> int | None:
    """Returns the number of outputs of the last layer, None if unknown.

    Keras's saving library sorts layers by class; for its files, the last Dense outside nested models is used.
    """
    rows = [row for row in layer_table(state) if any(len(shape) > 1 for _, shape in row.arrays)]
    if state.layout == "keras":
        dense = [row for row in rows if re.fullmatch(r"dense(_\d+)?", row.name.rpartition("/")[2])]
        depth = min((row.name.count("/") for row in dense), default=0)
        rows = sorted((row for row in dense if row.name.count("/") == depth), key=lambda row: natural(row.name))
    if not rows:
        return None
    kernel = next(shape for _, shape in rows[-1].arrays if len(shape) > 1)
    return kernel[0] if state.layout == "torch" else kernel[-1]


def _named(state: TrainState) -> Iterator[tuple[str, str, str]]:
    """Yields (array, layer, role) of every weight."""
    full_names = {node.array: node.full_name for node in state.graph if node.array is not None}
    names = weights(state)
    if state.layout == "graph":  # TensorFlow sorts its keys as text: 10 before 2
        names.sort(key=natural)
    for name in names:
        if state.layout == "torch":
            layer, _, role = name.rpartition(".")
        elif state.layout == "keras":
            layer, _, role = name.partition("/vars/")
            layer = layer.removeprefix("layers/").replace("/layers/", "/")
        elif state.layout == "graph":
            layer, _, role = (full_names.get(name) or name.partition("/.ATTRIBUTES")[0]).rpartition("/")
        elif state.layout == "layers":
            layer, _, role = name.removeprefix("model_weights/").partition(":")[0].rpartition("/")
            parts = layer.split("/")
            layer = "/".join(parts[1:] if len(parts) > 1 and parts[0] == parts[1] else parts)
        elif state.layout == "groups":
            layer, _, role = path_of(state, name).rpartition("/")
        elif state.layout == "tree":
            layer, _, role = name.partition("/")[2].rpartition("/")
        else:
            continue
        if layer or state.layout == "torch":
            yield name, layer or role, role
