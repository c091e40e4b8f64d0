"""Builds one model of pictures, 0-255, from an image classifier of keras-hub.

    model = on_pictures(classifier, (224, 224))                       # the same outputs
    model = on_pictures(classifier, (224, 224), last=new_head)        # the same features below another head

A classifier of keras-hub preprocesses in `fit` and `predict`, not when it is called, and its classes load where keras-hub
is installed. Most convolutional backbones are graphs of Keras's own layers, or of blocks that only call such layers. They
become plain graphs, with the same variables. Other backbones (transformers) are used as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from kresume.errors import ModelError
from kresume.models.outputs import backwards
from kresume.values.first_layers import LARGEST_SCALE

POWER_OF_TWO = 256
"""Divides and multiplies pixels without rounding."""
DEEPEST = 8
"""Most levels of blocks inside blocks that are opened."""
Size = tuple[int | None, int | None]


def holds_hub(model: keras.Model) -> bool:
    """Returns True if a layer of the model is of a class of keras-hub."""
    return any(_is_hubs(layer) for layer in model._flatten_layers())


def fixed_size(classifier: Any) -> tuple[int, int] | None:
    """Returns the `(height, width)` that the backbone takes; None if it takes any.

    Raises:
        ModelError: it takes no pictures with three colours in the last axis.
    """
    shape = tuple(classifier.backbone.input_shape)
    if len(shape) != 4 or shape[3] != 3:
        raise ModelError(f"its backbone takes {shape}, expected pictures (batch, height, width, 3)")
    return None if None in shape[1:3] else (int(shape[1]), int(shape[2]))


def converter_size(classifier: Any) -> tuple[int, int] | None:
    """Returns the `(height, width)` to which its preprocessing resizes; None if it does not."""
    size = getattr(_converter(classifier), "image_size", None)
    return None if size is None else (int(size[0]), int(size[1]))


def hidden_layers(classifier: Any) -> list[str]:
    """Returns the names of the layers with weights between the backbone and the last layer."""
    between = []
    for operation in backwards(classifier):
        if operation is classifier.backbone or operation in classifier.backbone.layers:
            break
        between.append(operation)
    return [each.name for each in reversed(between) if each.weights][:-1]


def on_pictures(
    classifier: Any,
    size: Size,
    last: Callable[[Any], Any] | None = None,
    *,
    hidden: bool = True,
    name: str | None = None,
) -> keras.Model:
    """Builds a classifier as a model of pictures; both share their variables.

    Args:
        classifier: a `keras_hub.models.ImageClassifier`.
        size: `(height, width)` of the pictures; None for any.
        last: applied to the features in place of the last layer and the dropout before it; None keeps them.
        hidden: False leaves out the layers with weights between the backbone and the last layer.
        name: of the model; None for the classifier's.

    Returns:
        A functional model that expects 0-255, `(batch, height, width, 3)`; without preprocessing where the classifier
        has none.

    Raises:
        ModelError: its preprocessing cannot be expressed in layers.
        ValueError: the layers of the head do not fit pictures of this size.
    """
    whole = keras.Model(classifier.input, classifier.output, name=name or classifier.name)
    order = list(backwards(whole))
    head = next(place for place, operation in enumerate(order) if operation.weights)
    dropped = {id(each) for each in order[head + 1 : head + 2] if isinstance(each, keras.layers.Dropout)}
    inputs = keras.Input((*size, 3), name="images")
    backbone, taken = _backbone(classifier, size)

    def call(operation: Any, *arguments: Any, **named: Any) -> Any:
        if operation is classifier.backbone:
            return backbone(_preprocessed(classifier, inputs, size, taken))
        if isinstance(operation, keras.Sequential):
            x = arguments[0]
            for layer in operation.layers:
                x = call(layer, x)
            return x
        if last is not None and operation is order[head]:
            return last(arguments[0])
        left_out = not hidden and operation.weights and operation is not order[head]
        if left_out or (last is not None and id(operation) in dropped):
            return arguments[0]
        return operation(*arguments, **named)

    return keras.models.clone_model(whole, input_tensors=inputs, clone_function=_same, call_function=call)


def _backbone(classifier: Any, size: Size) -> tuple[keras.Model, Size]:
    """Returns the backbone, as a plain graph where it is one, and the size of pictures that it takes."""
    backbone, fixed = classifier.backbone, fixed_size(classifier)
    try:
        return _plain(backbone, size) or (backbone, fixed or size)
    except ValueError:  # a layer of the graph depends on the size
        if fixed is None or fixed == size:
            raise
    return _plain(backbone, fixed) or (backbone, fixed)


def _plain(backbone: keras.Model, size: Size) -> tuple[keras.Model, Size] | None:
    """Returns a graph of Keras's own layers with the same variables; None if there is none.

    Raises:
        ValueError: a layer does not fit pictures of this size.
    """
    if any("call" in vars(each) for each in type(backbone).__mro__ if not _is_keras(each)):
        return None  # it does more than its graph
    if not all(_is_keras(type(layer)) or _only_calls(layer) for layer in backbone._flatten_layers(include_self=False)):
        return None
    graph = backbone
    for _ in range(DEEPEST):
        graph = keras.models.clone_model(
            graph, input_tensors=keras.Input((*size, 3)), clone_function=_same, call_function=_opened
        )
        if not holds_hub(graph):
            break
    if holds_hub(graph) or {id(each) for each in graph.weights} != {id(each) for each in backbone.weights}:
        return None
    return graph, size


def _same(layer: Any) -> Any:
    return layer


def _opened(operation: Any, *arguments: Any, **named: Any) -> Any:
    """Calls what a block calls, in place of the block."""
    return operation(*arguments, **named) if _is_keras(type(operation)) else operation.call(*arguments, **named)


def _is_keras(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in {"keras", "builtins"}


def _is_hubs(layer: Any) -> bool:
    return type(layer).__module__.partition(".")[0] == "keras_hub"


def _only_calls(layer: Any) -> bool:
    """Returns True if a layer does nothing but call other layers, in training as in prediction."""
    own = (*layer._trainable_variables, *layer._non_trainable_variables, *layer._seed_generators)
    return (
        not own
        and not isinstance(layer, keras.Model)
        and _is_hubs(layer)
        and "training" not in inspect.signature(layer.call).parameters
    )


def _converter(classifier: Any) -> Any | None:
    return getattr(classifier.preprocessor, "image_converter", None)


def _preprocessed(classifier: Any, images: Any, size: Size, taken: Size) -> Any:
    """Applies the classifier's preprocessing as layers.

    Args:
        classifier: of keras-hub.
        images: symbolic input, 0-255.
        size: of the pictures.
        taken: the size that the backbone takes. Pictures of another size are resized as the preprocessing does it.

    Raises:
        ModelError: the layers do not compute what the preprocessing does.
    """
    converter, preprocessor = _converter(classifier), classifier.preprocessor
    if converter is None and preprocessor is not None and getattr(preprocessor, "image_converter", 0) is not None:
        if not isinstance(preprocessor, keras.Layer) or not _is_keras(type(preprocessor)):
            raise ModelError(f"its preprocessor, of the class {type(preprocessor).__name__}, is none of keras-hub's")
        return preprocessor(images)
    steps: list[Any] = []
    if taken != size:
        resizing = converter.resizing.get_config() if converter is not None else {}
        known = {name: resizing[name] for name in _RESIZING if name in resizing}
        # As an operation: Keras's layer says `training=True` to every layer behind it where a call says nothing.
        steps.append(partial(keras.ops.image.resize, size=taken, **known))
    if converter is not None:
        steps += _scaling(converter.scale, converter.offset)
        _check(preprocessor, converter, steps, taken)
    for step in steps:
        images = step(images)
    return images


_RESIZING = ("interpolation", "crop_to_aspect_ratio", "pad_to_aspect_ratio", "fill_mode", "fill_value", "antialias")


def _scaling(scale: Any, offset: Any) -> list[Any]:
    """Makes the layers that scale and shift 0-255, of a kind that `read_convention` recognises.

    It computes in float32 under any precision, as keras-hub's does.

    Args:
        scale: one factor or one per colour; None for 1.
        offset: what is added then, likewise; None for 0.
    """
    factor, shift = np.asarray(1.0 if scale is None else scale), np.asarray(0.0 if offset is None else offset)
    steps: list[Any] = []
    if (
        np.abs(factor).max() > LARGEST_SCALE
    ):  # it shows no bytes: scaled down first, by a power of two, which rounds nothing
        steps.append(keras.layers.Rescaling(1 / POWER_OF_TWO, dtype="float32"))
        factor = factor * POWER_OF_TWO
    return [*steps, keras.layers.Rescaling(factor.tolist(), offset=shift.tolist(), dtype="float32")]


def _check(preprocessor: Any, converter: Any, steps: list[Any], taken: Size) -> None:
    """Compares the layers with the preprocessing on a few values of the size that the backbone takes.

    Raises:
        ModelError: they differ.
    """
    size = (taken[0] or 8, taken[1] or 8)
    values = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype("float32")
    before = converter.image_size
    converter.image_size = size
    expected = np.asarray(keras.ops.convert_to_numpy(preprocessor(values)))
    converter.image_size = before
    found = values
    for step in steps:
        found = step(found)
    if not np.allclose(np.asarray(keras.ops.convert_to_numpy(found)), expected, rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"its preprocessing ({type(preprocessor).__name__}, {type(converter).__name__}) does more than resize, scale and "
            "shift"
        )
