"""Restores a checkpoint's whole training as a compiled Keras model, for the training formats.

    training = revive(loaded, job)
    training.model.optimizer.iterations

The weights of a run are those of its result (the averages, with EMA), as in its own `model.keras`. A bare checkpoint is
converted bit for bit; its averages stay among the optimizer's variables. Adapters (LoRA) become part of their weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.checkpoints.beside import ARCHITECTURE, LOSS, OPTIMIZER
from kresume.checkpoints.keras_file import CARD
from kresume.errors import ExportError, UsageError
from kresume.evaluation.served import Prediction
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.models import (
    adapters,
    architecture,
    optimizers,
    own_counts,
    restore,
    saved_optimizer,
    schedules,
    slots,
    weight_decay,
)
from kresume.models.averages import use_averages
from kresume.models.load import Loaded
from kresume.models.saved_loss import live_entry
from kresume.models.statistics import use_stored
from kresume.runtimes.process import Answer, run_apart
from kresume.spelling import option
from kresume.tasks.table import head_named
from kresume.values.state import SavedOptimizer


@dataclass(frozen=True)
class Training:
    """A restored training.

    Attributes:
        model: built; compiled if the checkpoint holds an optimizer's state.
        facts: its content for `export.json`, and the digests that a reader must find.
    """

    model: Any
    facts: dict[str, Any]


def revive(loaded: Loaded, job: Job) -> Training:
    """Restores weights and optimizer exactly, and compiles the model with them.

    Raises:
        CheckpointError: the checkpoint holds the state of an optimizer whose class is unknown.
    """
    state, model = loaded.state, loaded.model
    asked, reset = optimizers.parse_choice(job.optimizer)
    if reset and asked is not None:
        return _begun_anew(loaded, asked)
    saved_optimizer.check_can_keep(state, asked or "adamw")
    if state.optimizer is None:
        restore.restore(model, state, optimizer=None)
        return _merged(loaded, None, "no optimizer state in the checkpoint")
    own = saved_optimizer.describe_compiled(loaded.own_optimizer, model)
    saved, assumed = saved_optimizer.name_optimizer(state, model, asked, own)
    saved = weight_decay.as_compiled(saved, own)
    if asked and asked != saved.class_name:
        raise UsageError(
            f"{option('optimizer', asked)}: the optimizer in {state.source} is {saved.class_name}; leave the option out, or "
            f"give {asked.lower()}:reset to start a fresh one"
        )
    optimizer = saved_optimizer.build_optimizer(model, state, saved, portable=True)
    found = restore.restore(model, state, optimizer=optimizer, same_weights=optimizers.says_same_weights(job.optimizer))
    if found.undecayed:
        weight_decay.mark(optimizer, found.undecayed)
    use_stored(model, state)
    averaged = loaded.averages and loaded.run is not None
    if averaged:
        use_averages(optimizer)
    schedule = state.rate.schedule if state.rate is not None else None
    peak = state.rate.value if state.rate is not None and loaded.run is not None else None
    if peak is not None and schedule is not None and not schedules.of_keras(schedule):
        # A schedule class of kresume would not load where kresume is not installed.
        plain = optimizers.make_optimizer(saved, peak)
        plain.build(model.trainable_variables)
        slots.carry(optimizer, plain)
        optimizer = plain
    own_counts.scale_to_one_count(optimizer)  # plain Keras has a single step count
    optimizer = _made_at_once(optimizer, model)
    _compile(loaded, optimizer)
    kept = bool((saved.config or {}).get("use_ema"))
    words = "averages" if averaged else "raw; the averages are among the optimizer's variables" if kept else ""
    return _merged(loaded, optimizer, words, assumed)


def _begun_anew(loaded: Loaded, name: str) -> Training:
    """Compiles the model with a fresh optimizer; keeps the checkpoint's rate if it is comparable."""
    state, model = loaded.state, loaded.model
    stored, words = state.optimizer, ""
    if loaded.run is None and stored is not None and (stored.config or {}).get("use_ema"):
        restore.restore(model, state, optimizer=None)
        words = "raw; the averages went with the old optimizer"
    rate = state.rate.value if state.rate is not None else None
    if rate is None or not optimizers.comparable_rates(stored.class_name if stored is not None else None, name):
        rate = getattr(keras.optimizers, name)().get_config()["learning_rate"]
    saved = SavedOptimizer(name, None, 0, stored.loss_scale if stored is not None else False)
    optimizer = optimizers.make_optimizer(saved, rate)
    optimizer.build(model.trainable_variables)
    _compile(loaded, optimizer)
    return _merged(loaded, optimizer, words, f"{name} begins fresh at the rate {rate:g}")


