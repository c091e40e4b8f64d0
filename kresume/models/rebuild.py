"""Another optimizer object with the same memory, and the result as a plain Keras file.

carry_optimizer(old, new)                # another rate, the same slots and iterations
save_model(model, run / "model.keras", card, learning_rate=1e-4, facts={"step": 1200})
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kresume import files
from kresume.checkpoints.keras_file import CARD
from kresume.checkpoints.state import Card, SavedOptimizer
from kresume.models.optimizers import make_optimizer

RATE = "learning_rate"


def _by_name(optimizer: Any) -> dict[tuple[str, int], Any]:
    """Variables by their name without the optimizer's own, and how often that name came before."""
    named: dict[tuple[str, int], Any] = {}
    for variable in optimizer.variables:
        name = str(variable.path).partition("/")[2] or str(variable.path)
        count = 0
        while (name, count) in named:
            count += 1
        named[name, count] = variable
    return named


def carry_optimizer(old: Any, new: Any) -> list[str]:
    """Copies every slot and the iterations; the rate is the new one's own.

    Args:
        old: built on the same model.
        new: of the same class, built on the same model.

    Returns:
        The variables that only the new one has, which start fresh (averages or accumulators that were switched on).
    """
    before = _by_name(old)
    fresh = []
    for key, variable in _by_name(new).items():
        if key[0] == RATE:
            continue
        source = before.get(key)
        if source is None or tuple(source.shape) != tuple(variable.shape):
            fresh.append(key[0])
        else:
            variable.assign(np.asarray(source.value).copy())
    return fresh


def save_model(model: keras.Model, path: Path, card: Card, learning_rate: float, facts: Mapping[str, Any]) -> None:
    """Writes a model as a `.keras` file that plain Keras loads and trains on.

    The file holds built-in classes and a plain float rate: a schedule of ours would not load where kresume is not
    installed. One more member, `kresume.json`, says what the model eats and what its outputs mean; Keras ignores it.

    Args:
        model: compiled; afterwards its optimizer is the one with the plain rate.
        path: where to write; replaced whole.
        card: the member's content.
        learning_rate: the plain rate.
        facts: further fields of the member.
    """
    old = model.optimizer
    new = make_optimizer(SavedOptimizer(type(old).__name__, old.get_config(), 0), learning_rate)
    new.build(model.trainable_variables)
    carry_optimizer(old, new)
    compiled = model.get_compile_config() or {}
    model.compile(
        optimizer=new, loss=model.loss, metrics=keras.saving.deserialize_keras_object(compiled.get("metrics"))
    )
    write_archive(model, path, card, facts)


def write_archive(model: keras.Model, path: Path, card: Card | None, facts: Mapping[str, Any]) -> None:
    """Writes a model as it is to a `.keras` file, whole or not at all, with a card where one is known."""
    with files.new_file(path) as temporary:
        written = temporary.with_name(f"{temporary.name}.keras")  # Keras insists on the ending
        try:
            model.save(written)
            if card is not None:
                with zipfile.ZipFile(written, "a") as archive:
                    archive.writestr(CARD, json.dumps({**card.as_dict(), **facts}, indent=1))
            os.replace(written, temporary)
        finally:
            if written.exists():
                shutil.rmtree(written) if written.is_dir() else written.unlink()
