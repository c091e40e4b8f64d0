"""Matches the arrays of a TensorFlow object graph with a live model's variables.

    found = match(model, optimizer, state, targets)      # found.names: id(variable) -> name of the array

The keys of a TensorFlow checkpoint depend on which objects were saved together; the edges between the objects do not.
So the graph and the live model are walked together (`kresume.models.graph_roots`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from kresume.backend import live_state
from kresume.checkpoints import graph_optimizer, keras_2_optimizers
from kresume.errors import RestoreError
from kresume.models import match_slots, slots
from kresume.models.generated_names import by_new_number
from kresume.models.graph_roots import find_model, walk
from kresume.models.match_by_shape import split_by_shape, trained_by_shape
from kresume.models.match_slots import Matched, Saved
from kresume.models.structure import SEED, Target
from kresume.spelling import option
from kresume.values.state import GraphNode, TrainState

EXPORTED = {"trainable": ("trainable_variables",), "non_trainable": ("non_trainable_variables",)}
RATES = ("_learning_rate", "learning_rate")
PRODUCT = "optimizer/product_of_momentums"
"""Name of the array that `completed` adds."""
APART = frozenset({"save_counter", "keras_api", "_learning_rate", "_all_variables"})
"""Parts of the names of arrays that are not training state.

They mark the checkpoint manager's count, metrics, a rate that is a schedule now, and the second copy in an export.
"""


def completed(model: Any, optimizer: Any | None, state: TrainState) -> tuple[TrainState, str]:
    """Adds the momentum product of Keras 3's Nadam to a Keras 2 graph.

    The product in the file is another number: Keras 2's new Nadam multiplies once per weight, and its legacy Nadam
    follows another schedule of the momentum.

    Args:
        model: unused.
        optimizer: the live optimizer to restore, or None.
        state: of the layout `"graph"`.

    Returns:
        The state, and a note that says what was computed; the note is empty if nothing was.
    """
    node = graph_optimizer.find_optimizer(state.graph)
    inside = live_state.inner(optimizer) if optimizer is not None else None
    if node is None or not isinstance(inside, keras.optimizers.Nadam):
        return state, ""
    if graph_optimizer.style(state.graph[graph_optimizer.inside(state.graph, node)]) == "keras-3":
        return state, ""
    product = keras_2_optimizers.nadam_product(float(inside.beta_1), int(state.step or 0))
    said = f"Nadam's product of momentums is computed from its {state.step or 0:,} updates, because Keras 2 stores another one"
    return replace(state, arrays={**state.arrays, PRODUCT: product}), said


def match(
    model: Any, optimizer: Any, state: TrainState, targets: Sequence[Target], *, same_weights: bool = False
) -> Matched:
    """Finds the array of each variable by walking the graph.

    Args:
        model: built.
        optimizer: built, or None to match the weights alone.
        state: of the layout `"graph"`.
        targets: every variable to restore.
        same_weights: the user states that the weights trainable now were trainable then.
    """
    node = graph_optimizer.find_optimizer(state.graph)
    root = find_model(state, model, targets)
    exported = _exported(state, model)
    best = dict(root.names if len(root.names) >= len(exported) else exported)
    by_full_name = _unique_full_names(state)
    for target in targets:
        name = by_full_name.get(target.variable.path)
        if target.group != "optimizer" and name is not None and name not in root.apart:
            best.setdefault(id(target.variable), name)
    notes = (root.note,) * bool(root.note)
    if optimizer is None or node is None:
        return Matched(best, notes=notes, apart=root.apart)
    _check_optimizers(state, node, optimizer, best)
    if graph_optimizer.style(state.graph[node]) == "keras-3":
        if not slots.scale_variables(optimizer) or graph_optimizer.inside(state.graph, node) == node:
            # At least one of the two has no loss-scaling wrapper: match the inner optimizers.
            node, optimizer = graph_optimizer.inside(state.graph, node), live_state.inner(optimizer)
        numbers = {id(slot.variable) for slot in slots.describe(optimizer) if slot.weight is None}
        walked = {key: name for key, name in walk(state, node, optimizer).items() if key in numbers}
        inside = graph_optimizer.inside(state.graph, node)
        saved = _keras_3_slots(state, inside, optimizer) or _keras_3_list(model, optimizer, state, inside, best)
    else:
        optimizer = live_state.inner(optimizer)
        walked, saved = _keras_2_numbers(state, node, optimizer), _keras_2_slots(state, node, optimizer, best)
    unsure = False
    for kind, listed in _without_weight(saved).items():
        shapes = [tuple(state.arrays[name].shape) for name in listed]
        trained = trained_by_shape(model, state, shapes, best)
        now = [best.get(id(variable)) for variable in live_state.inner(optimizer)._trainable_variables]
        if same_weights and len(now) == len(listed) and None not in now:
            trained = [name for name in now if name is not None]
        unsure = unsure or trained is None
        saved = [entry for entry in saved if entry.kind != kind]
        saved += [Saved(name, kind, weight) for name, weight in zip(listed, trained or (), strict=False)]
    found = match_slots.join(optimizer, saved, best)
    return Matched({**walked, **found.names, **best}, found.left_out, unsure, notes, apart=root.apart)


def _check_optimizers(state: TrainState, node: int, optimizer: Any, weights: Mapping[int, str]) -> None:
    """Raises if another optimizer than the one that was read trains the weights, or several do."""
    others = [index for index in graph_optimizer.find_optimizers(state.graph) if index != node]
    if not others:
        return
    live = {weights.get(id(variable)) for variable in live_state.inner(optimizer)._trainable_variables}
    rest = live - graph_optimizer.trained(state.graph, node)
    training = [index for index in (node, *others) if live & graph_optimizer.trained(state.graph, index)]
    if not rest or training in ([], [node]):
        return
    names = dict(zip(graph_optimizer.find_optimizers(state.graph), graph_optimizer.names(state.graph), strict=True))
    if len(training) == 1:
        raise RestoreError(
            f"{state.source}: {names[training[0]]} trains this model, but step and rate were read from {names[node]}; nothing "
            f"was restored: write a checkpoint of the two alone (tf.train.Checkpoint(model=MODEL, optimizer=OPTIMIZER)), or "
            f"start a fresh one with {option('optimizer', 'NAME:reset')}"
        )
    raise RestoreError(
        f"{state.source} holds {len(training)} optimizers that train the model's weights "
        f"({', '.join(names[index] for index in training)}), and kresume continues one; nothing was restored: start a fresh "
        f"one with {option('optimizer', 'NAME:reset')}"
    )


def _without_weight(saved: Sequence[Saved]) -> dict[str, list[str]]:
    """Returns each kind that has slots of unknown weight, with its arrays in order."""
    kinds = {entry.kind for entry in saved if entry.weight is None}
    return {kind: [entry.name for entry in saved if entry.kind == kind] for kind in sorted(kinds)}


def _exported(state: TrainState, model: Any) -> dict[int, str]:
    """Matches the variable lists of an exported model, which has no layers.

    Renumbered names decide, else shapes if only one choice of layers fits.
    """
    root = state.graph[0].children
    full_names = _full_names(state)
    lists: dict[str, list[str]] = {}
    for group, edges in EXPORTED.items():
        edge = next((edge for edge in edges if edge in root), None)
        if edge is None:
            return {}
        arrays = [state.graph[child].array for child in _in_order(state.graph[root[edge]].children)]
        lists[group] = [name for name in arrays if name is not None and SEED not in full_names[name]]
    names = [*lists["trainable"], *lists["non_trainable"]]
    variables = [variable for variable in model.variables if SEED not in str(variable.path)]
    if len(names) != len(variables):
        return {}
    theirs = by_new_number([(name, tuple(full_names[name].split("/"))) for name in names])
    mine = by_new_number([(id(variable), tuple(str(variable.path).split("/"))) for variable in variables])
    if theirs.keys() == mine.keys() and len(theirs) == len(names):
        return {key: theirs[path] for path, key in mine.items()}
    return split_by_shape(variables, model, state, lists["trainable"], lists["non_trainable"])


def _in_order(children: Mapping[str, int]) -> list[int]:
    return [children[edge] for edge in sorted((edge for edge in children if edge.isdigit()), key=int)]


def _full_names(state: TrainState) -> dict[str, str]:
    return {node.array: node.full_name for node in state.graph if node.array is not None}


def _keras_3_slots(state: TrainState, node: int, optimizer: Any) -> list[Saved]:
    """Reads the lists of slots, and the list of their weights."""
    children = state.graph[node].children
    trained = _arrays(state, children.get("_trainable_variables"))
    saved = []
    for kind in slots.slot_lists(optimizer):
        for index, name in _arrays(state, children.get(kind)).items():
            saved.append(Saved(name, kind, trained.get(index)))
    return saved


def _keras_3_list(model: Any, optimizer: Any, state: TrainState, node: int, weights: Mapping[int, str]) -> list[Saved]:
    """Identifies slots by their order in the list of all variables.

    Needed for classes that append to their lists of slots (Adafactor): TensorFlow does not track those.
    """
    children = state.graph[node].children
    names = list(_arrays(state, children.get("_variables")).values())
    trained = list(_arrays(state, children.get("_trainable_variables")).values())
    if len(names) < 2 or not slots.slot_lists(optimizer):
        return []
    if state.optimizer is not None:  # loss scaling keeps its variables elsewhere
        state = replace(state, optimizer=replace(state.optimizer, loss_scale=False))
    saved, _ = match_slots.by_order(model, optimizer, state, names, weights, trained)
    numbers = {name for name, value in vars(live_state.inner(optimizer)).items() if isinstance(value, keras.Variable)}
    return [entry for entry in saved if entry.kind not in numbers]


def _arrays(state: TrainState, node: int | None) -> dict[int, str]:
    """Returns the arrays of a list by index."""
    children = state.graph[node].children if node is not None else {}
    found = {int(edge): state.graph[child].array for edge, child in children.items() if edge.isdigit()}
    return {index: name for index, name in sorted(found.items()) if name is not None}


def _keras_2_numbers(state: TrainState, node: int, optimizer: Any) -> dict[int, str]:
    """Finds the iteration count, the rate and the product that `completed` added.

    Keras 2 does not list the rate among the optimizer's variables.
    """
    children = state.graph[node].children
    found: dict[int, str] = {}
    for live, edges in ((optimizer._iterations, ("_iterations", "iter")), (slots.rate_variable(optimizer), RATES)):
        child = next((children[edge] for edge in edges if edge in children), None)
        if live is not None and child is not None and (array := state.graph[child].array):
            found[id(live)] = array
    if PRODUCT in state.arrays:
        found[id(optimizer._u_product)] = PRODUCT
    return found


def _keras_2_slots(state: TrainState, node: int, optimizer: Any, weights: Mapping[int, str]) -> list[Saved]:
    """Reads the slots of a Keras 2 optimizer.

    New optimizers have lists of slots whose names end in the weight's name; legacy ones tie each slot to its variable.

    Args:
        state: of the layout `"graph"`.
        node: index of the optimizer's node.
        optimizer: live, without loss scaling.
        weights: `id(variable)` -> name of its array, as matched.
    """
    saved, found = state.graph[node], []
    kinds = keras_2_optimizers.SLOTS.get(type(optimizer).__name__, {})
    for (weight, kind), child in saved.slots.items():
        array, owner = state.graph[child].array, state.graph[weight].array
        if array is not None and owner is not None and kind in kinds:
            found.append(Saved(array, kinds[kind], owner))
    full_names = _full_names(state)
    for attribute in slots.slot_lists(optimizer):
        listed = list(_arrays(state, _edge(saved, attribute)).values())
        owners = [
            [name for name in weights.values() if full_names[array].endswith(f"/{full_names.get(name) or '?'}")]
            for array in listed
        ]
        named = all(len(set(names)) == 1 for names in owners) and len({names[0] for names in owners}) == len(owners)
        found += [
            Saved(array, attribute, names[0] if named else None) for array, names in zip(listed, owners, strict=True)
        ]
    return found


def _edge(saved: GraphNode, attribute: str) -> int | None:
    """Finds a list that Keras 2 may name without the underscore of Keras 3."""
    return saved.children.get(attribute, saved.children.get(attribute.lstrip("_")))


def owned_by_optimizer(state: TrainState) -> set[str]:
    """Returns the names of the optimizer's arrays, found by their node or their key."""
    nodes = graph_optimizer.find_optimizers(state.graph)
    owned = {index for node in nodes for index in graph_optimizer.owned(state.graph, node)}
    by_node = {name for index in owned if (name := state.graph[index].array) is not None}
    return by_node | match_slots.named_optimizer(state)


