"""Reads the JSON files beside a weights file: architecture, optimizer, loss and model card.

    state = with_files_beside(state)      # the same arrays; architecture, optimizer, loss, classes and step from the files

A `tf.train.Checkpoint` and a `.weights.h5` hold arrays only; kresume's exports write these files beside them.
`model.json` is the model as `keras.saving.serialize_keras_object` or `to_json` writes it, `optimizer.json` the
optimizer, `loss.json` the loss and its weight as in Keras's compile config, `kresume.json` the model card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kresume.checkpoints import keras_2
from kresume.checkpoints.keras_arrays import described, rate_of_schedule, unwrapped
from kresume.checkpoints.keras_file import CARD
from kresume.errors import CheckpointError
from kresume.spelling import option
from kresume.storage import atomic
from kresume.storage.damage import interpreting
from kresume.values.card import Card
from kresume.values.state import SavedRate, TrainState

ARCHITECTURE, OPTIMIZER, LOSS = "model.json", "optimizer.json", "loss.json"
MARKS = {CARD: (), LOSS: ("loss",)}
"""Keys that a file of ours has; the others hold an object of Keras."""


def with_files_beside(state: TrainState) -> TrainState:
    """Adds architecture, optimizer, loss and model card from the files beside a checkpoint.

    A checkpoint that holds its architecture is returned unchanged.

    Raises:
        CheckpointError: if one of the files is damaged.
    """
    if state.architecture is not None:
        return state
    source = Path(state.source)
    folder = source if source.is_dir() else source.parent
    model, optimizer, loss, card = (_read(folder / name) for name in (ARCHITECTURE, OPTIMIZER, LOSS, CARD))
    if model is None:
        return state
    architecture = keras_2.from_json(model, str(folder / ARCHITECTURE))
    state = replace(state, architecture=architecture, compiled=loss or state.compiled)
    with interpreting(f"{folder / OPTIMIZER}, or {CARD} beside it,", CheckpointError):
        return _with_facts(state, optimizer, card)


def _with_facts(state: TrainState, optimizer: Mapping[str, Any] | None, card: Mapping[str, Any] | None) -> TrainState:
    """Adds the optimizer's class and the model card."""
    saved, stored = unwrapped(optimizer), state.optimizer
    if saved is not None and stored is not None and stored.class_name is None:
        state = replace(state, optimizer=described(saved, stored.variables, stored.loss_scale))
        rate = saved["config"].get("learning_rate")
        if isinstance(rate, Mapping):
            state = replace(state, rate=rate_of_schedule(rate))
    if card is not None:
        if "classes" in card:
            state = replace(state, card=Card.from_dict(card))
        if card.get("step") is not None:
            state = replace(state, step=int(card["step"]))
        if card.get("peak") is not None and (state.rate is None or state.rate.schedule is None):
            state = replace(state, rate=SavedRate(float(card["peak"]), "run"))
    return state


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = atomic.read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): restore it, or move it away and give {option('model', 'FILE.py:FUNCTION')}"
        ) from error
    marks = MARKS.get(path.name, ("class_name",))
    return value if isinstance(value, dict) and all(mark in value for mark in marks) else None
