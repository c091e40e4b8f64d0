"""Names the nodes near the root of a TensorFlow object graph, where models and optimizers are.

near_root(nodes)                       # {0: "", 1: "model", 2: "ema", 7: "trainer.student", ...}
models(nodes, arrays, optimizers)      # ["ema", "model"]: alike
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from kresume.values.state import GraphNode


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
    """Returns the attributes of the root that hold copies of a model: other arrays of the same shapes.

    Args:
        nodes: the graph.
        arrays: by name.
        apart: the optimizers' nodes, which are not entered.

    Returns:
        The attributes, sorted; none if each is of a kind of its own.
    """
    kinds: dict[tuple[tuple[int, ...], ...], dict[frozenset[str], str]] = {}
    for edge, node in sorted(nodes[0].children.items() if nodes else ()):
        below = _arrays_below(nodes, node, apart)
        shapes = tuple(sorted(arrays[name].shape for name in below))
        if len(below) > 1:
            kinds.setdefault(shapes, {}).setdefault(below, edge)
    return sorted(edge for alike in kinds.values() if len(alike) > 1 for edge in alike.values())


def _arrays_below(nodes: Sequence[GraphNode], node: int, apart: Collection[int]) -> frozenset[str]:
    found: set[str] = set()
    seen: set[int] = set(apart)
    waiting = [node]
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        if (array := nodes[index].array) is not None:
            found.add(array)
        waiting += nodes[index].children.values()
    return frozenset(found)
