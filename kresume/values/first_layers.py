"""Tells from a model's first layers which pixels it expects.

pixels_of(of_architecture(state.architecture))                    # without building the model
pixels_of(chained([Layer("a", "Rescaling", 1 / 255)]))            # "0-255"

Only the first layer behind the images says something, on every branch: in a network with a path that does not rescale, another
path's factor is part of what it learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

LARGEST_SCALE, SMALLEST_SCALE = 0.1, 0.1 / 255
"""Factors by which a model that expects bytes multiplies them: a larger one is meant for values around 1, a smaller one for
pictures of 16 bits."""
SMALLEST_SHIFT, LARGEST_SHIFT = 10.0, 255.0
"""Numbers that only a model that expects bytes subtracts, such as the means of ImageNet."""
SMALLEST_ADAPTED = 4.0
"""Mean or deviation from which on a Normalization is for bytes, of dark pictures too: values of other kinds are below 3."""
SCALES, SHIFTS = frozenset({"Rescaling", "Multiply", "TrueDivide", "Divide"}), frozenset({"Add", "Subtract"})
"""Layers and operations with a number (`preprocess_input` in a functional model); those that merge two inputs have none."""
PASSED = frozenset(
    {
        "InputLayer", "Identity", "Resizing", "CenterCrop", "Permute", "Reshape", "Flatten",
        "Concatenate",  # repeats grey three times, for a network that expects colours
        "AutoContrast", "RandAugment",
    }
)  # fmt: skip
"""Layers that keep the values in prediction, beside those whose name begins with `Random`."""
OPERATIONS = ("keras.src.ops", "keras.ops")
"""Modules of operations, which resize, cut and cast values. Only those of `SCALES` and `SHIFTS` say something."""
KERAS_TENSOR = "__keras_tensor__"


@dataclass(frozen=True)
class Layer:
    """A layer or an operation of a model.

    Attributes:
        name: in the model.
        kind: its class.
        number: `scale`, or what it divides by, say; the mean of a Normalization; None without one.
        spread: the standard deviation by which a Normalization divides; None if unknown.
        sources: the names of those from which it computes; empty reads the images.
        inside: the layers of an inner model.
    """

    name: str
    kind: str
    number: Any = None
    sources: frozenset[str] = frozenset()
    inside: tuple[Layer, ...] = ()
    spread: Any = None


def chained(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Returns layers such that each computes from the one before."""
    found: list[Layer] = []
    for layer in layers:
        above = frozenset({found[-1].name}) if found else frozenset[str]()
        found.append(replace(layer, sources=above))
    return tuple(found)


def pixels_of(layers: Iterable[Layer]) -> str | None:
    """Returns `"0-255"` if the first layers rescale or normalise, else None.

    Args:
        layers: each behind its sources. Every path from the images must begin so.
    """
    first, _ = _first(layers)
    return "0-255" if first and all(map(_expects_bytes, first)) else None


def normalization_of(layers: Iterable[Layer]) -> tuple[tuple[float, ...], float] | None:
    """Returns the means of the channels and the deviation over all that a Normalization is for.

    Args:
        layers: each behind its sources.

    Returns:
        One mean where it has one for all channels; None if another layer comes first, or several do, if its numbers are
        unknown, or if they are 0 and 1, as before it is adapted.
    """
    import numpy as np

    first, _ = _first(layers)
    if len(first) != 1 or first[0].kind != "Normalization" or first[0].number is None or first[0].spread is None:
        return None
    mean, spread = (np.asarray(value, np.float64) for value in (first[0].number, first[0].spread))
    if not mean.any() and np.all(spread == 1.0):
        return None
    means = tuple(mean.reshape(-1, mean.shape[-1]).mean(axis=0).tolist()) if mean.ndim else (float(mean),)
    return means, float(np.sqrt(np.mean(spread**2) + mean.var()))


def _first(layers: Iterable[Layer]) -> tuple[list[Layer], bool]:
    """Returns the first layer of each path that says something, and True if the images reach the last one."""
    reached, found, through = set[str](), list[Layer](), False
    for layer in layers:
        through = not layer.sources or bool(reached & layer.sources)
        if not through:
            continue
        if layer.inside:
            inner, through = _first(layer.inside)
            found += inner
        elif layer.kind not in PASSED and not layer.kind.startswith("Random"):
            found.append(layer)
            through = False
        if through:
            reached.add(layer.name)
    return found, through


