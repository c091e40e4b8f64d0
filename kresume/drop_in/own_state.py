"""Saves and restores the variables and random generators that the user's code keeps for itself.

    records, groups = capture(model, callbacks)             # for a backup
    notes = restore(model, callbacks, records, groups)

Beside the model and what it consists of, an optimizer, a metric and a callback may hold some, or use them by a closure or a
global name.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.drop_in.lasting_metrics import metrics_of
from kresume.models import other_variables, plain_generators
from kresume.training.loop import callback_state

CALLBACKS = "callbacks."
"""How the addresses of what callbacks hold begin."""
GENERATORS = "own_generators"
"""Name of the states of generators of numpy and Python in a backup's records."""
COMPARED = 2, 3
"""The batches behind which states are compared: the first ones may be traced, and validation after the first one."""


@dataclass
class _Seen:
    """Remembers what a `fit` draws from the generators of its model's code.

    Attributes:
        batches: the number of batches that it has trained.
        states: those behind the first compared batch, by address.
        drawing: addresses of generators from which each step draws.
    """

    batches: int = 0
    states: dict[str, Any] = field(default_factory=dict)
    drawing: set[str] = field(default_factory=set)


_seen: weakref.WeakKeyDictionary[Any, _Seen] = weakref.WeakKeyDictionary()
"""By model."""


def begin(model: Any) -> None:
    """Forgets what earlier fits of a model drew, when one begins."""
    _seen[model] = _Seen()


def after_batch(model: Any, callbacks: Sequence[Any]) -> None:
    """Looks at the generators of a model's code behind its first batches."""
    seen = _seen.setdefault(model, _Seen())
    seen.batches += 1
    if seen.batches in COMPARED:
        found = other_variables.generators(model, _owners(model, callbacks))
        states = {address: plain_generators.state_of(generator) for address, generator in found.items()}
        seen.drawing |= {address for address, state in states.items() if seen.states.get(address, state) != state}
        seen.states = states


def capture(model: Any, callbacks: Sequence[Any]) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Reads the state.

    Args:
        model: the model in training.
        callbacks: all other callbacks of `fit`.

    Returns:
        `(records, groups)`: JSON values for `meta.json`, and groups of arrays by name.
    """
    names, values = other_variables.capture(model, _owners(model, callbacks))
    records = {other_variables.GROUP: names, GENERATORS: _generators(model, callbacks)}
    return records, {other_variables.GROUP: values}


def restore(
    model: Any, callbacks: Sequence[Any], records: Mapping[str, Any], groups: Mapping[str, Sequence[np.ndarray]]
) -> list[str]:
    """Sets the state that `capture` read; returns notes for the user.

    Args:
        model: restored.
        callbacks: all other callbacks of `fit`.
        records: of the backup.
        groups: its arrays.
    """
    owners = _owners(model, callbacks)
    notes = other_variables.restore(model, records, groups, owners)
    saved = records.get(GENERATORS) or {}
    found = {**other_variables.generators(model, owners), **_of_callbacks(model, callbacks)} if saved else {}
    others = []
    for address in saved.keys() & found.keys():
        if plain_generators.set_state(found[address], saved[address]):
            _seen.setdefault(model, _Seen()).drawing.add(address)
        else:
            others.append(address)
    return [*notes, *([f"generators of another kind begin anew: {', '.join(sorted(others))}"] if others else [])]


def _generators(model: Any, callbacks: Sequence[Any]) -> dict[str, Any]:
    """Returns the states of generators that may draw in each step, by address.

    Traced code of a model draws when it is traced, and its numbers are constants from then on. They are the same where a new
    process traces it with a new generator.
    """
    found = _of_callbacks(model, callbacks)
    result = {address: plain_generators.state_of(generator) for address, generator in found.items()}
    known = {plain_generators.key_of(generator) for generator in found.values()}
    drawing = _seen.setdefault(model, _Seen()).drawing
    for address, generator in other_variables.generators(model, _owners(model, callbacks)).items():
        if (model.run_eagerly or address in drawing) and plain_generators.key_of(generator) not in known:
            result[address] = plain_generators.state_of(generator)
    return result


def _of_callbacks(model: Any, callbacks: Sequence[Any]) -> dict[str, Any]:
    """Returns the generators of callbacks, which no trace holds."""
    owners = [each for each in _owners(model, callbacks) if each[0].startswith(CALLBACKS)]
    return other_variables.generators(model, owners, alone=True)


def _owners(model: Any, callbacks: Sequence[Any]) -> list[tuple[str, Any]]:
    """Returns the objects beside the model that may hold or use some, with their addresses."""
    optimizers = [model.optimizer, live_state.inner(model.optimizer)] if model.optimizer is not None else []
    metrics = [each for each in metrics_of(model) if isinstance(each, keras.metrics.Metric)]
    return [
        *((f"optimizer[{index}]", each) for index, each in enumerate(optimizers)),
        *((f"metrics[{index}]", each) for index, each in enumerate(metrics)),
        *((f"{CALLBACKS}{name}", callback) for name, callback in callback_state.named(callbacks)),
    ]
