"""Names the nodes near the root of a TensorFlow object graph, where models and optimizers are.

near_root(nodes)                       # {0: "", 1: "model", 2: "ema", 7: "trainer.student", ...}
models(nodes, arrays, optimizers)      # ["ema", "model"]: alike
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from kresume.values.state import GraphNode

USUAL = ("model", "net", "network", "module", "student", "online")
"""Attributes under which scripts save the model that they train, not its averages, its teacher or another model."""


def near_root(nodes: Sequence[GraphNode]) -> dict[int, str]:
    """Returns the root, its children and its grandchildren, each with the attributes that lead to it.

    A node that several attributes lead to has the first of the shortest paths.
    """
    found = {0: ""}
    first = nodes[0].children
    for edge, node in first.items():
        found.setdefault(node, edge)
    for edge, node in first.items():
        for inner, child in nodes[node].children.items():
            found.setdefault(child, f"{edge}.{inner}")
    return found


def models(nodes: Sequence[GraphNode], arrays: Mapping[str, np.ndarray], apart: Collection[int]) -> list[str]:
    """Returns the attributes of the root that hold copies of a Keras model, of the same shapes.

    Args:
        nodes: the graph.
        arrays: by name.
        apart: the optimizers' nodes, which are not entered.

    Returns:
        The attributes, sorted; none if the root itself is a model, whose layers may be alike.
    """
    root = nodes[0].children if nodes else {}
    if any(_is_of_model(edge) for edge in root):
        return []
    kinds: dict[tuple[tuple[int, ...], ...], dict[frozenset[str], str]] = {}
    for edge, node in sorted(root.items()):
        if any(_is_of_model(inner) for inner in nodes[node].children):
            below = arrays_below(nodes, node, apart)
            shapes = tuple(sorted(arrays[name].shape for name in below))
            kinds.setdefault(shapes, {}).setdefault(below, edge)
    return sorted(edge for alike in kinds.values() if len(alike) > 1 for edge in alike.values())


def _is_of_model(edge: str) -> bool:
    """Returns True for an attribute that only models have, of Keras 3 or 2."""
    return edge in {"_functional", "_operations", "_layers", "keras_api", "signatures"} or edge.startswith("layer")


def arrays_below(nodes: Sequence[GraphNode], node: int, apart: Collection[int]) -> frozenset[str]:
    """Returns the names of the arrays that a node and those below it hold.

    Args:
        nodes: the graph.
        node: index of the node.
        apart: nodes that are not entered.
    """
    found = below(nodes, node, apart)
    return frozenset(array for index in found if (array := nodes[index].array) is not None)


def below(
    nodes: Sequence[GraphNode],
    node: int,
    apart: Collection[int] = (),
    follow: Callable[[GraphNode], Iterable[int]] = lambda node: node.children.values(),
) -> set[int]:
    """Returns the indices of a node and of those below it.

    Args:
        nodes: the graph.
        node: index of the node.
        apart: nodes that are not entered.
        follow: returns the nodes to which a node leads.
    """
    found: set[int] = set()
    waiting = [node]
    while waiting:
        index = waiting.pop()
        if index not in found and index not in apart:
            found.add(index)
            waiting += follow(nodes[index])
    return found
