"""Lists the export formats: each is a file with `write` and `predict`, and an entry here.

    EXPORTERS["onnx"].write(loaded, directory, job)

A format's file is imported only when it is used, because some of them import Keras, which fixes the backend.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kresume.errors import MissingPackage, UsageError
from kresume.evaluation.served import Prediction
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.images import conventions
from kresume.models.load import Loaded
from kresume.spelling import option


@dataclass(frozen=True)
class Exporter:
    """An export format.

    Attributes:
        module: its file in this package.
        called: its description, for messages.
        needs_tensorflow: True if it can only be written under the TensorFlow backend.
        for_training: True if it includes the optimizer; other formats hold what a prediction needs.
        versioned: True if the destination is a folder of numbered versions.
        packages: the extra that installs each required module.
        options: the fields of `Job` that it supports.
    """

    module: str
    called: str
    needs_tensorflow: bool = False
    for_training: bool = False
    versioned: bool = False
    packages: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    def write(self, loaded: Loaded, directory: Path, job: Job) -> dict[str, Any]:
        """Writes the export into an empty folder, and returns facts for `export.json`.

        Raises:
            KresumeError: the format cannot hold this model.
        """
        facts: dict[str, Any] = importlib.import_module(f"kresume.exports.{self.module}").write(loaded, directory, job)
        return facts

    def predict(self, directory: Path, facts: dict[str, Any], samples: Samples) -> Prediction:
        """Returns the predictions of the format's own runtime, in a fresh process.

        Raises:
            KresumeError: the export does not load there.
        """
        module = importlib.import_module(f"kresume.exports.{self.module}")
        prediction: Prediction = module.predict(directory, facts, samples)
        return prediction


EXPORTERS: dict[str, Exporter] = {
    "saved-model": Exporter(
        "saved_model",
        "a SavedModel for TensorFlow Serving",
        needs_tensorflow=True,
        versioned=True,
        options=("top_k", "embeddings", "on_bad_image", "like", "like_pixels", "name"),
    ),
    "onnx": Exporter(
        "onnx",
        "an ONNX file for onnxruntime",
        needs_tensorflow=True,
        packages={"onnx": "onnx", "tf2onnx": "onnx", "onnxruntime": "onnx"},
    ),
    "litert": Exporter(
        "litert",
        "a LiteRT (TFLite) file for phones",
        needs_tensorflow=True,
        packages={"ai_edge_litert": "litert"},
        options=("quantize",),
    ),
    "keras": Exporter("keras_file", "a .keras file", for_training=True, options=("optimizer",)),
    "tf-checkpoint": Exporter(
        "tf_checkpoint",
        "a tf.train.Checkpoint",
        needs_tensorflow=True,
        for_training=True,
        options=("optimizer",),
    ),
    "weights-h5": Exporter("weights_h5", "a .weights.h5 file", for_training=True, options=("optimizer",)),
}


def find_exporter(name: str) -> Exporter:
    """Returns the exporter of a format, after checking that its packages are installed.

    Raises:
        UsageError: there is no such format.
        MissingPackage: a package is not installed; the message has the pip command.
    """
    if name not in EXPORTERS:
        raise UsageError(f"{option('format', name)}: use {', '.join(EXPORTERS)}")
    exporter = EXPORTERS[name]
    for module, extra in exporter.packages.items():
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(f"{option('format', name)} needs the package {module}: pip install 'kresume[{extra}]'")
    return exporter


def check_options(exporter: Exporter, job: Job) -> None:
    """Checks that the format supports the given options.

    Raises:
        UsageError: it does not support one, or a value is invalid.
    """
    default = Job()
    always = {"format", "files", "pictures", "name"}
    for field_name, value in job.as_dict().items():
        if field_name not in always and field_name not in exporter.options and value != getattr(default, field_name):
            given, format_ = option(field_name.replace("_", "-"), value), option("format", job.format)
            raise UsageError(f"{given} does not apply to {format_}: leave it out")
    for name in ("top_k", "embeddings") if job.like is not None else ():
        if getattr(job, name) != getattr(default, name):
            given = option(name.replace("_", "-"), getattr(job, name))
            raise UsageError(
                f"{option('like', job.like)} keeps the signatures of the old model, so {given} has no place: leave it out"
            )
    if job.like_pixels is not None and job.like is None:
        raise UsageError(f"{option('like-pixels')} names what the clients of {option('like')} send: give both")
    if job.like_pixels is not None:
        conventions.to_picture_function(job.like_pixels)
    if exporter.versioned and not re.fullmatch(r"[A-Za-z0-9_.-]+", job.name):
        raise UsageError(
            f"the name of a served model appears in addresses and commands, and {job.name!r} does not fit there: give "
            f"{option('name')} with letters, digits, _, . and -"
        )
