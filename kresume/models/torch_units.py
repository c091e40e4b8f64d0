"""Splits a Keras model and a PyTorch state dict into units to pair.

    units = keras_units(model)              # Unit("conv2d_1", {"kernel": ..., "bias": ...}, ...), in the model's order
    modules = torch_modules(state.arrays)   # Module("layer1.0.conv1", {"weight": ...}), in the file's order
    pair(modules[0], units[0], arrays)      # {"kernel": Conversion("layer1.0.conv1.weight", "conv")}, or None

A unit holds the arrays of one PyTorch module. Attention's query, key and value are one unit if the file stacks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kresume.models.torch_layout import Conversion, Kind, convert

MODULE_ROLES = ("weight", "bias", "running_mean", "running_var", "in_proj_weight", "in_proj_bias")
COUNTER = "num_batches_tracked"
PASSED = (
    "Dropout", "Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "BatchNormalization", "LayerNormalization", "Identity",
    "GaussianNoise", "GaussianDropout", "AlphaDropout", "Rescaling", "ActivityRegularization",
)  # fmt: skip
MERGES = ("Add", "Average")

Role = str
Wants = Mapping[Role, tuple[str, Kind, int | None]]
"""Role of a Keras variable -> (role in PyTorch, kind of conversion, part)."""

_DENSE: Wants = {"kernel": ("weight", "dense", None), "bias": ("bias", "vector", None)}
_CONV: Wants = {"kernel": ("weight", "conv", None), "bias": ("bias", "vector", None)}
_DEPTHWISE: Wants = {"kernel": ("weight", "depthwise", None), "bias": ("bias", "vector", None)}
_NORM: Wants = {"gamma": ("weight", "vector", None), "beta": ("bias", "vector", None)}
_BATCH_NORM: Wants = {
    **_NORM, "moving_mean": ("running_mean", "vector", None), "moving_variance": ("running_var", "vector", None),
}  # fmt: skip
_SLOPES: Wants = {"alpha": ("weight", "same", None)}
_TABLE: Wants = {"embeddings": ("weight", "same", None)}
_VALUE: Wants = {"value": ("value", "same", None)}
_STACKED: Wants = {
    f"{name}/{role}": (f"in_proj_{source}", kind, part)
    for part, name in enumerate(("query", "key", "value"))
    for role, (source, kind, _) in _DENSE.items()
}


@dataclass(frozen=True)
class Module:
    """A PyTorch module: its name, and the names of its arrays by role."""

    name: str
    arrays: Mapping[Role, str]


@dataclass(frozen=True)
class Unit:
    """The variables of a Keras layer that one PyTorch module could fill.

    Attributes:
        label: the layer's name, numbered within its model; nested layers follow a slash.
        variables: the variables by role.
        wants: the source of each role in PyTorch.
        flatten: `(height, width, channels)` before the Flatten that made its inputs; None if there is none.
        shortcut: True if it is on the shorter path into an Add.
        epsilon: epsilon of a normalization.
    """

    label: str
    variables: Mapping[Role, Any]
    wants: Wants
    flatten: tuple[int, int, int] | None = None
    shortcut: bool = False
    epsilon: float | None = None


def torch_modules(arrays: Mapping[str, np.ndarray]) -> list[Module]:
    """Groups a state dict by module, in order; parameters of unusual names stay single."""
    grouped: dict[str, dict[str, str]] = {}
    for name in arrays:
        if name.startswith("optimizer/"):
            continue
        prefix, _, role = name.rpartition(".")
        if role == COUNTER:
            continue
        if role in MODULE_ROLES:
            grouped.setdefault(prefix, {})[role] = name
        else:
            grouped[name] = {"value": name}
    return [Module(name, roles) for name, roles in grouped.items()]


def pair(module: Module, unit: Unit, arrays: Mapping[str, np.ndarray]) -> dict[Role, Conversion] | None:
    """Returns how a module fills a unit; None if it does not fit.

    It fits if every variable gets an array and every array is used.
    """
    wants = unit.wants
    if "query/kernel" in wants and "in_proj_weight" not in module.arrays:  # timm has one Linear for all three
        wants = {role: (source.removeprefix("in_proj_"), kind, part) for role, (source, kind, part) in wants.items()}
    conversions: dict[Role, Conversion] = {}
    for role, variable in unit.variables.items():
        source, kind, part = wants[role]
        if source not in module.arrays:
            return None
        name = module.arrays[source]
        conversion = Conversion(name, kind, part, None if role == "bias" else unit.flatten)
        if convert(arrays[name], conversion, tuple(variable.shape)) is None:
            return None
        conversions[role] = conversion
    return (
        conversions
        if {conversion.source for conversion in conversions.values()} == set(module.arrays.values())
        else None
    )


def keras_units(model: keras.Model, *, stacked: bool) -> list[Unit]:
    """Returns the units of a model in its order, each layer once.

    Args:
        model: built.
        stacked: True if attention's query, key and value are one unit.
    """
    shortcuts = {id(layer) for graph in _graphs(model) for layer in _shortcuts(graph)}
    loose, entrances = _loose_flatten(model), _entrances(model)
    numbers: dict[tuple[str, ...], dict[int, int]] = {}
    units: list[Unit] = []
    for path, layer in _leaves(model, (), set()):
        label = _label(path, numbers)
        for suffix, variables, wants in _split(layer, stacked):
            flatten = _flattened(layer, entrances) or loose.get(id(layer))
            epsilon = getattr(layer, "epsilon", None)
            units.append(Unit(label + suffix, variables, wants, flatten, id(layer) in shortcuts, epsilon))
    return units


def _leaves(parent: Any, path: tuple[Any, ...], seen: set[int]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields each layer that holds variables itself, after the path of layers to it."""
    for layer in parent.layers if isinstance(parent, keras.Model) else parent._layers:
        if id(layer) in seen or not layer.variables:
            continue
        seen.add(id(layer))
        if isinstance(layer, keras.layers.MultiHeadAttention) or not layer._layers:
            yield (*path, layer), layer
            continue
        if _own_variables(layer):
            yield (*path, layer), layer
        yield from _leaves(layer, (*path, layer), seen)


