"""Asks the Keras model behind a SavedModel for what its signature does not say: which numbers it takes, what its outputs are.

    if can_say(folder, model): select_backend(...)
    said = ask(folder, subject, signature)       # Said("0-255", "binary"); Said(None, None) where nothing says it

Keras 2 leaves the architecture in the SavedModel; for another one the user may name the function that builds it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kresume import files
from kresume.checkpoints import saved_model
from kresume.errors import KresumeError
from kresume.evaluation.loaded import Subject, load
from kresume.evaluation.score import OutputKind
from kresume.evaluation.signatures import Signature

COUNTED = re.compile(r"(_\d+)?(_input)?(_\d+)?$")
"""Matches the endings that Keras adds to a layer's name: a count, and the mark of an input."""
INPUTS, OUTPUTS = re.compile(r"input_\d+|keras_tensor(_\d+)?"), re.compile(r"output_\d+")
"""Names that Keras makes up for the inputs and outputs of a model without named ones."""


@dataclass(frozen=True)
class Said:
    """Holds the answers of the Keras model behind a SavedModel.

    Attributes:
        pixels: the convention that its first layers show.
        outputs: what its outputs are.
    """

    pixels: str | None = None
    outputs: OutputKind | None = None


def can_say(folder: Path, model: str | None) -> bool:
    """Tells whether there is a Keras model to ask.

    Args:
        folder: the SavedModel.
        model: `--model`, or None.
    """
    return not _is_ours(folder) and (model is not None or saved_model.read_architecture(str(folder)) is not None)


def ask(folder: Path, subject: Subject, signature: Signature) -> Said:
    """Builds the Keras model with its weights and reads its first and its last layers. The backend was selected before.

    Args:
        folder: the SavedModel.
        subject: what the user said of it.
        signature: what is asked for. Where its names are not those that Keras gives, it is a function of the user's own, which
            may take other numbers than the model and give other ones: then nothing is said.

    Raises:
        KresumeError: the `--model` that the user gave does not build it. One of the SavedModel's own that cannot be built
            here (layers of the user's own, a Lambda) says nothing.
    """
    if _is_ours(folder):
        logits = files.read_json(folder / "export.json").get("logits")
        return Said(None, "binary-logits" if logits else "binary")
    if not can_say(folder, subject.model):
        return Said()
    from kresume.models.outputs import read_outputs
    from kresume.models.pixels import read_convention

    try:
        loaded = load(replace(subject, checkpoint=str(folder), pixels=None), anonymous=True)
    except KresumeError:
        if subject.model is not None:
            raise
        return Said()
    model = loaded.model
    if not _is_kerass(signature, model):
        return Said()
    return Said(read_convention(model), loaded.loss.outputs if read_outputs(model).are is not None else None)


def _is_kerass(signature: Signature, model: Any) -> bool:
    """Tells whether a signature has the names that Keras gives to the model's own input and output."""
    layers = {_plain(str(layer.name)) for layer in model.layers}
    inputs = layers | {_plain(str(tensor.name)) for tensor in getattr(model, "inputs", None) or ()}
    taken, given = signature.input.name, [output.name for output in signature.outputs]
    return (_plain(taken) in inputs or bool(INPUTS.fullmatch(taken))) and all(
        _plain(name) in layers or OUTPUTS.fullmatch(name) for name in given
    )


def _plain(name: str) -> str:
    return COUNTED.sub("", name)


def _is_ours(folder: Path) -> bool:
    """Tells whether kresume exported it: then `export.json` says everything."""
    try:
        return "export_format" in files.read_json(folder / "export.json")
    except (OSError, ValueError, TypeError, KresumeError):  # none, or another program's file of that name
        return False
