"""Reads facts that a SavedModel's signature lacks from its Keras model.

    if has_keras_model(folder, model): select_backend(...)
    facts = read_facts(folder, subject, signature)
    facts.pixels, facts.head                             # "0-255", Head(BINARY); None if unknown

The facts are the pixel convention and how the model answers. Keras 2 stores the architecture in the SavedModel; for other
SavedModels the user may name the function that builds the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kresume.checkpoints import saved_model
from kresume.errors import KresumeError
from kresume.models.load import Subject, load
from kresume.runtimes.signatures import Signature
from kresume.storage import atomic
from kresume.tasks.binary import BINARY
from kresume.tasks.task import Head

COUNTED = re.compile(r"(_\d+)?(_input)?(_\d+)?$")
"""Matches the suffixes that Keras adds to a layer's name: a counter, and `_input`."""
INPUTS, OUTPUTS = re.compile(r"input_\d+|keras_tensor(_\d+)?"), re.compile(r"output_\d+")
"""Names that Keras generates for the inputs and outputs of a model without named ones."""


@dataclass(frozen=True)
class KerasFacts:
    """Facts from the Keras model behind a SavedModel; None if unknown.

    Attributes:
        pixels: the pixel convention, from the first layers.
        head: how the model answers.
    """

    pixels: str | None = None
    head: Head | None = None


def has_keras_model(folder: Path, model: str | None) -> bool:
    """Returns True if a Keras model can be built for a SavedModel.

    Args:
        folder: the SavedModel.
        model: `--model`, or None.
    """
    return not _is_ours(folder) and (model is not None or saved_model.read_architecture(str(folder)) is not None)


def read_facts(folder: Path, subject: Subject, signature: Signature) -> KerasFacts:
    """Builds the Keras model with its weights and reads its first and last layers.

    The backend must already be selected.

    Args:
        folder: the SavedModel.
        subject: the facts given by the user.
        signature: the signature in use. If its names are not those that Keras generates, it is a function of the user's
            own, whose inputs and outputs may differ from the model's: the result is then unknown.

    Raises:
        KresumeError: the user's `--model` does not build it. If the SavedModel's own architecture cannot be built here
            (custom layers, a Lambda), the result is unknown instead.
    """
    if _is_ours(folder):
        logits = atomic.read_json(folder / "export.json").get("logits")
        return KerasFacts(None, Head(BINARY, bool(logits)))
    if not has_keras_model(folder, subject.model):
        return KerasFacts()
    from kresume.models.outputs import read_outputs
    from kresume.models.pixels import read_convention

    try:
        loaded = load(replace(subject, checkpoint=str(folder), pixels=None), anonymous=True)
    except KresumeError:
        if subject.model is not None:
            raise
        return KerasFacts()
    model = loaded.model
    if not _is_keras_signature(signature, model):
        return KerasFacts()
    return KerasFacts(read_convention(model), loaded.loss.head if read_outputs(model).are is not None else None)


def _is_keras_signature(signature: Signature, model: Any) -> bool:
    """Returns True if a signature has Keras's names for the model's input and outputs."""
    layers = {_plain(str(layer.name)) for layer in model.layers}
    inputs = layers | {_plain(str(tensor.name)) for tensor in getattr(model, "inputs", None) or ()}
    taken, given = signature.input.name, [output.name for output in signature.outputs]
    return (_plain(taken) in inputs or bool(INPUTS.fullmatch(taken))) and all(
        _plain(name) in layers or OUTPUTS.fullmatch(name) for name in given
    )


def _plain(name: str) -> str:
    return COUNTED.sub("", name)


def _is_ours(folder: Path) -> bool:
    """Returns True if kresume exported the SavedModel; `export.json` then has all facts."""
    try:
        return "export_format" in atomic.read_json(folder / "export.json")
    except (OSError, ValueError, TypeError, KresumeError):  # no such file, or another program's file of that name
        return False
