"""Finds the first and last arithmetic of a SavedModel, a rescaling or a softmax for example.

    last_operation(meta_graph, "serving_default", "output_0")      # "Softmax", "BiasAdd"; "" if it cannot be found
    input_scale(meta_graph, "serving_default", "images")           # 1 / 255: the model rescales by itself

Only the graph is read. Calls of functions are followed to the function's own operations.
Format: `tensorflow/core/framework/{graph,function,node_def}.proto`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SAME = frozenset(
    {"Identity", "EnsureShape", "StopGradient", "PreventGradient", "Reshape", "Squeeze", "ExpandDims", "Cast"}
)
"""Operations that pass their first input on, in another shape or number type at most."""
CLIPS = frozenset({"Minimum", "Maximum"})
"""Operations that keep a number within a constant limit."""
SUMS = frozenset({"Add", "AddV2"})
PRODUCTS = frozenset({"MatMul", "BatchMatMulV2", "Einsum"})
CONSTANTS = frozenset({"Const", "ReadVariableOp", "VariableV2"})
CALLS = frozenset({"StatefulPartitionedCall", "PartitionedCall"})
MOVES = SAME | {
    "Transpose",
    "ResizeArea",
    "ResizeBicubic",
    "ResizeBilinear",
    "ResizeNearestNeighbor",
    "ScaleAndTranslate",
}
"""Operations that move or mix pixels and keep their range."""
MOST_CHANNELS = 4096
ON_CONSTANTS: Mapping[str, tuple[int, str]] = {
    **dict.fromkeys(SAME - {"Reshape", "ExpandDims"}, (1, "positive")),
    "Sqrt": (1, "sqrt"),
    "Maximum": (2, "maximum"),
    "Minimum": (2, "minimum"),
}
"""Arithmetic on constants that is computed, with the number of its inputs and numpy's name for it: a normalisation divides by
the larger of a root and a limit."""
DEEPEST_VALUE = 20
DEEPEST = 1000
"""Operations that are followed at most; a damaged graph may have a circle."""


def last_operation(graph: Any, signature: str, output: str) -> str:
    """Returns the name of the operation that computes an output; empty if it cannot be found.

    Args:
        graph: the `MetaGraphDef` with the tag `serve`.
        signature: name of the signature.
        output: name of the output.
    """
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    nodes = {node.name: node for node in graph.graph_def.node}
    tensor = graph.signature_def[signature].outputs[output].name
    node, nodes = _computing(tensor, nodes, functions)
    if node is None:
        return ""
    if node.op in SUMS:  # of a layer's product and its bias, or of anything else, which tells nothing
        found = {
            each.op for each in (_computing(name, nodes, functions)[0] for name in node.input[:2]) if each is not None
        }
        return "BiasAdd" if found & PRODUCTS and found & CONSTANTS else ""
    return str(node.op)


def _computing(tensor: str, nodes: dict[str, Any], functions: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Follows a tensor to the node that computes it; returns it and the nodes beside it, or None."""
    for _ in range(DEEPEST):
        name, _, place = tensor.lstrip("^").partition(":")
        node = nodes.get(name)
        if node is None:
            return None, nodes  # an argument of the function
        index = int(place.rpartition(":")[2]) if place.rpartition(":")[2].isdecimal() else 0
        if node.op in SAME or node.op == "IdentityN":
            taken = index if node.op == "IdentityN" else 0
            if taken >= len(node.input):
                return None, nodes
            tensor = node.input[taken]
        elif node.op in CLIPS:
            # Looks no further than the next node: following both sides would never end in a circle.
            makers = {each: nodes.get(each.lstrip("^").partition(":")[0]) for each in node.input[:2]}
            others = [each for each, maker in makers.items() if maker is None or maker.op not in CONSTANTS]
            if len(makers) != 2 or len(others) != 1:
                return node, nodes
            tensor = others[0]
        elif node.op in CALLS:
            function = functions.get(node.attr["f"].func.name)
            if function is None or index >= len(function.signature.output_arg):
                return None, nodes
            nodes = {each.name: each for each in function.node_def}
            tensor = function.ret[function.signature.output_arg[index].name]
        else:
            return node, nodes
    return None, nodes


