"""Finds the layer that gives a classifier's outputs, and builds the same model with more of them.

    head = find_head(model)                                       # the last Dense or 1x1 convolution
    wider = build_wider(model, head, 10, softmax=False, again=None)

The wider model has initial weights; `grow.py` fills them. It is built from the configuration of the first one, so it is
saved and built again like any other model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.errors import KresumeError, ModelError, UsageError
from kresume.models import architecture, structure
from kresume.models.build import from_config
from kresume.models.outputs import EXACT, THROUGH, answers, backwards, output_count
from kresume.models.shapes import build_once, input_shape_of
from kresume.spelling import option

MOST_LOOKED_AT = 6
AVERAGING = frozenset({"GlobalAveragePooling2D", "AveragePooling2D", "Mean"})
"""Layers and operations behind a 1x1 convolution that keep outputs that add up to 1."""
LOUD = (1e4, 1e8, 1e12)
"""Factors of a head's weights under which its outputs show how far they reach; a deep network without training gives a head
tiny features."""
FAR = 4.0
"""A class whose logit is larger by twice this can have 99.9 % of the probability."""
BENDING = frozenset({keras.src.ops.nn.Sigmoid, keras.src.ops.nn.HardSigmoid, keras.src.ops.numpy.Tanh})
"""Operations that are activations."""


@dataclass(frozen=True)
class HeadLayer:
    """The layer whose last axis is the model's outputs.

    Attributes:
        layer: a Dense or a 1x1 convolution.
        after: the operations between it and the output, the last one first; empty if the model is no graph of layers.
        in_graph: True if the layers are a graph, which has its size in the configuration of each layer.
    """

    layer: Any
    after: tuple[Any, ...]
    in_graph: bool

    @property
    def kernel(self) -> Any:
        """Returns its weights, `(..., features, outputs)`."""
        return self.layer.kernel

    @property
    def bias(self) -> Any | None:
        """Returns its bias, `(outputs,)`; None if it has none."""
        return self.layer.bias if self.layer.use_bias else None


def find_head(model: keras.Model, name: str | None = None) -> HeadLayer:
    """Finds the last layer with weights.

    Args:
        model: a built classifier with one output.
        name: the layer's own name (`--head`); None looks for it.

    Raises:
        UsageError: no layer has this name, or it cannot be the head.
        ModelError: the last layer with weights is neither a Dense nor a 1x1 convolution, or the layers are no graph and
            several could be the head.
    """
    graph = list(backwards(model))
    if name is not None:
        named = [layer for layer in model._flatten_layers(include_self=False) if layer.name == name]
        if not named or not _can_be_head(named[0]):
            what = f"is a {type(named[0]).__name__}" if named else "is no layer of the model"
            raise UsageError(
                f"{option('head', name)} {what}: name a Dense or a 1x1 convolution, one of "
                f"{_listed([layer.name for layer in _candidates(model)]) or 'which the model has none'}"
            )
        places = [place for place, operation in enumerate(graph) if operation is named[0]]
        # A layer inside a model whose own code calls it is no part of the graph: it is made wider by that code.
        return HeadLayer(named[0], tuple(graph[: places[0]]) if places else (), bool(places))
    for place, operation in enumerate(graph):
        if not getattr(operation, "weights", ()):
            continue
        if not _can_be_head(operation):
            break
        return HeadLayer(operation, tuple(graph[:place]), in_graph=True)
    if graph:
        looked = [f"{operation.name} ({type(operation).__name__})" for operation in graph[: _first_weights(graph) + 1]]
        raise ModelError(
            f"the head of the model was not found: from the output backwards it has {_listed(looked)}, and a head is a Dense "
            f"or a 1x1 convolution. Name it with {option('head', 'NAME')}, one of "
            f"{_listed([layer.name for layer in _candidates(model)]) or '(it has no such layer)'}"
        )
    wide = [layer for layer in _candidates(model) if _width(layer) == output_count(model)]
    if len(wide) == 1:
        return HeadLayer(wide[0], (), in_graph=False)
    raise ModelError(
        f"the head of the model {model.name}, whose own code calls its layers, was not found: "
        f"{_listed([layer.name for layer in wide]) if wide else 'no Dense or 1x1 convolution'} "
        f"{'have' if wide else 'has'} {output_count(model)} outputs. Name it with {option('head', 'NAME')}"
    )


def _first_weights(graph: Sequence[Any]) -> int:
    return next((place for place, each in enumerate(graph) if getattr(each, "weights", ())), len(graph))


def _can_be_head(layer: Any) -> bool:
    """Returns True for a Dense and a 1x1 convolution without further weights."""
    if not layer.built or len(layer.weights) != 1 + bool(getattr(layer, "use_bias", False)):
        return False
    if isinstance(layer, keras.layers.Dense):
        return True
    return (
        isinstance(layer, keras.layers.Conv2D)
        and set(layer.kernel_size) == {1}
        and set(layer.strides) == {1}
        and layer.groups == 1
    )


def _candidates(model: keras.Model) -> list[Any]:
    return [layer for layer in model._flatten_layers(include_self=False) if _can_be_head(layer)]


def _width(layer: Any) -> int:
    return int(layer.kernel.shape[-1])


def _listed(names: Sequence[str]) -> str:
    """Lists the last names, and how many come before."""
    more = len(names) - MOST_LOOKED_AT
    return (f"{more:,} others, " if more > 0 else "") + ", ".join(names[-MOST_LOOKED_AT:])


def build_wider(
    model: keras.Model,
    head: HeadLayer,
    outputs: int,
    *,
    softmax: bool,
    again: Callable[[int], keras.Model] | None,
    replaces: bool = False,
) -> tuple[keras.Model, HeadLayer]:
    """Builds the same architecture with more outputs and initial weights.

    Args:
        model: the model.
        head: its head.
        outputs: the number of outputs of the new one.
        softmax: True if the model has one output, a probability, which becomes a softmax.
        again: builds the model of the user's function with a number of classes; None if there is no function.
        replaces: True if the head begins anew.

    Returns:
        `(wider model, its head)`.

    Raises:
        ModelError: it cannot be built; the message says which part has a fixed size, and what to give.
    """
    if head.in_graph:
        with _edited(head, outputs, softmax, replaces):
            config = keras.saving.serialize_keras_object(model)
        wider = _rebuilt(model, config)
        _check(model, wider, head, outputs)
    else:
        wider = _of_code(model, head, outputs, again)
    place = structure.address_of(model)[id(head.kernel)].position
    addresses = structure.address_of(wider)
    found = next(layer for layer in _candidates(wider) if addresses[id(layer.kernel)].position == place)
    if _width(head.layer) == 1 and any(_computes(each) for each in head.after):
        _check_reach(wider, found)
    # An activation may be a layer, too: the wider model lacks the one that its softmax replaces.
    weighted = [[layer for layer in each._flatten_layers() if layer.weights] for each in (model, wider)]
    for one, other in zip(*weighted, strict=True):
        if other.trainable != one.trainable:
            other.trainable = one.trainable
    architecture.freeze_weights(wider, architecture.frozen_weights(model))
    return wider, HeadLayer(found, (), head.in_graph)


@contextmanager
def _edited(head: HeadLayer, outputs: int, softmax: bool, replaces: bool) -> Iterator[None]:
    """Gives the head and what follows it the new size while the configuration is read."""
    layer, before = head.layer, _width(head.layer)
    size = "units" if isinstance(layer, keras.layers.Dense) else "filters"
    changes: list[tuple[Any, str, Any]] = [(layer, size, outputs)]
    for operation in head.after:
        shape = getattr(operation, "target_shape", None)
        if type(operation) is keras.layers.Reshape and shape is not None and before in shape:
            changes.append((operation, "target_shape", tuple(outputs if each == before else each for each in shape)))
    if before == 1:
        changes += _in_place_of_one((*head.after, layer), softmax=softmax, replaces=replaces)
    kept = [(each, name, getattr(each, name)) for each, name, _ in changes]
    try:
        for each, name, value in changes:
            setattr(each, name, value)
        yield
    finally:
        for each, name, value in kept:
            setattr(each, name, value)


def _bent(operations: Sequence[Any]) -> list[Any]:
    """Returns the operations that an activation other than the identity makes part of the answer."""
    return [
        each
        for each in operations
        if getattr(each, "activation", None) not in {None, keras.activations.linear} or type(each) in BENDING
    ]


def _in_place_of_one(operations: Sequence[Any], *, softmax: bool, replaces: bool) -> list[tuple[Any, str, Any]]:
    """Returns the `(object, attribute, value)` that write what bends a single output as a softmax.

    Args:
        operations: those from the output back to the head, which is the last.
        softmax: True if the output is a probability, or is compared with 0 and 1.
        replaces: True for a new head, whose answers need not be those of the old one.

    Raises:
        ModelError: the outputs of a head that grows would not answer as the single one did.
    """
    bent = _bent(operations)
    sigmoid = {keras.activations.sigmoid, keras.src.ops.nn.Sigmoid}
    kept = [each for each in bent if not {getattr(each, "activation", None), type(each)} & sigmoid]
    if not replaces and (kept or (softmax and not bent)):
        found = f"is given by {_named(kept[0])}" if kept else "is compared by its loss with 0 and 1 as it is"
        raise ModelError(not_grown(found))
    if not (bent or softmax):
        return []
    last = next((each for each in operations[:-1] if not _passes(each)), operations[-1])
    straight = [(each, "activation", keras.activations.linear) for each in bent if hasattr(each, "activation")]
    if hasattr(last, "activation"):
        return [*(each for each in straight if each[0] is not last), (last, "activation", keras.activations.softmax)]
    if last in bent:  # `keras.ops.sigmoid(tensor)`: an operation has no settings, its class is all that is written
        return [*straight, (last, "__class__", keras.src.ops.nn.Softmax)]
    return []  # what follows is arithmetic: the outputs stay what it makes of them


def _computes(operation: Any) -> bool:
    """Returns True for an operation behind a head that is no activation and changes values."""
    activates = hasattr(operation, "activation") or type(operation) in BENDING or type(operation).__name__ == "Softmax"
    return not (activates or _passes(operation))


def _passes(operation: Any) -> bool:
    """Returns True for an operation that keeps what outputs are: it changes no value, or averages them."""
    linear = isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear
    return linear or type(operation).__name__ in THROUGH | AVERAGING


def _named(operation: Any) -> str:
    """Returns the name of the activation that an operation is or has."""
    activation = getattr(operation, "activation", None)
    return str(getattr(activation, "__name__", type(activation or operation).__name__)).lower()


def not_grown(found: str) -> str:
    """Returns the message about a single output that does not become several with the same answers."""
    return (
        f"the model's one output {found}: only a sigmoid or a logit becomes outputs for more classes with the same answers. "
        f"Begin a new head with {option('new-head', True)} and images of all classes as {option('data')}, or build the "
        f"model with an output per class and give it as {option('model', 'FILE.py:FUNCTION')}"
    )


def _check_reach(wider: keras.Model, head: Any) -> None:
    """Raises if the outputs in place of a single one cannot tell one class from the others.

    The weights of two outputs are large and opposite for a moment: probabilities then come near 1, and logits reach far.
    Outputs that an operation behind the head holds between -1 and 1 do not, and no training would change that.

    Raises:
        ModelError: they cannot; the message says between which values they stay.
    """
    values = np.zeros((1, 1))
    for factor in LOUD:
        measured = _loud_answers(wider, head, factor)
        if measured is None or _tell_apart(measured):
            return
        values = measured
    if np.ptp(values) < EXACT:
        return  # generated pictures show nothing
    raise ModelError(
        f"the operations behind the layer {head.name} keep {values.shape[1]} outputs between {values.min():.3g} and "
        f"{values.max():.3g}, as neither probabilities nor logits: build the model with an output per class and give it as "
        f"{option('model', 'FILE.py:FUNCTION')}"
    )


def _loud_answers(wider: keras.Model, head: Any, factor: float) -> np.ndarray | None:
    """Predicts generated pictures with large and opposite weights of two outputs; None if it cannot."""
    quiet = np.array(live_state.host_array(head.kernel.value))
    loud = np.zeros_like(quiet)
    loud[..., 0], loud[..., 1] = factor * quiet[..., 0], -factor * quiet[..., 0]
    head.kernel.assign(loud)
    values = answers(wider)
    head.kernel.assign(quiet)
    return values if values is not None and np.isfinite(values).all() else None


def _tell_apart(values: np.ndarray) -> bool:
    """Returns True for probabilities of which one comes near 1, and for logits that reach far."""
    exclusive = values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() < EXACT
    return bool(values.max() > 0.9 if exclusive else (values.min() < -FAR and values.max() > FAR))


def _rebuilt(model: keras.Model, config: Any) -> keras.Model:
    """Builds a model from a configuration that Keras made of a live one, with the same classes."""
    classes = {type(layer) for layer in model._flatten_layers()}
    own = {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}
    return from_config(config, own, None, trust=True, holder=f"{model.name} with more outputs")


def _of_code(
    model: keras.Model, head: HeadLayer, outputs: int, again: Callable[[int], keras.Model] | None
) -> keras.Model:
    """Builds a model whose own code makes its layers, by an argument of its class or by a function."""
    before = _width(head.layer)
    config = keras.saving.serialize_keras_object(model)
    inside = config.get("config") or {}
    names = [name for name, value in inside.items() if type(value) is int and value == before]
    for name in names:
        try:
            wider = _rebuilt(model, {**config, "config": {**inside, name: outputs}})
            shape = input_shape_of(model)
            build_once(wider, (int(shape[1]), int(shape[2])), model.name)
            _check(model, wider, head, outputs)
        except KresumeError:
            continue  # this argument is another size
        return wider
    if again is not None:
        wider = again(outputs)
        _check(model, wider, head, outputs)
        return wider
    raise ModelError(
        f"{type(model).__name__} makes its layer {head.layer.name} in its own code, and none of its arguments "
        f"({', '.join(inside) or 'it has none'}) is the number of outputs, {before}: let its get_config return that number, or "
        f"give {option('model', 'FILE.py:FUNCTION')} with a function that accepts num_classes"
    )


def _check(model: keras.Model, wider: keras.Model, head: HeadLayer, outputs: int) -> None:
    """Raises if a variable of the wider model differs in more than the outputs of the head.

    Raises:
        ModelError: it differs; the message names the first variable.
    """
    own = {id(each) for each in (head.kernel, head.bias) if each is not None}
    one, other = (
        {addresses[id(variable)].position: variable for variable in each.variables}
        for each, addresses in ((model, structure.address_of(model)), (wider, structure.address_of(wider)))
    )
    differing = [place for place in {**one, **other} if place not in one or place not in other]
    differing += [
        place
        for place, variable in one.items()
        if place in other
        and tuple(other[place].shape)
        != ((*variable.shape[:-1], outputs) if id(variable) in own else tuple(variable.shape))
    ]
    if differing or output_count(wider) != outputs:
        said = (
            f"its variable {differing[0]} has another shape" if differing else f"it has {output_count(wider)} outputs"
        )
        raise ModelError(
            f"built with {outputs} outputs in the layer {head.layer.name}, the model is not the same otherwise: {said}. Name "
            f"the layer that gives the outputs with {option('head', 'NAME')}"
        )
