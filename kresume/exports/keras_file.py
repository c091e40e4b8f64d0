"""Writes a `.keras` file that plain Keras can load and train further.

It holds weights, optimizer and step; its `kresume.json` holds classes and pixels.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import keras

from kresume.errors import ImagesError
from kresume.evaluation.served import Prediction
from kresume.exports import training_state
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.images.scans import manifest_of
from kresume.models.load import Loaded
from kresume.models.plain_keras import line_of
from kresume.models.save import write_archive

FILE = "model.keras"


def write(loaded: Loaded, directory: Path, job: Job) -> dict[str, Any]:
    """Writes `model.keras`."""
    training = training_state.revive(loaded, job)
    card = loaded.card if loaded.named else None
    write_archive(
        training.model, directory / FILE, card, training_state.position(loaded) | _feed(training.model, loaded)
    )
    return {**training.facts, "file": FILE}


def _feed(model: Any, loaded: Loaded) -> dict[str, str]:
    """Returns the line that feeds the model, with the folders' names that its run or its file records."""
    if loaded.run is not None:
        with suppress(ImagesError):  # the run has lost its table of images
            return {"feed": line_of(model, loaded.card, manifest_of(loaded.run.path))}
    recorded = loaded.state.records.get("feed")
    return {"feed": recorded} if recorded else {}


def predict(directory: Path, facts: dict[str, Any], samples: Samples) -> Prediction:
    """Runs the samples through plain Keras, under the same backend."""
    return training_state.predict_by_keras(directory, facts, samples, keras.config.backend())