def _own_variables(layer: Any) -> list[Any]:
    variables = (*layer._trainable_variables, *layer._non_trainable_variables)
    return [variable for variable in variables if "seed_generator" not in variable.path]


def _label(layers: tuple[Any, ...], numbers: dict[tuple[str, ...], dict[int, int]]) -> str:
    """Returns a layer's label, with auto-named layers numbered within their model.

    The number in `conv2d_7` counts the layers of the process.
    """
    parts: list[str] = []
    for layer in layers:
        base = re.sub(r"_\d+$", "", layer.name)
        if base.replace("_", "") == type(layer).__name__.lower():
            known = numbers.setdefault((*parts, base), {})
            number = known.setdefault(id(layer), len(known))
            parts.append(f"{base}_{number}" if number else base)
        else:
            parts.append(layer.name)
    return "/".join(parts)


def _split(layer: Any, stacked: bool) -> Iterator[tuple[str, dict[Role, Any], Wants]]:
    """Yields the units of one layer: `(suffix of the label, variables, wants)`."""
    layers = keras.layers
    if isinstance(layer, layers.MultiHeadAttention):
        sides = {"query": layer._query_dense, "key": layer._key_dense, "value": layer._value_dense}
        if stacked:
            yield (
                "/in",
                {f"{name}/{role}": v for name, side in sides.items() for role, v in _dense_variables(side).items()},
                _STACKED,
            )
        else:
            for name, side in sides.items():
                yield f"/{name}", _dense_variables(side), _DENSE
        yield "/output", _dense_variables(layer._output_dense), _DENSE
        return
    if isinstance(layer, layers.SeparableConv2D):
        yield "/depthwise", {"kernel": layer.depthwise_kernel}, _DEPTHWISE
        yield "/pointwise", _present(kernel=layer.pointwise_kernel, bias=layer.bias), _CONV
    elif isinstance(layer, layers.DepthwiseConv2D):
        yield "", _present(kernel=layer.kernel, bias=layer.bias), _DEPTHWISE
    elif isinstance(layer, _convolutions()):
        yield "", _present(kernel=layer.kernel, bias=layer.bias), _CONV
    elif isinstance(layer, (layers.Dense, layers.EinsumDense)):
        yield "", _dense_variables(layer), _DENSE
    elif isinstance(layer, layers.BatchNormalization):
        yield (
            "",
            _present(
                gamma=layer.gamma, beta=layer.beta, moving_mean=layer.moving_mean, moving_variance=layer.moving_variance
            ),
            _BATCH_NORM,
        )
    elif isinstance(layer, (layers.LayerNormalization, layers.GroupNormalization)):
        yield "", _present(gamma=layer.gamma, beta=layer.beta), _NORM
    elif isinstance(layer, layers.PReLU):
        yield "", {"alpha": layer.alpha}, _SLOPES
    elif isinstance(layer, layers.Embedding):
        yield "", {"embeddings": layer.embeddings}, _TABLE
    else:
        for variable in _own_variables(layer):
            yield f"/{variable.name}", {"value": variable}, _VALUE


