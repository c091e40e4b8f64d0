"""Writes a `.weights.h5` file with optimizer, and architecture and optimizer settings as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from kresume.evaluation.served import Prediction
from kresume.exports import training_state
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.models.load import Loaded

FILE = "model.weights.h5"


def write(loaded: Loaded, directory: Path, job: Job) -> dict[str, Any]:
    """Writes `model.weights.h5` and the JSON files beside it."""
    training = training_state.revive(loaded, job)
    training.model.save_weights(str(directory / FILE))
    training_state.write_beside(loaded, directory, training)
    return {**training.facts, "file": FILE}


def predict(directory: Path, facts: dict[str, Any], samples: Samples) -> Prediction:
    """Runs the samples through plain Keras, under the same backend."""
    return training_state.predict_by_keras(directory, facts, samples, keras.config.backend())
