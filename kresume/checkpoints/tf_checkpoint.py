"""Reads `tf.train.Checkpoint`s (a prefix, or a folder with its `checkpoint` index), under either backend.

A checkpoint of TensorFlow is a graph of objects: nodes, named edges between them, and a tensor at each variable. The names of
the tensors depend on which roots were saved together, so they mean nothing by themselves; the graph is read here, and
walked together with the live model in `kresume.models.restore`.

Sources: the protocol buffer `TrackableObjectGraph` in TensorFlow's `trackable_object_graph.proto`.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np

from kresume.checkpoints.state import GraphNode, SavedOptimizer, SavedRate, TrainState
from kresume.devices import import_tensorflow
from kresume.errors import CheckpointError

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "VARIABLE_VALUE"
OPTIMIZER_EDGES = ("_iterations", "_trainable_variables")


def accepts(path: str) -> bool:
    """Whether `path` is a prefix, one of a checkpoint's files, or a folder with an index of checkpoints."""
    return _prefix(path) is not None


def _prefix(path: str) -> str | None:
    file = Path(path)
    if file.with_name(f"{file.name}.index").is_file():
        return path
    if file.suffix == ".index" and file.is_file():
        return path.removesuffix(".index")
    if not file.is_dir():
        return None
    if (file / "checkpoint").is_file():
        return _latest(file)
    found = sorted(file.glob("*.index"), key=lambda index: index.stat().st_mtime)
    return str(found[0]).removesuffix(".index") if len(found) == 1 else None


def _latest(folder: Path) -> str | None:
    """The newest checkpoint by the folder's own index: a text-format `CheckpointState`; moved folders included."""
    for line in (folder / "checkpoint").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model_checkpoint_path":
            name = Path(value.strip().strip('"')).name
            return str(folder / name) if (folder / f"{name}.index").is_file() else None
    return None


def read(path: str) -> TrainState:
    """Reads every tensor and the object graph.

    Raises:
        CheckpointError: it is truncated or damaged, or was not written by `tf.train.Checkpoint`.
    """
    tf = import_tensorflow()
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    prefix = _prefix(path)
    if prefix is None:
        raise CheckpointError(
            f"{path} holds no tf.train.Checkpoint: expected {path}.index or a folder with `checkpoint`"
        )
    try:
        reader = tf.train.load_checkpoint(prefix)
        if not reader.has_tensor(GRAPH_KEY):
            raise CheckpointError(
                f"{path} was not written by tf.train.Checkpoint (it has no object graph): checkpoints of TensorFlow 1 "
                "hold names alone; load it in the program that wrote it and save it with tf.train.Checkpoint(model=...)"
            )
        graph = TrackableObjectGraph.FromString(reader.get_tensor(GRAPH_KEY))
        keys = {
            attribute.checkpoint_key for node in graph.nodes for attribute in node.attributes if attribute.name == VALUE
        }
        arrays = {key: np.asarray(reader.get_tensor(key)) for key in sorted(keys)}
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({str(error).splitlines()[0][:200]}): use an earlier one"
        ) from error
    nodes = tuple(_node(node) for node in graph.nodes)
    optimizer = find_optimizer(nodes)
    index = Path(f"{prefix}.index")
    return TrainState(
        source=path,
        format="tf-checkpoint",
        layout="graph",
        arrays=arrays,
        graph=nodes,
        optimizer=SavedOptimizer(None, None, _count(nodes, optimizer)) if optimizer is not None else None,
        step=_step(nodes, optimizer, arrays),
        rate=_rate(nodes, optimizer, arrays),
        writer="tf.train.Checkpoint",
        written=datetime.datetime.fromtimestamp(index.stat().st_mtime).isoformat(timespec="seconds"),
    )


def _node(node: Any) -> GraphNode:
    value = next((attribute for attribute in node.attributes if attribute.name == VALUE), None)
    return GraphNode(
        children={child.local_name: child.node_id for child in node.children},
        array=value.checkpoint_key if value is not None else None,
        full_name=value.full_name if value is not None else "",
        slots={
            (slot.original_variable_node_id, slot.slot_name): slot.slot_variable_node_id for slot in node.slot_variables
        },
    )


def find_optimizer(nodes: tuple[GraphNode, ...]) -> int | None:
    """The node that is a Keras 3 optimizer, by its edges; None if the graph holds none."""
    for index, node in enumerate(nodes):
        if set(OPTIMIZER_EDGES) <= set(node.children):
            return index
    return None


def _count(nodes: tuple[GraphNode, ...], optimizer: int) -> int:
    variables = nodes[optimizer].children.get("_variables")
    return len(nodes[variables].children) if variables is not None else 0


def _scalar(nodes: tuple[GraphNode, ...], optimizer: int | None, edge: str, arrays: dict[str, np.ndarray]) -> Any:
    child = nodes[optimizer].children.get(edge) if optimizer is not None else None
    name = nodes[child].array if child is not None else None
    return arrays[name] if name is not None and arrays[name].shape == () else None


def _step(nodes: tuple[GraphNode, ...], optimizer: int | None, arrays: dict[str, np.ndarray]) -> int | None:
    value = _scalar(nodes, optimizer, "_iterations", arrays)
    return int(value) if value is not None else None


def _rate(nodes: tuple[GraphNode, ...], optimizer: int | None, arrays: dict[str, np.ndarray]) -> SavedRate | None:
    value = _scalar(nodes, optimizer, "_learning_rate", arrays)
    return SavedRate(float(value), "float") if value is not None else None
