"""Reads `tf.train.Checkpoint`s: a prefix, or a folder with its `checkpoint` index.

A checkpoint of TensorFlow is a graph of objects: nodes, named edges between them, and a tensor at each variable. The
names of the tensors depend on which roots were saved together, so they identify nothing by themselves. This module
reads the graph; `kresume.models.match_graph` walks it together with the live model. Keras 3, Keras 2 (tf_keras) and a
SavedModel's `variables` folder use this format. Works under either backend.

Sources: the protocol buffer `TrackableObjectGraph` in TensorFlow's `trackable_object_graph.proto`.
"""

from __future__ import annotations

import glob
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from kresume.backend.selection import import_tensorflow
from kresume.checkpoints import content, graph_optimizer
from kresume.errors import CheckpointError
from kresume.storage import atomic
from kresume.values.state import GraphNode, TrainState

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "VARIABLE_VALUE"
FILES = re.compile(r"\.(index|data-\d+-of-\d+)$")
"""The endings of a checkpoint's files after their common prefix."""


def accepts(path: str) -> bool:
    """Returns True for a checkpoint's prefix, one of its files, or a checkpoint folder."""
    return prefix_of(path) is not None


def prefix_of(path: str) -> str | None:
    """Returns the prefix of the checkpoint that a path names; None if there is none.

    The path may be a prefix, one of its files, or a folder.
    """
    file = Path(path)
    if file.name and file.with_name(f"{file.name}.index").is_file():
        return path
    if file.is_file() and (prefix := FILES.sub("", path)) != path and Path(f"{prefix}.index").is_file():
        return prefix
    if not file.is_dir():
        return None
    if (file / "checkpoint").is_file():
        return _latest(file)
    found = [index for index in file.glob("*.index") if content.kind_of(index) is None]
    return str(found[0]).removesuffix(".index") if len(found) == 1 else None


def _latest(folder: Path) -> str | None:
    """Returns the newest checkpoint that the folder's index names.

    The index is a text-format `CheckpointState`. Only the file name in it is used, so the folder may have been moved.
    """
    for line in (folder / "checkpoint").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model_checkpoint_path":
            name = Path(value.strip().strip('"')).name
            return str(folder / name) if (folder / f"{name}.index").is_file() else None
    return None


def read(path: str) -> TrainState:
    """Reads every tensor and the object graph.

    Raises:
        CheckpointError: if the checkpoint is truncated or damaged, or was not written by `tf.train.Checkpoint`.
    """
    prefix = prefix_of(path)
    if prefix is None:
        raise CheckpointError(
            f"{path} holds no tf.train.Checkpoint: expected {path}.index or a folder with `checkpoint`"
        )
    return read_graph(prefix, path)


def read_graph(prefix: str, path: str) -> TrainState:
    """Reads the object graph and the arrays of a prefix.

    Args:
        prefix: the path without `.index`.
        path: the path as the user gave it.

    Raises:
        CheckpointError: if the checkpoint is truncated or damaged, or has no object graph.
    """
    tf = import_tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    try:
        reader = tf.train.load_checkpoint(prefix)
        if not reader.has_tensor(GRAPH_KEY):
            raise CheckpointError(
                f"{path} was not written by tf.train.Checkpoint (it has no object graph): checkpoints of TensorFlow 1 "
                "hold only names; load it in the program that wrote it and save it with tf.train.Checkpoint(model=...)"
            )
        _check_size(reader, prefix, path)
        graph = TrackableObjectGraph.FromString(reader.get_tensor(GRAPH_KEY))
        keys = {
            attribute.checkpoint_key for node in graph.nodes for attribute in node.attributes if attribute.name == VALUE
        }
        arrays = {key: np.asarray(reader.get_tensor(key)) for key in sorted(keys)}
    except (tf.errors.OpError, ValueError, RuntimeError, LookupError, DecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path} is truncated or damaged ({reason}): use an earlier one") from error
    nodes = tuple(_node(node) for node in graph.nodes)
    if not nodes:
        raise CheckpointError(f"{path} is damaged: its object graph is empty; use an earlier one")
    chosen = graph_optimizer.find_optimizer(nodes)
    optimizer, step, rate = graph_optimizer.describe(nodes, chosen, arrays)
    index = Path(f"{prefix}.index")
    return TrainState(
        source=path,
        format="tf-checkpoint",
        layout="graph",
        arrays=arrays,
        graph=nodes,
        optimizer=optimizer,
        step=step,
        rate=rate,
        writer=_writer(nodes),
        written=atomic.modified(index),
        records={"notes": notes} if (notes := _notes(nodes, chosen)) else {},
    )


def _notes(nodes: tuple[GraphNode, ...], chosen: int | None) -> list[str]:
    """Describes for the user what of a graph with several optimizers is used."""
    found = graph_optimizer.find_optimizers(nodes)
    if len(found) < 2:
        return []
    names = graph_optimizer.names(nodes)
    used = names[found.index(chosen)] if chosen is not None else ""
    return [f"the file holds {len(found)} optimizers ({', '.join(names)}): {used} is used"]


def _check_size(reader: Any, prefix: str, path: str) -> None:
    """Raises if the index claims more bytes than the data files hold.

    The data files are not compressed, and TensorFlow allocates memory according to the index.
    """
    start = Path(prefix)
    on_disk = sum(file.stat().st_size for file in start.parent.glob(f"{glob.escape(start.name)}.data-*"))
    types = reader.get_variable_to_dtype_map()
    claimed = sum(
        math.prod(shape) * types[name].size
        for name, shape in reader.get_variable_to_shape_map().items()
        if types[name].size
    )
    if claimed > on_disk:
        raise CheckpointError(
            f"{path} is truncated or damaged (its index claims {claimed:,} bytes, its data files have {on_disk:,}): use an "
            "earlier one"
        )


def _writer(nodes: tuple[GraphNode, ...]) -> str:
    """Identifies the Keras version by edges that only this version writes."""
    edges = {edge for node in nodes for edge in node.children}
    if any(edge.startswith("layer_with_weights-") for edge in edges):
        return "tf.train.Checkpoint, Keras 2"
    return "tf.train.Checkpoint, Keras 3" if "_operations" in edges else "tf.train.Checkpoint"


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
