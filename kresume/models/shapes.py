"""Returns the input and output shapes of models, subclassed ones included.

build_once(model, (64, 64))         # a subclassed model has no variables before its first batch
input_shape_of(model)               # (None, 64, 64, 3)
output_shape_of(model)              # (None, 10)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from kresume.errors import ModelError
from kresume.models.own_code import as_model_error


def build_once(model: keras.Model, size: tuple[int, int], what: str) -> None:
    """Builds a model on one batch of pictures, without computing anything.

    A graph of layers is already built. A subclassed model that counts as built is called as well, because Keras may
    have silently given up on its `call`.

    Args:
        model: as its constructor returned it.
        size: `(height, width)` of the pictures.
        what: origin of the model, for messages.

    Raises:
        ModelError: the model's own code fails; the message gives the reason, file and line.
    """
    if isinstance(model, (keras.Sequential, keras.src.models.Functional)) and model.built:
        return
    if model.built:
        output_shape_of(model)
    else:
        with as_model_error(f"{what}: building the model on a batch of {size[0]}x{size[1]} images"):
            model(keras.KerasTensor((1, *size, 3), "float32"))


def input_shape_of(model: keras.Model) -> Any:
    """Returns the shape of an input batch; a list or mapping for several inputs.

    A subclassed model does not define its input shape; the shape on which it was built is returned.

    Raises:
        ModelError: the model was never built.
    """
    if hasattr(model, "input_shape"):
        return model.input_shape
    config: Mapping[str, Any] = model.get_build_config() or {}
    shape = config.get("input_shape", config.get("shapes_dict"))
    if shape is None:
        raise ModelError(f"the model {model.name} was never built, so its input shape is unknown: call it on one batch")
    if isinstance(shape, Mapping):
        return dict(shape)
    if any(isinstance(part, (list, tuple, Mapping)) for part in shape):
        return list(shape)
    return (None, *shape[1:])


def takes_any_size(model: keras.Model) -> bool:
    """Returns True if a model takes pictures of any size."""
    shape = input_shape_of(model)
    return isinstance(shape, tuple) and None in shape[1:]


def output_shape_of(model: keras.Model) -> Any:
    """Returns the shape of an output batch; a list or mapping for several outputs.

    Raises:
        ModelError: the model's own code fails, or it has several inputs and no known output shape.
    """
    if hasattr(model, "output_shape"):
        return model.output_shape
    shape = input_shape_of(model)
    if not isinstance(shape, tuple):
        raise ModelError(
            f"the model {model.name} has several inputs, of the shapes {shape}; kresume supports one image input"
        )
    with as_model_error(f"calling the model {model.name} on a batch of the shape {shape}"):
        given = model(keras.KerasTensor((2, *shape[1:]), "float32"))
    return keras.tree.map_structure(lambda tensor: (None, *tensor.shape[1:]), given)