def _convolutions() -> Any:
    """Returns Keras's convolution classes, transposed ones included.

    Both libraries swap inputs and outputs in the kernels of transposed convolutions, so one conversion serves both.
    """
    layers = keras.layers
    plain = layers.Conv1D, layers.Conv2D, layers.Conv3D
    return (*plain, layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def _dense_variables(layer: Any) -> dict[Role, Any]:
    return _present(kernel=layer.kernel, bias=layer.bias)


def _present(**variables: Any) -> dict[Role, Any]:
    return {role: variable for role, variable in variables.items() if variable is not None}


def _graphs(model: Any) -> Iterator[Any]:
    """Yields every functional graph in a model, nested ones and Sequential's included."""
    graph = getattr(model, "_functional", None) or model
    if hasattr(graph, "_operations") and hasattr(graph, "_nodes"):
        yield graph
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _graphs(layer)


def _origin(tensor: Any) -> Any:
    return tensor._keras_history.operation if hasattr(tensor, "_keras_history") else None


def _inputs(operation: Any) -> Sequence[Any]:
    return operation._inbound_nodes[0].input_tensors if operation._inbound_nodes else ()


def _shortcuts(graph: Any) -> list[Any]:
    """Returns layers on the shorter path into an Add: PyTorch's downsample or shortcut."""
    uses: dict[int, int] = {}
    for operation in graph._operations:
        for tensor in _inputs(operation):
            uses[id(tensor)] = uses.get(id(tensor), 0) + 1
    found: list[Any] = []
    for operation in graph._operations:
        if type(operation).__name__ not in MERGES or len(_inputs(operation)) < 2:
            continue
        ways = []
        for tensor in _inputs(operation):
            way: list[Any] = []
            end = tensor
            while uses.get(id(end), 0) == 1 and (origin := _origin(end)) is not None and len(_inputs(origin)) == 1:
                way.append(origin)
                end = _inputs(origin)[0]
            ways.append([layer for layer in way if getattr(layer, "variables", ())])
        shortest = min(ways, key=len)
        if shortest and all(len(way) > len(shortest) for way in ways if way is not shortest):
            found += shortest
    return found


def _entrances(model: Any) -> dict[int, Any]:
    """Maps each nested model's input (by `id`) to the outer tensor passed to it."""
    found: dict[int, Any] = {}
    for graph in _graphs(model):
        for operation in graph._operations:
            inside = getattr(operation, "_functional", None) or operation
            if isinstance(operation, keras.Model) and getattr(inside, "inputs", None):
                found |= {id(inner): outer for inner, outer in zip(inside.inputs, _inputs(operation), strict=False)}
    return found


def _flattened(layer: Any, entrances: Mapping[int, Any]) -> tuple[int, int, int] | None:
    """Returns `(height, width, channels)` before the Flatten that made a layer's inputs.

    Passes through layers that keep every value at its index, and enters nested models. None if there is no Flatten.
    """
    inputs = _inputs(layer)
    while len(inputs) == 1:
        tensor = inputs[0]
        while id(tensor) in entrances:
            tensor = entrances[id(tensor)]
        operation = _origin(tensor)
        while isinstance(operation, keras.Model):
            graph = getattr(operation, "_functional", None) or operation
            tensor = graph.outputs[0] if getattr(graph, "outputs", None) else None
            operation = _origin(tensor)
        if operation is None:
            return None
        inputs = _inputs(operation)
        if type(operation).__name__ in {"Flatten", "Reshape"} and len(inputs) == 1:
            return _reordered(operation, inputs[0]) if len(tensor.shape) == 2 else None
        if type(operation).__name__ not in PASSED:
            return None
    return None


def _reordered(operation: Any, tensor: Any) -> tuple[int, int, int] | None:
    """Returns `(height, width, channels)` of what a Flatten lists in another order than PyTorch's.

    None if the channels come first, as in PyTorch: after a Permute that was added for its weights, for example. Keras's
    Flatten moves the channels of a channels-first model behind.
    """
    shape = tuple(tensor.shape)
    if getattr(operation, "data_format", None) == "channels_first" and type(operation).__name__ == "Flatten":
        return _spatial((shape[0], *shape[2:], shape[1])) if len(shape) == 4 else None
    origin = _origin(tensor)
    while origin is not None and type(origin).__name__ in PASSED and len(_inputs(origin)) == 1:
        origin = _origin(_inputs(origin)[0])
    return None if _puts_channels_first(origin) else _spatial(shape)


def _puts_channels_first(operation: Any) -> bool:
    kind = type(operation).__name__
    if kind == "Permute":
        return tuple(operation.dims) == (3, 1, 2)
    if kind == "Transpose":
        return tuple(operation.axes or ()) == (0, 3, 1, 2)
    return getattr(operation, "data_format", None) == "channels_first"


def _spatial(shape: tuple[int | None, ...]) -> tuple[int, int, int] | None:
    if len(shape) != 4 or None in shape[1:]:
        return None
    height, width, channels = (int(side or 0) for side in shape[1:])
    return (height, width, channels) if height * width > 1 and channels > 1 else None


def _loose_flatten(model: Any) -> dict[int, tuple[int, int, int]]:
    """Finds the first layer after each Flatten of a subclassed model.

    Such a model has no graph, so the order of its layers decides.
    """
    found: dict[int, tuple[int, int, int]] = {}
    if any(True for _ in _graphs(model)):
        return found
    waiting: tuple[int, int, int] | None = None
    first = False
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, keras.layers.Flatten):
            shapes = layer._build_shapes_dict or {}
            shape = tuple(next(iter(shapes.values()), ()))
            if layer.data_format == "channels_first" and len(shape) == 4:
                waiting = _spatial((shape[0], *shape[2:], shape[1]))
            else:
                waiting = None if first else _spatial(shape)
        elif waiting is not None and layer.variables and not layer._layers:
            found[id(layer)] = waiting
            if isinstance(layer, keras.layers.Dense):
                waiting = None
        first = _puts_channels_first(layer) or (first and type(layer).__name__ in PASSED)
    return found
