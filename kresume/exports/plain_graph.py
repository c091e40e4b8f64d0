"""Builds the graph for phones and other runtimes: images of the model's size in, scores out.

    function = picture_function(loaded)        # images (batch, height, width, 3) float32 in 0..255 -> scores

The graph has no strings and no decoding, because such runtimes decode images themselves. It converts the pixels to the
values that the model expects. It computes in float32, also where the model trained in 16 bits: LiteRT has no operations for
those, and onnxruntime has none for bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kresume.evaluation.served import Prediction
from kresume.exports.graph import Served
from kresume.exports.samples import Samples
from kresume.models import architecture, precision
from kresume.models.build import from_config
from kresume.models.load import Loaded
from kresume.runtimes.process import run_apart

INPUT, OUTPUT = "images", "scores"
LABELS = "labels.txt"


def picture_function(loaded: Loaded) -> Any:
    """Returns a traced function from images to scores.

    Its input is `images (batch, height, width, 3) float32` in 0..255, its output `{"scores": (batch, classes)
    float32}`.
    """
    import tensorflow as tf

    served = Served(_in_float32(loaded.model), loaded.card, loaded.loss.head, top_k=1)
    spec = tf.TensorSpec((None, *loaded.card.image_size, 3), tf.float32, name=INPUT)

    def scores(images: Any) -> dict[str, Any]:
        return {OUTPUT: served.scores(served.to_model(images))}

    return tf.function(scores, input_signature=[spec], autograph=False)


def _in_float32(model: keras.Model) -> keras.Model:
    """Returns a model with the same weights that computes in float32; the given one if it does already."""
    if not precision.describe(model):
        return model
    own = {type(layer).__name__: type(layer) for layer in model._flatten_layers(include_self=False)}
    other = from_config(architecture.serialize(model), own, "float32", trust=True, holder="the model to export")
    other.set_weights(model.get_weights())
    return other


def describe(loaded: Loaded, directory: Path, file: str) -> dict[str, Any]:
    """Writes the class names beside the file; returns its input and output for `export.json`."""
    (directory / LABELS).write_text("".join(f"{name}\n" for name in loaded.card.classes), encoding="utf-8")
    height, width = loaded.card.image_size
    return {
        "file": file,
        "input": {"name": INPUT, "dtype": "float32", "shape": [None, height, width, 3], "values": "0-255, RGB"},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": [None, len(loaded.card.classes)]},
    }


def metadata(loaded: Loaded) -> dict[str, str]:
    """Returns classes, image size and resampling for the file's own metadata."""
    card = loaded.card.as_dict()
    names = ("classes", "image_size", "resize", "interpolation")
    return {name: json.dumps(card[name], ensure_ascii=False) for name in names}


def predict(runtime: str, directory: Path, facts: dict[str, Any], samples: Samples) -> Prediction:
    """Runs the samples through a runtime that expects pictures."""
    answer = run_apart(runtime, {"path": str(directory / facts["file"]), **samples.inputs("pictures")})
    scores = np.asarray(answer.outputs[OUTPUT], np.float64)
    return Prediction(scores, samples.task.answers(scores), answer.failed, answer.facts)


def first_line(error: Exception) -> str:
    """Returns the first line of an error of a converter, which may print its whole graph."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
