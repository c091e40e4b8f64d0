"""Matches TensorFlow's object graph with a live model: which array of the file belongs to which variable.

    names = match(model, optimizer, state, targets)      # id(variable) -> name of the array

The keys of a checkpoint of TensorFlow depend on which objects were saved together; the edges between the objects do not. So the
graph and the live model are walked together: an edge is an attribute, a place in a list, a key, or, in what Keras 2 wrote, the
place of a layer among those with weights (`layer_with_weights-3`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras

from kresume import devices
from kresume.checkpoints import graph_optimizer, keras_2
from kresume.checkpoints.state import GraphNode, TrainState
from kresume.models import slots

WITH_WEIGHTS = "layer_with_weights-"
RENAMED = {"depthwise_kernel": "kernel"}
"""Attributes of Keras 2's layers that Keras 3 calls otherwise."""
EXPORTED = {"trainable": ("trainable_variables",), "non_trainable": ("non_trainable_variables",)}
VIEWS = frozenset({"variables", "trainable_variables", "non_trainable_variables", "weights"})
"""Lists that a layer makes of its variables: their order is another in each version of Keras."""
SEED = "seed_generator_state"
RATES = ("_learning_rate", "learning_rate")
APART = frozenset({"save_counter", "keras_api", "_learning_rate", "_all_variables"})
"""Parts of names of arrays that are no state of the training: the manager's count, metrics, a rate that is a schedule now, an
export's second copy."""


class Target(Protocol):
    """A live variable that wants a value, as `restore` lists them."""

    @property
    def variable(self) -> Any:
        """The Keras variable."""

    @property
    def group(self) -> str:
        """`"trainable"`, `"non_trainable"` or `"optimizer"`."""

    @property
    def is_seed(self) -> bool:
        """Whether it is the state of a seed generator."""


def match(model: Any, optimizer: Any, state: TrainState, targets: Sequence[Target]) -> dict[int, str]:
    """The array of each variable that the graph leads to.

    Args:
        model: built.
        optimizer: built, or None to match the weights alone.
        state: of the layout `"graph"`.
        targets: every variable that wants a value.

    Returns:
        `id(variable)` -> name of its array; variables that the graph does not lead to are left out.
    """
    node = graph_optimizer.find_optimizer(state.graph)
    wanted = {id(target.variable) for target in targets if target.group != "optimizer"}
    best = _by_order(state, targets)
    for start in _starts(state, node):
        names = _walk(state, start, model)
        if len(names.keys() & wanted) >= max(len(best.keys() & wanted), 1):
            best = names
    by_full_name = _unique_full_names(state)
    for target in targets:
        if target.group != "optimizer" and (name := by_full_name.get(target.variable.path)):
            best.setdefault(id(target.variable), name)
    if optimizer is None or node is None:
        return best
    if graph_optimizer.style(state.graph[node]) == "keras-3":
        if not slots.scale_variables(optimizer) or graph_optimizer.inside(state.graph, node) == node:
            # One of the two has no wrapper for loss scaling: what trains is matched with what trains.
            node, optimizer = graph_optimizer.inside(state.graph, node), devices.inner(optimizer)
        return {**_walk(state, node, optimizer), **best}
    return {**_keras_2_optimizer(state, node, devices.inner(optimizer), model, best), **best}


def _starts(state: TrainState, optimizer: int | None) -> list[int]:
    """Where the model may begin: the root, and what it was saved with or inside of."""
    first = list(state.graph[0].children.values())
    second = [child for node in first for child in state.graph[node].children.values()]
    return [node for node in dict.fromkeys((0, *first, *second)) if node != optimizer]


def _by_order(state: TrainState, targets: Sequence[Target]) -> dict[int, str]:
    """By the lists of an exported model, which has no layers: its trainable variables and its others, in their order."""
    root = state.graph[0].children
    found: dict[int, str] = {}
    for group, edges in EXPORTED.items():
        edge = next((edge for edge in edges if edge in root), None)
        if edge is None:
            return {}
        variables = [t.variable for t in targets if t.group == group and not t.is_seed]
        arrays = [state.graph[child].array for child in _in_order(state.graph[root[edge]].children)]
        names = [name for name in arrays if name is not None and SEED not in _full_names(state)[name]]
        if len(names) != len(variables):
            return {}
        found |= {id(variable): name for variable, name in zip(variables, names, strict=True)}
    return found


def _in_order(children: Mapping[str, int]) -> list[int]:
    return [children[edge] for edge in sorted((edge for edge in children if edge.isdigit()), key=int)]


def _full_names(state: TrainState) -> dict[str, str]:
    return {node.array: node.full_name for node in state.graph if node.array is not None}


