"""Writes a `tf.train.Checkpoint` of model and optimizer, with the architecture as JSON beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kresume.evaluation.served import Prediction
from kresume.exports import training_state
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.models.load import Loaded

NAME = "ckpt"


def write(loaded: Loaded, directory: Path, job: Job) -> dict[str, Any]:
    """Writes `ckpt-STEP.index`, its data, TensorFlow's own `checkpoint` file, and the JSON files.

    Args:
        loaded: the model, under the TensorFlow backend: a checkpoint can track nothing else.
        directory: an empty folder.
        job: the options.
    """
    import tensorflow as tf

    training = training_state.revive(loaded, job)
    model = training.model
    roots = {"model": model}
    if training.facts["optimizer"] is not None:
        roots["optimizer"] = model.optimizer
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(**roots), str(directory), max_to_keep=1, checkpoint_name=NAME
    )
    prefix = Path(manager.save(checkpoint_number=int(loaded.state.step or 0)))
    training_state.write_beside(loaded, directory, training)
    return {**training.facts, "file": prefix.name}


def predict(directory: Path, facts: dict[str, Any], samples: Samples) -> Prediction:
    """Runs the samples through plain Keras on TensorFlow, after `tf.train.Checkpoint.restore`."""
    return training_state.predict_by_keras(directory, facts, samples, "tensorflow")
