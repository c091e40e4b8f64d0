"""The formats. A new one is a file with `write` and `predict`, and an entry here.

EXPORTERS["onnx"].write(loaded, directory, job)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kresume.errors import MissingPackage, UsageError
from kresume.evaluation.loaded import Loaded
from kresume.evaluation.served import Prediction
from kresume.exports import keras_file, litert, onnx, saved_model, tf_checkpoint, weights_h5
from kresume.exports.job import Job
from kresume.exports.samples import Samples


@dataclass(frozen=True)
class Exporter:
    """A format.

    Attributes:
        write: `(loaded, empty folder, job)` -> facts for `export.json`.
        predict: `(folder, facts, samples)` -> the answers of the format's own runtime, in a fresh process.
        called: what it is, for messages.
        needs_tensorflow: it can be written under the TensorFlow backend alone.
        for_training: it carries the optimizer; the others hold what a prediction needs.
        versioned: the destination is a folder of numbered versions.
        packages: module -> the extra that brings it.
        options: the fields of `Job` that it understands.
    """

    write: Callable[[Loaded, Path, Job], dict[str, Any]]
    predict: Callable[[Path, dict[str, Any], Samples], Prediction]
    called: str
    needs_tensorflow: bool = False
    for_training: bool = False
    versioned: bool = False
    packages: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


EXPORTERS: dict[str, Exporter] = {
    "saved-model": Exporter(
        saved_model.write,
        saved_model.predict,
        "a SavedModel for TensorFlow Serving",
        needs_tensorflow=True,
        versioned=True,
        options=("top_k", "embeddings", "on_bad_image", "like", "name"),
    ),
    "onnx": Exporter(
        onnx.write,
        onnx.predict,
        "an ONNX file for onnxruntime",
        needs_tensorflow=True,
        packages={"onnx": "onnx", "tf2onnx": "onnx", "onnxruntime": "onnx"},
    ),
    "litert": Exporter(
        litert.write,
        litert.predict,
        "a LiteRT (TFLite) file for phones",
        needs_tensorflow=True,
        packages={"ai_edge_litert": "litert"},
        options=("quantize",),
    ),
    "keras": Exporter(keras_file.write, keras_file.predict, "a .keras file", for_training=True, options=("optimizer",)),
    "tf-checkpoint": Exporter(
        tf_checkpoint.write,
        tf_checkpoint.predict,
        "a tf.train.Checkpoint",
        needs_tensorflow=True,
        for_training=True,
        options=("optimizer",),
    ),
    "weights-h5": Exporter(
        weights_h5.write, weights_h5.predict, "a .weights.h5 file", for_training=True, options=("optimizer",)
    ),
}


def find_exporter(name: str) -> Exporter:
    """The exporter of a format, with the packages it needs.

    Raises:
        UsageError: there is no such format.
        MissingPackage: a package is not installed; the message has the pip command.
    """
    if name not in EXPORTERS:
        raise UsageError(f"--format {name}: use {', '.join(EXPORTERS)}")
    exporter = EXPORTERS[name]
    for module, extra in exporter.packages.items():
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(f"--format {name} needs the package {module}: pip install 'kresume[{extra}]'")
    return exporter
