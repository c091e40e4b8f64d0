"""Tells from a model's first layers which pixels it expects.

pixels_of([("InputLayer", None), ("Rescaling", 1 / 255)])     # "0-255"
pixels_of(of_architecture(state.architecture))                # without building the model
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

LARGEST_SCALE = 0.1
"""Largest factor by which a model that expects bytes multiplies them; a larger one is meant for values around 1."""
SMALLEST_SHIFT = 10.0
"""Smallest number that only a model that expects bytes adds or subtracts, such as the means of ImageNet."""
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


def pixels_of(layers: Iterable[tuple[str, Any]]) -> str | None:
    """Returns `"0-255"` if the first layers rescale or normalise, else None.

    Args:
        layers: the class of each layer or operation and its number (`scale`, or what it divides by, say), None without one,
            in the order of the model.
    """
    for name, number in layers:
        if name == "Normalization":
            return "0-255"
        if name in SCALES | SHIFTS:
            size = _size(number)
            if name in SHIFTS:
                return "0-255" if size >= SMALLEST_SHIFT else None
            if name in {"TrueDivide", "Divide"}:
                return "0-255" if size >= 1 / LARGEST_SCALE else None
            return "0-255" if 0 < size <= LARGEST_SCALE else None
        if name not in PASSED and not name.startswith("Random"):
            return None
    return None


def _size(number: Any) -> float:
    """Returns the largest magnitude of a number or of an array; 0 where there is none."""
    import numpy as np

    try:
        return float(np.max(np.abs(np.asarray(number, np.float64)), initial=0.0))
    except (TypeError, ValueError, OverflowError):  # of a damaged file
        return 0.0


def of_architecture(architecture: Any) -> Iterator[tuple[str, Any]]:
    """Yields the class and the number of each layer of a serialized model, inner models unfolded.

    Yields nothing behind a part that does not have the expected form.
    """
    config = architecture.get("config") if isinstance(architecture, Mapping) else None
    layers = config.get("layers") if isinstance(config, Mapping) else None
    for layer in layers if isinstance(layers, list) else ():
        inside = layer.get("config") if isinstance(layer, Mapping) else None
        if not isinstance(inside, Mapping):
            return
        if isinstance(inside.get("layers"), list):
            yield from of_architecture(layer)
        else:
            name = str(layer.get("class_name")).rpartition(">")[2]
            if name in SCALES | SHIFTS or not str(layer.get("module")).startswith(OPERATIONS):
                yield name, inside.get("scale", _constant(layer))


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
