"""Finds the model in a TensorFlow object graph, which may hold several of one architecture.

    found = find_model(state, model, targets)      # found.names: id(variable) -> name of the array

A script may save a model beside its averaged copy or its teacher. All of them fit the live model. The one that the
optimizer trains is meant; without an optimizer, the one with a usual name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kresume.checkpoints import graph_optimizer
from kresume.checkpoints.graph_nodes import USUAL, near_root
from kresume.errors import RestoreError
from kresume.models.match_layers import RENAMED
from kresume.models.structure import Target
from kresume.spelling import option
from kresume.values.state import TrainState

WITH_WEIGHTS = "layer_with_weights-"
VIEWS = frozenset({"variables", "trainable_variables", "non_trainable_variables", "weights"})
"""Lists that a layer derives from its variables; their order differs between versions of Keras."""


@dataclass(frozen=True)
class Found:
    """The model in the graph.

    Attributes:
        names: `id(variable)` -> name of its array.
        apart: names of the arrays of the other models that fit.
        note: for the user, on the choice; empty if only one model fits.
    """

    names: Mapping[int, str]
    apart: frozenset[str] = frozenset()
    note: str = ""


def find_model(state: TrainState, model: Any, targets: Sequence[Target]) -> Found:
    """Finds the arrays of a live model's variables.

    Args:
        state: of the layout `"graph"`.
        model: built.
        targets: every variable to restore.

    Raises:
        RestoreError: several models of the file fit, and neither an optimizer nor their names tell which is meant.
    """
    shapes = {id(target.variable): tuple(target.variable.shape) for target in targets if target.group != "optimizer"}
    ways: dict[str, dict[int, str]] = {}
    known: set[frozenset[str]] = set()
    optimizers = set(graph_optimizer.find_optimizers(state.graph))
    for start, path in near_root(state.graph).items():
        names = {key: name for key, name in walk(state, start, model, optimizers).items() if key in shapes}
        arrays = frozenset(names.values())
        if names and arrays not in known:  # one model may be reached by several attributes
            known.add(arrays)
            ways[path] = names
    if not ways:
        return Found({})

    def fit(path: str) -> tuple[int, int]:
        same = sum(state.arrays[name].shape == shapes[key] for key, name in ways[path].items())
        return same, len(ways[path])

    best = max(map(fit, ways))
    alike = [path for path in ways if fit(path) == best]
    chosen, reason = _choose(state, {path: ways[path] for path in alike})
    others = [path for path in alike if path != chosen]
    if not others:
        return Found(ways[chosen])
    apart = frozenset(name for path in others for name in ways[path].values()) - set(ways[chosen].values())
    return Found(
        ways[chosen],
        apart,
        f"the file also holds the weights of {', '.join(others)}, which {'is' if len(others) == 1 else 'are'} ignored: "
        f"{chosen} is used, {reason} (a checkpoint of {others[0]} alone: {_alone(others[0])})",
    )


def _choose(state: TrainState, ways: Mapping[str, Mapping[int, str]]) -> tuple[str, str]:
    """Chooses among models that fit equally well.

    Args:
        state: of the layout `"graph"`.
        ways: the attributes that lead to each model -> its arrays.

    Returns:
        The attributes of the chosen one, and the reason for the user.

    Raises:
        RestoreError: nothing tells which is meant.
    """
    if len(ways) == 1:
        return next(iter(ways)), ""
    node = graph_optimizer.find_optimizer(state.graph)
    trained = graph_optimizer.trained(state.graph, node) if node is not None else frozenset()
    counts = {path: len(trained & set(names.values())) for path, names in ways.items()}
    most = [path for path, count in counts.items() if count == max(counts.values())]
    if len(most) == 1:
        return most[0], "which the optimizer trains"
    usual = [path for name in USUAL for path in ways if path.rpartition(".")[2] == name]
    if len(usual) == 1:
        return usual[0], "by its name"
    first, *_ = ways
    raise RestoreError(
        f"{state.source} holds several models that fit: {', '.join(ways)}; nothing was restored: write a checkpoint of one "
        f"({_alone(first)}), and give that with {option('from')}"
    )


def _alone(path: str) -> str:
    """Returns the code that writes a checkpoint of one of the file's models."""
    attribute = path.partition(".")[0]
    inner = path.partition(".")[2]
    source = f"tf.train.Checkpoint({inner}=MODEL)" if inner else "MODEL"
    return (
        f"tf.train.Checkpoint({attribute}={source}).read(PATH).expect_partial(); "
        "tf.train.Checkpoint(model=MODEL).write('other')"
    )


def walk(state: TrainState, node: int, live: Any, apart: Collection[int] = ()) -> dict[int, str]:
    """Follows the graph and a live object together, from edge to edge.

    An edge is an attribute, a list index, a dictionary key or, in files that Keras 2 wrote, the index of a layer among
    the layers with weights (`layer_with_weights-3`).

    Args:
        state: of the layout `"graph"`.
        node: index of the node to begin with.
        live: the model or optimizer that this node stands for.
        apart: nodes not to enter.

    Returns:
        `id(variable)` -> name of its array, for every variable that both have.
    """
    names: dict[int, str] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [(node, live)]
    while waiting:
        index, thing = waiting.pop()
        if (index, id(thing)) in seen or index in apart:
            continue
        seen.add((index, id(thing)))
        saved = state.graph[index]
        if saved.array is not None and isinstance(thing, keras.Variable):
            names[id(thing)] = saved.array
            continue
        by_weights = any(edge.startswith(WITH_WEIGHTS) for edge in saved.children)
        for edge, child in saved.children.items():
            if (by_weights and edge.startswith("layer-")) or edge in VIEWS:
                continue  # the same layers, numbered with an input layer that the live model may lack
            following = _follow(thing, edge)
            if following is not None:
                waiting.append((child, following))
    return names


def _follow(thing: Any, edge: str) -> Any:
    if isinstance(thing, (list, tuple)):
        return thing[int(edge)] if edge.isdigit() and int(edge) < len(thing) else None
    if isinstance(thing, dict):
        return thing.get(edge)
    if edge.startswith(WITH_WEIGHTS) and isinstance(thing, keras.Model):
        layers = [layer for layer in thing.layers if layer.weights]
        index = int(edge.removeprefix(WITH_WEIGHTS))
        return layers[index] if index < len(layers) else None
    try:
        found = getattr(thing, edge, None)
        return getattr(thing, RENAMED[edge], None) if found is None and edge in RENAMED else found
    except (AttributeError, ValueError, RuntimeError):  # some properties of Keras layers raise before the first call
        return None
