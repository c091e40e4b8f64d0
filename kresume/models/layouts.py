"""Lists how checkpoints of each layout are matched with a live model.

    rules = rules_of(state)
    found = rules.match(model, optimizer, state, targets)      # found.names: id(variable) -> name of the array

A new layout is one name in `kresume.values.state.Layout`, one module with `match` and `unused`, one entry here and one
in `kresume.checkpoints.layouts`, which says what the names of its arrays mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kresume.models import (
    match_graph,
    match_groups,
    match_keras,
    match_layers,
    match_mapped,
    match_slots,
    match_tree,
    slot_forms,
    torch_map,
)
from kresume.models.match_slots import Matched
from kresume.models.structure import Target
from kresume.values.state import Layout, TrainState


class Match(Protocol):
    """Finds the array of each variable of a model, and of its optimizer if given."""

    def __call__(
        self,
        model: Any,
        optimizer: Any | None,
        state: TrainState,
        targets: Sequence[Target],
        *,
        same_weights: bool = False,
    ) -> Matched:
        """Returns the names of the arrays."""


class Convert(Protocol):
    """Converts a checkpoint into another layout, whose entry then holds."""

    def __call__(
        self,
        model: Any,
        optimizer: Any | None,
        state: TrainState,
        *,
        map_file: str | None = None,
        map_out: str | None = None,
    ) -> tuple[TrainState, str]:
        """Returns the converted state, and a note for the user."""


Complete = Callable[[Any, Any | None, TrainState], tuple[TrainState, str]]
"""Takes the model, the optimizer or None, and the state."""


@dataclass(frozen=True)
class Evidence:
    """Finds the class and settings of an optimizer that a file does not name, from its arrays.

    Attributes:
        trained_weights: returns the weights whose slots the file holds; empty if they are not needed.
        classes: returns the classes that could have stored the arrays, given these weights.
        forms: returns the settings under which a class would have stored them, each as changes to Keras's defaults.
        decisive: True if a class without such settings cannot have stored the arrays.
    """

    trained_weights: Callable[[Any, TrainState], list[np.ndarray]] = lambda model, state: []
    classes: Callable[[TrainState, Sequence[np.ndarray]], list[str]] = lambda state, weights: []
    forms: Callable[[str, TrainState, Sequence[np.ndarray]], list[dict[str, Any]]] = lambda name, state, weights: []
    decisive: bool = False


NO_EVIDENCE = Evidence()


@dataclass(frozen=True)
class LayoutRules:
    """How checkpoints of a layout are matched with a live model.

    Attributes:
        match: finds the array of each variable.
        unused: returns the arrays without a variable that should have one, given the names that `match` found.
        convert: converts the state into another layout before matching; None if it is matched as it is.
        complete: adds arrays that live variables need and the format lacks; returns the state and a note.
        owned_by_optimizer: returns the names of the arrays that belong to the optimizer.
        keeps_seeds: True if the format holds the states of seed generators; False starts them fresh.
        evidence: finds the optimizer of a file that does not name it.
        numbered: True if the optimizer's arrays have numbers, so that a variable that was not written shifts the others.
    """

    match: Match
    unused: Callable[[Any, Any | None, TrainState, Mapping[int, str]], list[str]]
    convert: Convert | None = None
    complete: Complete = lambda model, optimizer, state: (state, "")
    owned_by_optimizer: Callable[[TrainState], set[str]] = match_slots.named_optimizer
    keeps_seeds: bool = False
    evidence: Evidence = NO_EVIDENCE
    numbered: bool = False


LAYOUTS: Mapping[Layout, LayoutRules] = {
    "groups": LayoutRules(match_groups.match, match_groups.unused, keeps_seeds=True),
    "keras": LayoutRules(
        match_keras.match,
        match_keras.unused,
        complete=match_keras.completed,
        evidence=Evidence(match_keras.trained_weights, slot_forms.keras_classes, slot_forms.keras_forms, decisive=True),
    ),
    "layers": LayoutRules(match_layers.match, match_layers.unused),
    "graph": LayoutRules(
        match_graph.match,
        match_graph.unused,
        complete=match_graph.completed,
        owned_by_optimizer=match_graph.owned_by_optimizer,
        evidence=Evidence(classes=slot_forms.graph_classes, forms=slot_forms.graph_forms),
        numbered=True,
    ),
    "torch": LayoutRules(match_mapped.match, match_mapped.unused, convert=torch_map.to_model),
    "tree": LayoutRules(match_tree.match, match_tree.unused),
    "mapped": LayoutRules(match_mapped.match, match_mapped.unused),
}


def rules_of(state: TrainState) -> LayoutRules:
    """Returns the entry of a checkpoint's layout."""
    return LAYOUTS[state.layout]