def _compile(loaded: Loaded, optimizer: Any) -> None:
    loaded.model.compile(
        optimizer=optimizer,
        loss=loaded.loss.portable().keras_loss(),
        loss_weights=loaded.loss.weight,
        metrics=loaded.loss.keras_metrics(),
        auto_scale_loss=False,  # if the checkpoint had a scale, the optimizer is wrapped already
    )


def _made_at_once(optimizer: Any, model: Any) -> Any:
    """Rebuilds the optimizer with its rate passed to the constructor.

    Setting a schedule later removes a variable from a list, and TensorFlow cannot save a list after a removal.
    """
    config = optimizer.get_config()
    config.pop("name", None)
    made = type(optimizer).from_config(config)
    if (undecayed := weight_decay.left_out(optimizer)) is not None:
        weight_decay.mark(made, undecayed)
    made.build(model.trainable_variables)
    for new, old in zip(made.variables, optimizer.variables, strict=True):
        new.assign(live_state.host_array(old.value).copy())
    return made


def _merged(loaded: Loaded, optimizer: Any, *words: str) -> Training:
    """Makes adapters part of their weights, and describes what is written."""
    said = [each for each in (adapters.merge(loaded.model), *words) if each]
    facts = {
        "step": loaded.state.step,
        "optimizer": type(optimizer).__name__ if optimizer is not None else None,
        "weights": "; ".join(said) or "as in the checkpoint",
        "outputs": loaded.loss.head.kind,
        "code": list(loaded.subject.imports),
        "digests": {
            "weights": digest(loaded.model.variables),
            "optimizer": digest(optimizer.variables) if optimizer is not None else None,
        },
    }
    return Training(loaded.model, facts)


def digest(variables: Iterable[Any]) -> str:
    """Returns the SHA-256 of variables' values, in order.

    Integers are hashed as int64, because backends differ in their width. Seed generators are skipped: only kresume's
    own format holds them.
    """
    hasher = hashlib.sha256()
    for variable in variables:
        if "seed_generator_state" in str(variable.path):
            continue
        array = live_state.host_array(variable.value)
        array = array.astype(np.int64) if array.dtype.kind in "iu" else array
        hasher.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    return hasher.hexdigest()


def write_beside(loaded: Loaded, directory: Path, training: Training) -> None:
    """Writes the JSON files that complete a file of arrays; see `checkpoints/beside.py`."""
    text = json.dumps(architecture.serialize(training.model), indent=1)
    (directory / ARCHITECTURE).write_text(text, encoding="utf-8")
    if training.facts["optimizer"] is not None:
        text = json.dumps(keras.saving.serialize_keras_object(training.model.optimizer), indent=1)
        (directory / OPTIMIZER).write_text(text, encoding="utf-8")
        loss = {"loss": live_entry(training.model.loss), "loss_weights": loaded.loss.weight}
        (directory / LOSS).write_text(json.dumps(loss, indent=1), encoding="utf-8")
    card = loaded.card.as_dict() if loaded.named else {}
    (directory / CARD).write_text(json.dumps({**card, **position(loaded)}, indent=1), encoding="utf-8")


def position(loaded: Loaded) -> dict[str, Any]:
    """Returns the step, and the rate's peak if the checkpoint belongs to a run."""
    rate = loaded.state.rate
    peak = {"peak": rate.value} if rate is not None and rate.origin == "run" else {}
    return {"step": loaded.state.step, **peak}


def predict_by_keras(directory: Path, facts: dict[str, Any], samples: Samples, backend: str) -> Prediction:
    """Loads an export with plain Keras in a fresh process, compares every variable, runs the samples.

    Raises:
        ExportError: a weight or an optimizer variable is not restored byte for byte.
    """
    answer: Answer = run_apart(
        "keras",
        {
            "path": str(directory),
            "file": facts["file"],
            "code": facts["code"],
            "compiled": facts["optimizer"] is not None,
            **samples.inputs("values"),
        },
        environment={"KERAS_BACKEND": backend},
    )
    for part in ("weights", "optimizer"):
        if facts["digests"][part] is not None and answer.facts[part] != facts["digests"][part]:
            raise ExportError(
                f"{directory / facts['file']}: the {part} that plain Keras reads back differ from those of the checkpoint"
            )
    scores = head_named(facts["outputs"]).probabilities(answer.outputs["raw"])
    return Prediction(scores, samples.task.answers(scores), answer.failed, answer.facts)