def _expects_bytes(layer: Layer) -> bool:
    """Returns True if only values of 0 to 255 make sense before a layer.

    A Normalization may have been adapted to values of any scale: its mean and standard deviation show them.
    """
    if layer.kind in SHIFTS:
        return SMALLEST_SHIFT <= _largest(layer.number, -1.0 if layer.kind == "Add" else 1.0) <= LARGEST_SHIFT
    size = max(_largest(layer.number, 1.0), _largest(layer.number, -1.0))
    if layer.kind == "Normalization":
        spread = _largest(layer.spread, 1.0)
        return size <= LARGEST_SHIFT and SMALLEST_ADAPTED <= max(size, spread) <= 1 / SMALLEST_SCALE
    if layer.kind in {"TrueDivide", "Divide"}:
        return 1 / LARGEST_SCALE <= size <= 1 / SMALLEST_SCALE
    return layer.kind in SCALES and SMALLEST_SCALE <= size <= LARGEST_SCALE


def _largest(number: Any, sign: float) -> float:
    """Returns the largest of a number or an array times a sign, at least 0; 0 where there is none."""
    import numpy as np

    try:
        return float(np.max(np.asarray(number, np.float64) * sign, initial=0.0))
    except (TypeError, ValueError, OverflowError):  # of a damaged file
        return 0.0


def root_of(variance: Any) -> Any:
    """Returns the standard deviation; None without a variance, or for one that is no number."""
    import numpy as np

    try:
        return np.sqrt(np.maximum(np.asarray(variance, np.float64), 0.0))
    except (TypeError, ValueError, OverflowError):  # of a damaged file
        return None


Adapted = Callable[[str], tuple[Any, Any] | None]
"""Returns mean and variance of the Normalization of a name, which an adapted one has among the weights; None if unknown."""


def of_architecture(architecture: Any, adapted: Adapted = lambda name: None) -> tuple[Layer, ...]:
    """Returns the layers of a serialized model, down to a part that does not have the expected form."""
    config = architecture.get("config") if isinstance(architecture, Mapping) else None
    layers = config.get("layers") if isinstance(config, Mapping) else None
    found = tuple(_serialized(layers if isinstance(layers, list) else (), adapted))
    graph = isinstance(config, Mapping) and "input_layers" in config
    return found if graph else chained(found)


def _serialized(layers: Iterable[Any], adapted: Adapted) -> Iterator[Layer]:
    for index, layer in enumerate(layers):
        inside = layer.get("config") if isinstance(layer, Mapping) else None
        if not isinstance(inside, Mapping):
            return
        kind = str(layer.get("class_name")).rpartition(">")[2]
        if kind not in SCALES | SHIFTS and str(layer.get("module")).startswith(OPERATIONS):
            kind = "Identity"
        name = str(layer.get("name") or inside.get("name") or index)
        sources = frozenset(_sources(layer.get("inbound_nodes")))
        number, spread = inside.get("scale", _constant(layer)), None
        if kind == "Normalization":
            number, variance = (inside.get("mean"), inside.get("variance"))
            number, variance = (number, variance) if number is not None else adapted(name) or (None, None)
            if inside.get("invert"):  # it takes what another one gave
                number = variance = None
            spread = root_of(variance)
        yield Layer(name, kind, number, sources, of_architecture(layer, adapted), spread)


def _sources(value: Any) -> Iterator[str]:
    """Yields the names of the layers whose outputs a serialized call takes: of Keras 3, or of Keras 2."""
    if isinstance(value, Mapping):
        history = value.get("keras_history")
        if isinstance(history, list | tuple) and history:
            yield str(history[0])
        else:
            for item in value.values():
                yield from _sources(item)
    elif isinstance(value, list | tuple):
        if len(value) >= 3 and isinstance(value[0], str) and all(isinstance(number, int) for number in value[1:3]):
            yield value[0]
        else:
            for item in value:
                yield from _sources(item)


def constant_of(arguments: Iterable[Any], is_tensor: Callable[[Any], bool]) -> Any:
    """Returns the number that an operation computes with; None if it has none, or two tensors.

    Args:
        arguments: of the operation's call.
        is_tensor: tells what another layer computes.
    """
    given = list(arguments)
    return given[1] if len(given) == 2 and is_tensor(given[0]) and not is_tensor(given[1]) else None


def _constant(layer: Mapping[str, Any]) -> Any:
    """Returns the number in the call of a serialized operation; None without one."""
    nodes = layer.get("inbound_nodes")
    call = nodes[0] if isinstance(nodes, list | tuple) and nodes else None
    arguments = call.get("args") if isinstance(call, Mapping) else None
    found = constant_of(arguments if isinstance(arguments, list | tuple) else (), _is_serialized_tensor)
    inside = found.get("config") if isinstance(found, Mapping) else None
    return inside.get("value") if isinstance(inside, Mapping) else found


def _is_serialized_tensor(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("class_name") == KERAS_TENSOR
