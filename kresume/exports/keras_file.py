"""Writes a `.keras` file that plain Keras can load and train further.

It holds weights, optimizer and step; its `kresume.json` holds classes and pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from kresume.evaluation.served import Prediction
from kresume.exports import training_state
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.models.load import Loaded
from kresume.models.save import write_archive

FILE = "model.keras"


def write(loaded: Loaded, directory: Path, job: Job) -> dict[str, Any]:
    """Writes `model.keras`."""
    training = training_state.revive(loaded, job)
    card = loaded.card if loaded.named else None
    write_archive(training.model, directory / FILE, card, training_state.position(loaded))
    return {**training.facts, "file": FILE}


def predict(directory: Path, facts: dict[str, Any], samples: Samples) -> Prediction:
    """Runs the samples through plain Keras, under the same backend."""
    return training_state.predict_by_keras(directory, facts, samples, keras.config.backend())