def input_scale(graph: Any, signature: str, input_: str) -> float | None:
    """Returns the factor by which a model multiplies its input first; None if unknown.

    Args:
        graph: the `MetaGraphDef` with the tag `serve`.
        signature: name of the signature.
        input_: name of the input.

    Returns:
        The largest factor of the channels: 1/255 of a `Rescaling(1 / 255)`, one through the deviation of a normalisation.
    """
    import numpy as np

    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    scope = _Scope({node.name: node for node in graph.graph_def.node}, {})
    tensor = graph.signature_def[signature].inputs[input_].name
    for _ in range(DEEPEST):
        users = [
            (node, place)
            for node in scope.nodes.values()
            if node.op != "Shape"
            for place, given in enumerate(node.input)
            if _same(given, tensor)
        ]
        if len(users) != 1:
            return None  # several branches, or none
        node, place = users[0]
        if node.op in CALLS:
            function = functions.get(node.attr["f"].func.name)
            if function is None or place >= len(function.signature.input_arg):
                return None
            arguments = [each.name for each in function.signature.input_arg]
            given = zip(arguments, node.input, strict=False)
            scope = _Scope({each.name: each for each in function.node_def}, {name: (scope, of) for name, of in given})
            tensor = arguments[place]
        elif (node.op in MOVES and place == 0) or (
            node.op == "Sub" and place == 0 and scope.value(node.input[1]) is not None
        ):
            tensor = f"{node.name}:0"
        elif node.op in {"Mul", "RealDiv", "Div"} and (place == 0 or node.op == "Mul"):
            other = scope.value(node.input[1 - place])
            if other is None or not other.size or not np.all(other):
                return None
            return float(np.max(np.abs(other if node.op == "Mul" else 1.0 / other)))
        else:
            return None
    return None


@dataclass(frozen=True)
class _Scope:
    """The graph, or the body of a function as one call enters it.

    Attributes:
        nodes: its operations by name.
        bound: where the arguments come from: the scope of the call, and the tensor there.
    """

    nodes: Mapping[str, Any]
    bound: Mapping[str, tuple[_Scope, str]]

    def value(self, tensor: str, deepest: int = DEEPEST_VALUE) -> np.ndarray | None:
        """Returns the value of a constant, or of simple arithmetic on constants; None if a tensor is neither."""
        name = tensor.lstrip("^").partition(":")[0]
        node = self.nodes.get(name)
        if deepest < 1 or (node is None and name not in self.bound):
            return None
        if node is None:
            scope, given = self.bound[name]
            return scope.value(given, deepest - 1)
        if node.op == "Const":
            return _number(node)
        import numpy as np

        count, function = ON_CONSTANTS.get(node.op, (0, ""))
        if not function or len(node.input) < count:
            return None
        known = [self.value(given, deepest - 1) for given in node.input[:count]]
        values = [each for each in known if each is not None]
        if len(values) < count:
            return None
        with np.errstate(all="ignore"):
            try:
                return np.asarray(getattr(np, function)(*values))
            except ValueError:  # shapes that do not fit
                return None


def _number(node: Any) -> np.ndarray | None:
    """Returns a constant's value as float64; None for text."""
    import numpy as np

    from kresume.backend.selection import import_tensorflow

    tensor = node.attr["value"].tensor
    if math.prod(max(each.size, 0) for each in tensor.tensor_shape.dim) > MOST_CHANNELS:
        return None  # a damaged file may ask for any amount of memory
    try:
        value = import_tensorflow().make_ndarray(tensor)
    except (TypeError, ValueError):
        return None
    return np.asarray(value, np.float64) if value.dtype.kind in "fiu" else None


def _same(one: str, other: str) -> bool:
    """Returns True if two names mean the same tensor: `x`, `x:0` and `x:output:0` do."""

    def parts(name: str) -> tuple[str, int]:
        node, _, place = name.partition(":")
        number = place.rpartition(":")[2]
        return node, int(number) if number.isdecimal() else 0

    return parts(one) == parts(other)
