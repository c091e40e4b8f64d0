"""Writes LiteRT (formerly TFLite) files for phones and small boards: `model.tflite`.

The numbers are `float32`, `float16` or `int8`. The input `images` is `(batch, height, width, 3) float32` in 0..255
(resize the input tensor for batches); the output `scores` sums to 1. With `int8` the weights are stored as integers and
the arithmetic stays in floats (dynamic range).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from kresume.backend.selection import without_native_notes
from kresume.errors import ExportError
from kresume.evaluation.served import Prediction
from kresume.exports import plain_graph
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.models.load import Loaded
from kresume.spelling import option

FILE = "model.tflite"


def write(loaded: Loaded, directory: Path, job: Job) -> dict[str, Any]:
    """Writes `model.tflite` and `labels.txt`.

    Raises:
        ExportError: the converter cannot express the model in LiteRT's own operations.
    """
    import tensorflow as tf

    concrete = plain_graph.picture_function(loaded).get_concrete_function()
    module = tf.Module()
    module.held = list(concrete.graph.variables)
    with tempfile.TemporaryDirectory(prefix="kresume-") as folder, without_native_notes():
        tf.saved_model.save(module, folder, signatures=concrete)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        # No Flex operations: a runtime without TensorFlow, as on a phone, cannot load them.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = True
        if job.quantize is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if job.quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            content = converter.convert()
        except Exception as error:  # each stage of the converter raises its own classes
            raise ExportError(
                f"{option('format', 'litert')}: the converter cannot express {loaded.model.name} in LiteRT's own operations "
                f"({plain_graph.first_line(error)}); {option('format', 'saved-model')} can hold it"
            ) from error
    (directory / FILE).write_bytes(content)
    return {**plain_graph.describe(loaded, directory, FILE), "numbers": job.quantize or "float32"}


def predict(directory: Path, facts: dict[str, Any], samples: Samples) -> Prediction:
    """Runs the samples through LiteRT's interpreter."""
    return plain_graph.predict("litert", directory, facts, samples)
