"""Matches arrays that already have the names of the live model's groups and indices (`trainable/3`).

    found = match(model, optimizer, state, targets)      # found.names: id(variable) -> name of the array

`kresume.models.torch_map` makes such a state from a PyTorch state dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kresume.models import match_slots, structure
from kresume.models.match_slots import Matched
from kresume.models.structure import Target
from kresume.values.state import TrainState


def match(
    model: Any, optimizer: Any | None, state: TrainState, targets: Sequence[Target], *, same_weights: bool = False
) -> Matched:
    """Finds the array of each variable by its group and index.

    Args:
        model: built.
        optimizer: built, or None to match the weights alone.
        state: of the layout `"mapped"`.
        targets: every variable to restore; not needed here.
        same_weights: not needed here, because each slot names its weight.
    """
    lists = {group: getattr(model, f"{group}_variables") for group in structure.GROUPS}
    if optimizer is not None:
        lists["optimizer"] = optimizer.variables
    names = {
        id(variable): f"{group}/{index}"
        for group, variables in lists.items()
        for index, variable in enumerate(variables)
    }
    return Matched({key: name for key, name in names.items() if name in state.arrays})


def unused(model: Any, optimizer: Any | None, state: TrainState, names: Mapping[int, str]) -> list[str]:
    """Returns the unmatched arrays: each should have a variable."""
    return match_slots.unmatched(state, names)