def unused(model: Any, optimizer: Any | None, state: TrainState, names: Mapping[int, str]) -> list[str]:
    """Returns the unmatched arrays that should have a variable.

    A script's own counters beside the model, metrics and an optimizer's settings need no variable.

    Args:
        model: built; not needed here.
        optimizer: None if only the weights are restored.
        state: the checkpoint.
        names: `id(variable)` -> name of its array, as matched.
    """
    node = graph_optimizer.find_optimizer(state.graph)
    others = [index for index in graph_optimizer.find_optimizers(state.graph) if index != node]
    passed = {child for child in state.graph[0].children.values() if _is_number(state, child)}
    passed |= {index for index, entry in enumerate(state.graph) if SEED in entry.full_name}
    for index in others:  # a note of the reader names them
        passed |= graph_optimizer.owned(state.graph, index)
    if node is not None:
        owned = graph_optimizer.owned(state.graph, node)
        passed |= _idle_momentum(state, node, optimizer)
        passed |= owned if optimizer is None else {child for child in owned if _is_number(state, child)}
    ignored = {state.graph[child].array for child in passed}
    left = match_slots.unmatched(state, names)
    return [name for name in left if name not in ignored and not set(name.split("/")) & APART]


def _idle_momentum(state: TrainState, node: int, optimizer: Any | None) -> set[int]:
    """Returns the momentum nodes of an SGD without momentum, which Keras 2 keeps unused."""
    inside = live_state.inner(optimizer) if optimizer is not None else None
    if not isinstance(inside, keras.optimizers.SGD) or inside.momentum:
        return set()
    edges = (state.graph[node].children.get(name) for name in ("momentums", "_momentums"))
    return {child for edge in edges if edge is not None for child in state.graph[edge].children.values()}


def _is_number(state: TrainState, node: int) -> bool:
    array = state.graph[node].array
    return array is not None and state.arrays[array].shape == ()


def _unique_full_names(state: TrainState) -> dict[str, str]:
    counts: dict[str, list[str]] = {}
    for node in state.graph:
        if node.array is not None:
            counts.setdefault(node.full_name, []).append(node.array)
    return {full_name: arrays[0] for full_name, arrays in counts.items() if len(arrays) == 1}
