"""Finds and describes the optimizer in a TensorFlow object graph.

    found = find_optimizer(nodes)           # the node, by its edges
    trained(nodes, found)                   # the arrays of the weights that it trains
    describe(nodes, found, arrays)          # (SavedOptimizer, step, rate)
    owned(nodes, found)                     # every node that belongs to the optimizer alone

Supports optimizers of Keras 3, of Keras 2, and the legacy ones of Keras 2. Keras 3 and Keras 2 store slots in lists
(`_momentums`); Keras 2 does not store the rate as a variable. Legacy optimizers have slot variables, which the graph
itself links to their variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from kresume.checkpoints.graph_nodes import USUAL, arrays_below, below, near_root
from kresume.checkpoints.keras_2_optimizers import decaying
from kresume.values.state import GraphNode, SavedOptimizer, SavedRate

Style = Literal["keras-3", "keras-2", "legacy"]
EDGES: Mapping[Style, tuple[tuple[str, ...], ...]] = {
    "keras-3": (("_iterations", "_trainable_variables"),),
    "keras-2": (("_iterations", "_variables"), ("_iterations", "_index_dict")),
    "legacy": (("iter", "learning_rate"), ("iter", "decay")),
}
"""Edges that identify each style."""
LISTS_APART = frozenset({"_variables", "_trainable_variables", "_index_dict"})
ADAM_SETTINGS = ("beta_1", "beta_2")
ROOT_STEPS = ("step", "global_step", "iterations")


def style(node: GraphNode) -> Style | None:
    """Returns the kind of optimizer that a node is, or None."""
    for name, alternatives in EDGES.items():
        if any(set(edges) <= set(node.children) for edges in alternatives):
            return name
    return None


def find_optimizers(nodes: Sequence[GraphNode]) -> list[int]:
    """Returns the indices of the optimizers' nodes, without those inside a loss-scaling wrapper."""
    found = [index for index, node in enumerate(nodes) if style(node) is not None]
    wrapped = {inside(nodes, index) for index in found if inside(nodes, index) != index}
    return [index for index in found if index not in wrapped]


def find_optimizer(nodes: Sequence[GraphNode]) -> int | None:
    """Returns the index of the optimizer's node; None if the graph has no optimizer.

    Of several, it is the one that trains the most weights of the model with a usual name, else of all models.
    """
    found = find_optimizers(nodes)
    if len(found) < 2:
        return next(iter(found), None)
    usual = next((edge for edge in USUAL if edge in nodes[0].children), None)
    meant = arrays_below(nodes, nodes[0].children[usual], found) if usual is not None else frozenset()
    return max(found, key=lambda index: (len(trained(nodes, index) & meant), len(trained(nodes, index))))


def names(nodes: Sequence[GraphNode]) -> list[str]:
    """Returns the attributes under which the optimizers were saved."""
    near = near_root(nodes)
    return [near.get(index, f"node {index}") for index in find_optimizers(nodes)]


def trained(nodes: Sequence[GraphNode], index: int) -> frozenset[str]:
    """Returns the names of the arrays of the weights that an optimizer trains.

    The new optimizers of Keras 2 do not list them; their slots' names end in the weight's name.
    """
    index = inside(nodes, index)
    node = nodes[index]
    if style(node) == "legacy":
        owners = {weight for weight, _ in node.slots}
    elif "_trainable_variables" in node.children:
        owners = set(nodes[node.children["_trainable_variables"]].children.values())
    else:
        own = owned(nodes, index)
        parts = (nodes[slot].full_name.split("/") for slot in own if nodes[slot].array is not None)
        ends = {"/".join(path[begin:]) for path in parts for begin in range(1, len(path))}
        owners = {other for other, node in enumerate(nodes) if other not in own and node.full_name in ends}
    return frozenset(array for owner in owners if (array := nodes[owner].array) is not None)


def inside(nodes: Sequence[GraphNode], index: int) -> int:
    """Returns the inner optimizer if loss scaling (mixed_float16) wraps it, else `index`."""
    child = nodes[index].children.get("inner_optimizer")
    return child if child is not None and style(nodes[child]) is not None else index


