"""Reads the number of a model's outputs, and whether they are probabilities or logits.

    output_count(model)                 # 10
    read_outputs(model)                 # Outputs("probabilities", "its last activation is softmax")

The last activation decides. Layers behind it that change no value in prediction (Dropout, Reshape, a cast) are skipped,
and nested models are entered. If it has no known name, the outputs of a few generated pictures are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from kresume.errors import ModelError
from kresume.models.shapes import input_shape_of, output_shape_of
from kresume.spelling import option

PROBABILITIES = frozenset({"softmax", "sigmoid", "hard_sigmoid", "sparsemax"})
LOGITS = frozenset({"linear", "log_softmax", "log_sigmoid"})
NAMED = ("softmax", "sigmoid", "hard_sigmoid", "sparsemax", "linear", "log_softmax", "log_sigmoid")
OPERATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax", "HardSigmoid": "hard_sigmoid"}
"""Keras's activation layers and operations, by class name."""
THROUGH = frozenset(
    {"Dropout", "SpatialDropout1D", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise", "Identity",
     "ActivityRegularization", "Reshape", "Flatten", "Squeeze", "Cast", "Permute"}
)  # fmt: skip
"""Layers and operations that change no value in prediction."""
SCALES = (1.0, 4.0, 16.0, 64.0, 255.0, 1000.0, -255.0, 0.0)
"""Factors of the generated pictures, one per picture, so that the outputs differ widely."""
EXACT = 1e-3
"""Tolerance for the outputs of a picture to add up to 1; errors of half precision never exceed it."""


ADD_UP = "its outputs add up to 1"


@dataclass(frozen=True)
class Outputs:
    """The kind of a model's outputs, and the evidence for it.

    Attributes:
        are: `"probabilities"` or `"logits"`; None if unknown.
        because: the evidence, in words; empty if unknown.
        activation: name of the last activation; None if it has no known name.
        bounded: True if measured outputs stay between -1 and 1, as behind a `tanh`.
    """

    are: Literal["probabilities", "logits"] | None
    because: str
    activation: str | None
    bounded: bool = False

    @property
    def exclusive(self) -> bool:
        """Returns True if the outputs add up to 1: an image has one class."""
        return self.activation in {"softmax", "sparsemax"} or self.because == ADD_UP


def output_count(model: keras.Model) -> int:
    """Returns the number of outputs per image.

    Raises:
        ModelError: the model has several output tensors, or its output is not a vector per image.
    """
    shape = output_shape_of(model)
    given = getattr(model, "_outputs_struct", None)  # a graph's `output_shape` does not show a dictionary with one key
    if isinstance(shape, tuple) and len(shape) == 2 and shape[1] is not None and not isinstance(given, Mapping):
        return int(shape[1])
    raise ModelError(_unusable(given if isinstance(given, Mapping) else shape))


def _unusable(outputs: Any) -> str:
    """Returns the message about outputs that kresume does not train.

    Args:
        outputs: the shape of one, or a list or mapping of several, or of one.
    """
    if isinstance(outputs, (list, Mapping)) and len(outputs) > 1:
        return (
            f"the model has {len(outputs)} outputs; kresume trains one image to one label, so it must have one. Models with "
            "several outputs: use kresume.BackupAndRestore in your own fit"
        )
    if isinstance(outputs, Mapping):
        found, way = f"a dictionary with the key {next(iter(outputs), '')!r}", "model.outputs[0]"
    else:
        layer = "Reshape((1,))" if isinstance(outputs, tuple) and len(outputs) == 1 else "Flatten()"
        found, way = f"of the shape {outputs}", f"keras.layers.{layer}(model.outputs[0])"
    return (
        f"the model's output is {found}, expected a tensor (batch, classes): give a function that returns such a model of the "
        f"same layers, keras.Model(model.inputs, {way}) for example, as {option('model', 'FILE.py:FUNCTION')}"
    )


def read_outputs(model: keras.Model) -> Outputs:
    """Finds out whether the outputs are probabilities or logits.

    The last activation decides; if it has no known name, the outputs of generated pictures are measured.

    Args:
        model: built, with one output.
    """
    name = last_activation(model)
    if name in PROBABILITIES:
        return Outputs("probabilities", f"its last activation is {name}", name)
    if name in LOGITS:
        return Outputs("logits", f"its last activation is {name}", name)
    values = answers(model)
    if values is None or not np.isfinite(values).all():
        return Outputs(None, "", None)
    lowest, highest = float(values.min()), float(values.max())
    if lowest >= 0 and values.shape[1] > 1 and np.abs(values.sum(axis=1) - 1).max() < EXACT:
        return Outputs("probabilities", ADD_UP, None)
    if lowest >= 0 and highest <= 1:
        return Outputs("probabilities", "its outputs lie between 0 and 1", None)
    if lowest < 0:
        bounded = lowest >= -1 and highest <= 1
        return Outputs("logits", f"its outputs reach from {lowest:.3g} to {highest:.3g}", None, bounded)
    return Outputs(None, "", None)


def last_activation(model: keras.Model) -> str | None:
    """Returns the name of the last activation, through nested models; None if unknown."""
    for operation in backwards(model):
        kind = type(operation).__name__
        if kind in OPERATIONS:
            return OPERATIONS[kind]
        if kind in THROUGH:
            continue
        name = _name_of(getattr(operation, "activation", None))
        if kind == "Activation" and name == "linear":
            continue  # a cast to another type
        return name
    return None


def _name_of(activation: Any) -> str | None:
    """Returns the name of a Keras activation; None for any user's function."""
    if isinstance(activation, (keras.layers.Softmax,)):
        return "softmax"
    return next((name for name in NAMED if activation is getattr(keras.activations, name, None)), None)


def backwards(model: Any) -> Iterator[Any]:
    """Yields the operations from a model's output backwards, entering nested models.

    Stops at an operation that has several inputs.
    """
    if not isinstance(model, (keras.Sequential, keras.src.models.Functional)):
        return
    if not getattr(model, "outputs", None) or len(model.outputs) != 1:
        return
    tensor = model.outputs[0]
    while True:
        operation, node, _ = tensor._keras_history
        if isinstance(operation, keras.layers.InputLayer):
            return
        if isinstance(operation, keras.Model):
            if not isinstance(operation, (keras.Sequential, keras.src.models.Functional)):
                yield operation
                return
            yield from backwards(operation)
        else:
            yield operation
        inputs = operation._inbound_nodes[node].input_tensors
        if len(inputs) != 1:
            return
        tensor = inputs[0]


def answers(model: Any) -> np.ndarray | None:
    """Predicts a few generated pictures: `(pictures, outputs)`; None if that is impossible."""
    given = input_shape_of(model)
    if not isinstance(given, tuple):
        return None
    shape = [size or 64 for size in given[1:]]
    count = given[0] or len(SCALES)  # a model may have a fixed batch size
    scales = np.resize(SCALES, (count, *[1] * len(shape)))
    pictures = np.random.default_rng(0).random((count, *shape)) * scales
    try:
        values = model(keras.ops.convert_to_tensor(pictures.astype("float32")), training=False)
    except Exception:  # custom layers may raise anything; on real pictures they fail too, and the reason is shown there
        return None
    return np.asarray(keras.ops.convert_to_numpy(values), np.float64)
