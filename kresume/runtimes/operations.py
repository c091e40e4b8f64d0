"""Finds the operation that computes an output of a SavedModel, a softmax or a sigmoid for example.

    last_operation(meta_graph, "serving_default", "output_0")      # "Softmax", "BiasAdd"; "" if it cannot be found

Only the graph is read. Calls of functions are followed to the function's own operations.
Format: `tensorflow/core/framework/{graph,function,node_def}.proto`.
"""

from __future__ import annotations

from typing import Any

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