def describe(
    nodes: Sequence[GraphNode], index: int | None, arrays: Mapping[str, np.ndarray]
) -> tuple[SavedOptimizer | None, int | None, SavedRate | None]:
    """Returns the optimizer, step and rate that a graph stores, each None if unknown."""
    if index is None:
        counts = (_scalar(nodes, 0, edge, arrays) for edge in ROOT_STEPS)
        return (
            None,
            next((int(count) for count in counts if count is not None and count.dtype.kind in "iu"), None),
            None,
        )
    scaled = inside(nodes, index) != index
    index = inside(nodes, index)
    count = _scalar(nodes, index, "_iterations", arrays)
    count = _scalar(nodes, index, "iter", arrays) if count is None else count
    step = int(count) if count is not None else None
    if style(nodes[index]) == "legacy":
        return _legacy(nodes, index, arrays), step, _legacy_rate(nodes, index, arrays)
    rate = _scalar(nodes, index, "_learning_rate", arrays)
    variables = nodes[index].children.get("_variables")
    stored = len(nodes[variables].children) if variables is not None else 0
    optimizer = SavedOptimizer(None, None, stored, loss_scale=scaled)
    return optimizer, step, SavedRate(float(rate), "float") if rate is not None else None


def _legacy(nodes: Sequence[GraphNode], index: int, arrays: Mapping[str, np.ndarray]) -> SavedOptimizer:
    """Describes a legacy optimizer from its slot names.

    Each slot's name starts with the optimizer's name. Adam and Nadam also store their settings as variables.
    """
    node = nodes[index]
    kinds = {kind for _, kind in node.slots}
    names = {nodes[slot].full_name.partition("/")[0] for slot in node.slots.values()}
    settings = {name: _scalar(nodes, index, name, arrays) for name in ADAM_SETTINGS}
    if names == {"Nadam"} and kinds == {"m", "v"}:
        return SavedOptimizer(
            "Nadam", {name: float(value) for name, value in settings.items() if value is not None}, len(node.slots) + 1
        )
    if names == {"Adam"} and {"m", "v"} <= kinds <= {"m", "v", "vhat"}:
        config = {name: float(value) for name, value in settings.items() if value is not None}
        return SavedOptimizer("Adam", {**config, "amsgrad": "vhat" in kinds}, len(node.slots) + 1)
    return SavedOptimizer(None, None, len(node.slots) + 1)


def _legacy_rate(nodes: Sequence[GraphNode], index: int, arrays: Mapping[str, np.ndarray]) -> SavedRate | None:
    rate, decay = (_scalar(nodes, index, edge, arrays) for edge in ("learning_rate", "decay"))
    if rate is None:
        return None
    nadam = {nodes[slot].full_name.partition("/")[0] for slot in nodes[index].slots.values()} == {"Nadam"}
    if decay is None or not float(decay) or nadam:  # Nadam's decay changes its momentum, not its rate; Keras 3 fixes it
        return SavedRate(float(rate), "float")
    return SavedRate(float(rate), "schedule", decaying(float(rate), float(decay)))


def _scalar(nodes: Sequence[GraphNode], index: int, edge: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    child = nodes[index].children.get(edge)
    name = nodes[child].array if child is not None else None
    return arrays[name] if name is not None and arrays[name].shape == () else None


def slot_names(nodes: Sequence[GraphNode], index: int) -> set[str]:
    """Returns the attributes that hold an optimizer's slots, or a legacy optimizer's slot names."""
    node = nodes[index]
    if style(node) == "legacy":
        return {kind for _, kind in node.slots}
    filled = {name for name, child in node.children.items() if nodes[child].children or nodes[child].array}
    return filled - LISTS_APART


def owned(nodes: Sequence[GraphNode], index: int) -> set[int]:
    """Returns nodes that belong to the optimizer alone: slots, counters, settings, no weights."""

    def own(node: GraphNode) -> list[int]:
        children = [child for edge, child in node.children.items() if edge != "_trainable_variables"]
        return [*children, *node.slots.values()]

    return below(nodes, index, follow=own)
