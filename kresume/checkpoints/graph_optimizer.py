"""The optimizer in a TensorFlow object graph: Keras 3's, Keras 2's, and Keras 2's legacy ones, which keep slots.

    found = find_optimizer(nodes)           # the node, by its edges
    describe(nodes, found, arrays)          # (SavedOptimizer, step, rate)
    owned(nodes, found)                     # every node that is the optimizer's alone

They differ in where they keep what: Keras 3 and Keras 2 have lists (`_momentums`), Keras 2 no rate among its variables; legacy
optimizers have slots, tied to their variable by the graph itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from kresume.checkpoints.state import GraphNode, SavedOptimizer, SavedRate

Style = Literal["keras-3", "keras-2", "legacy"]
EDGES: Mapping[Style, tuple[tuple[str, ...], ...]] = {
    "keras-3": (("_iterations", "_trainable_variables"),),
    "keras-2": (("_iterations", "_variables"), ("_iterations", "_index_dict")),
    "legacy": (("iter", "learning_rate"), ("iter", "decay")),
}
"""Edges by which each style is known."""
LISTS_APART = frozenset({"_variables", "_trainable_variables", "_index_dict"})
ADAM_SETTINGS = ("beta_1", "beta_2")
ROOT_STEPS = ("step", "global_step", "iterations")


def style(node: GraphNode) -> Style | None:
    """Which kind of optimizer a node is, None if it is none."""
    for name, alternatives in EDGES.items():
        if any(set(edges) <= set(node.children) for edges in alternatives):
            return name
    return None


def find_optimizer(nodes: Sequence[GraphNode]) -> int | None:
    """The node that is an optimizer, by its edges; None if the graph holds none."""
    for index, node in enumerate(nodes):
        if style(node) is not None:
            return index
    return None


def inside(nodes: Sequence[GraphNode], index: int) -> int:
    """The optimizer that trains: inside the wrapper for loss scaling (mixed_float16), where there is one."""
    child = nodes[index].children.get("inner_optimizer")
    return child if child is not None and style(nodes[child]) is not None else index


def describe(
    nodes: Sequence[GraphNode], index: int | None, arrays: Mapping[str, np.ndarray]
) -> tuple[SavedOptimizer | None, int | None, SavedRate | None]:
    """What a graph says of its optimizer: class and settings where it does, step, and rate."""
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
    """Legacy optimizers write their name before each slot's, and the settings of Adam and Nadam as variables."""
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
    if decay is None or not float(decay) or nadam:  # Nadam's decay is the pace of its momentum, which Keras 3 has fixed
        return SavedRate(float(rate), "float")
    # Keras 2's decay divides the rate by 1 + decay x iterations: a schedule that Keras 3 has by name.
    config = {"initial_learning_rate": float(rate), "decay_steps": 1, "decay_rate": float(decay), "staircase": False}
    schedule = {
        "module": "keras.optimizers.schedules",
        "class_name": "InverseTimeDecay",
        "config": config,
        "registered_name": None,
    }
    return SavedRate(float(rate), "schedule", schedule)


def _scalar(nodes: Sequence[GraphNode], index: int, edge: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    child = nodes[index].children.get(edge)
    name = nodes[child].array if child is not None else None
    return arrays[name] if name is not None and arrays[name].shape == () else None


def slot_names(nodes: Sequence[GraphNode], index: int) -> set[str]:
    """The attributes that hold an optimizer's slots, or a legacy one's names of them."""
    node = nodes[index]
    if style(node) == "legacy":
        return {kind for _, kind in node.slots}
    filled = {name for name, child in node.children.items() if nodes[child].children or nodes[child].array}
    return filled - LISTS_APART


def owned(nodes: Sequence[GraphNode], index: int) -> set[int]:
    """The nodes that are the optimizer's alone: slots, counters and settings, not the weights that it trains."""
    found: set[int] = set()
    waiting = [index]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        children = nodes[node].children
        waiting += [child for edge, child in children.items() if edge != "_trainable_variables"]
        waiting += nodes[node].slots.values()
    return found