def _keras_2_optimizer(
    state: TrainState, node: int, optimizer: Any, model: Any, weights: Mapping[int, str]
) -> dict[int, str]:
    """Keras 2's optimizers: new ones have lists without a rate among them, legacy ones slots tied to their variable.

    Args:
        state: the graph.
        node: the optimizer's.
        optimizer: live, without loss scaling.
        model: whose trainable variables the optimizer was built on.
        weights: `id(variable)` -> array, as matched.
    """
    saved = state.graph[node]
    found: dict[int, str] = {}
    for live, edges in ((optimizer._iterations, ("_iterations", "iter")), (slots.rate_variable(optimizer), RATES)):
        child = next((saved.children[edge] for edge in edges if edge in saved.children), None)
        if live is not None and child is not None and (array := state.graph[child].array):
            found[id(live)] = array
    names = [weights.get(id(variable)) for variable in optimizer._trainable_variables]
    places = {entry.array: index for index, entry in enumerate(state.graph) if entry.array is not None}
    kinds = keras_2.SLOTS.get(type(optimizer).__name__, {})
    for attribute, listed in slots.slot_lists(optimizer).items():
        for place, (slot, weight) in enumerate(zip(listed, names, strict=True)):
            if slot is None:
                continue
            child = None
            for kind in (kind for kind, holder in kinds.items() if holder == attribute):
                child = saved.slots.get((places.get(weight or "", -1), kind), child)
            if child is None and (edge := _edge(saved, attribute)) is not None:
                child = _listed(state, edge, place, weight, len(listed))
            if child is not None and (array := state.graph[child].array):
                found[id(slot)] = array
    return found


def _edge(saved: GraphNode, attribute: str) -> int | None:
    """Keras 2 calls some lists without the underscore that Keras 3 gives them."""
    return saved.children.get(attribute, saved.children.get(attribute.lstrip("_")))


def _listed(state: TrainState, edge: int, place: int, weight: str | None, count: int) -> int | None:
    """The slot in a list that bears the weight's own name (`Adam/m/conv2d/kernel`), else the one at its place."""
    children = _in_order(state.graph[edge].children)
    full_name = _full_names(state).get(weight or "", "")
    named = [child for child in children if full_name and state.graph[child].full_name.endswith(f"/{full_name}")]
    if len(named) == 1:
        return named[0]
    return children[place] if len(children) == count else None


def unused(state: TrainState, left: Sequence[str], optimizer: Any | None) -> list[str]:
    """Of the arrays that found no variable, those that should have found one.

    A script's own counters beside the model, metrics, and an optimizer's settings have no variable, and miss none.

    Args:
        state: what was read.
        left: names of arrays that found no variable.
        optimizer: None if only the weights were wanted.
    """
    node = graph_optimizer.find_optimizer(state.graph)
    passed = {child for child in state.graph[0].children.values() if _is_number(state, child)}
    passed |= {index for index, entry in enumerate(state.graph) if SEED in entry.full_name}
    if node is not None:
        owned = graph_optimizer.owned(state.graph, node)
        passed |= owned if optimizer is None else {child for child in owned if _is_number(state, child)}
    names = {state.graph[child].array for child in passed}
    return [name for name in left if name not in names and not set(name.split("/")) & APART]


def _is_number(state: TrainState, node: int) -> bool:
    array = state.graph[node].array
    return array is not None and state.arrays[array].shape == ()


def _unique_full_names(state: TrainState) -> dict[str, str]:
    counts: dict[str, list[str]] = {}
    for node in state.graph:
        if node.array is not None:
            counts.setdefault(node.full_name, []).append(node.array)
    return {full_name: arrays[0] for full_name, arrays in counts.items() if len(arrays) == 1}


def _walk(state: TrainState, node: int, live: Any) -> dict[int, str]:
    """Follows the graph and the live object together: an edge is an attribute, a place in a list, or a key."""
    names: dict[int, str] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [(node, live)]
    while waiting:
        index, thing = waiting.pop()
        if (index, id(thing)) in seen:
            continue
        seen.add((index, id(thing)))
        saved = state.graph[index]
        if saved.array is not None and isinstance(thing, keras.Variable):
            names[id(thing)] = saved.array
            continue
        by_weights = any(edge.startswith(WITH_WEIGHTS) for edge in saved.children)
        for edge, child in saved.children.items():
            if (by_weights and edge.startswith("layer-")) or edge in VIEWS:
                continue  # the same layers, counted with an input layer that another form of the model may not have
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
        place = int(edge.removeprefix(WITH_WEIGHTS))
        return layers[place] if place < len(layers) else None
    try:
        found = getattr(thing, edge, None)
        return getattr(thing, RENAMED[edge], None) if found is None and edge in RENAMED else found
    except (AttributeError, ValueError, RuntimeError):  # properties of Keras layers that raise before a first call
        return None
