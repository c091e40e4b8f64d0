"""Saves the result of a run as a plain Keras file.

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

from kresume.checkpoints.keras_file import CARD
from kresume.models import own_counts, schedules, slots, weight_decay
from kresume.models.keras_metrics import fits
from kresume.models.losses import LossChoice
from kresume.models.optimizers import describe, make_optimizer
from kresume.models.plain_keras import feeding_line, takes_rows
from kresume.storage import atomic
from kresume.values.card import Card


def save_model(
    model: keras.Model,
    path: Path,
    card: Card,
    learning_rate: float,
    facts: Mapping[str, Any],
    loss: LossChoice | None = None,
) -> None:
    """Writes a model as a `.keras` file that plain Keras loads and trains on.

    The file holds built-in classes. A schedule of Keras that the training continued goes on in it; in place of another one
    stands a plain rate, because a kresume schedule would not load where kresume is not installed. An extra member,
    `kresume.json`, records what the model expects, what its outputs mean, and how plain Keras feeds it. Keras ignores that
    member.

    Args:
        model: compiled; its optimizer is replaced by one that plain Keras loads.
        path: file to write; replaced atomically.
        card: content of `kresume.json`.
        learning_rate: the plain rate.
        facts: further fields of `kresume.json`.
        loss: the loss that trained the model; if plain Keras cannot find it by name, the file gets a replacement.
    """
    old = model.optimizer
    new = make_optimizer(describe(old), schedules.for_plain_keras(old, learning_rate))
    new.build(model.trainable_variables)
    slots.carry(old, new)
    own_counts.scale_to_one_count(new)
    compiled = model.get_compile_config() or {}
    model.compile(
        optimizer=new,
        loss=model.loss if loss is None or not loss.portable().lost else loss.portable().keras_loss(),
        loss_weights=compiled.get("loss_weights"),
        metrics=_plain_metrics(keras.saving.deserialize_keras_object(compiled.get("metrics")), loss),
        auto_scale_loss=False,  # the optimizer is already wrapped if the layers need it
    )
    write_archive(model, path, card, facts)


def _plain_metrics(metrics: Any, loss: LossChoice | None) -> Any:
    """Returns the metrics that plain Keras can compute from the targets of the loss."""
    if loss is None or not metrics:
        return metrics
    always = len(loss.keras_metrics())
    return [each for place, each in enumerate(metrics) if place < always or fits(each, loss.head, loss.form)]


def write_archive(model: keras.Model, path: Path, card: Card | None, facts: Mapping[str, Any]) -> None:
    """Writes a model to a `.keras` file, atomically and with its card, if any."""
    with atomic.new_file(path) as temporary:
        written = temporary.with_name(f"{temporary.name}.keras")  # Keras requires this extension
        try:
            model.save(written)
            if card is not None:
                with zipfile.ZipFile(written, "a") as archive:
                    feed = feeding_line(card, rows=takes_rows(model))
                    undecayed = weight_decay.left_out(model.optimizer) if model.optimizer is not None else None
                    more = {weight_decay.KEY: list(undecayed)} if undecayed is not None else {}
                    archive.writestr(CARD, json.dumps({**card.as_dict(), "feed": feed, **facts, **more}, indent=1))
            os.replace(written, temporary)
        finally:
            if written.exists():
                shutil.rmtree(written) if written.is_dir() else written.unlink()
