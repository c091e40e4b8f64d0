"""Reads the variables of a SavedModel, and the architecture if Keras 2 stored it.

    state = read("serving/1")       # a folder with saved_model.pb; an export of kresume also says its classes and pixels

Its `variables` folder is a checkpoint with an object graph and is read as such. Keras 2's `model.save(FOLDER)` stores
the architecture and the compile config as JSON beside it (`keras_metadata.pb`). Keras 3's `model.export` stores
neither, and no optimizer. The graph of operations is never loaded or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kresume.backend.selection import import_tensorflow
from kresume.checkpoints import keras_2, keras_2_optimizers, tf_checkpoint
from kresume.checkpoints.json_text import read_object
from kresume.checkpoints.keras_arrays import rate_of_schedule
from kresume.errors import CheckpointError
from kresume.storage import atomic, sealed
from kresume.storage.model_folders import find_saved_model
from kresume.values.card import Card
from kresume.values.state import SavedOptimizer, SavedRate, TrainState

GRAPH, TEXT_GRAPH, METADATA = "saved_model.pb", "saved_model.pbtxt", "keras_metadata.pb"
MODELS = frozenset({"Sequential", "Functional", "Model"})


def accepts(path: str) -> bool:
    """Returns True for a folder that holds a SavedModel, or the versions of one for a model server."""
    return (Path(path) / TEXT_GRAPH).is_file() or find_saved_model(path) is not None


def read(path: str) -> TrainState:
    """Reads variables, optimizer state and Keras's metadata.

    Raises:
        CheckpointError: if the SavedModel is truncated or damaged, or has no variables.
    """
    folder = Path(path)
    prefix = folder / "variables" / "variables"
    if not prefix.with_name("variables.index").is_file():
        raise CheckpointError(f"{path} is a SavedModel without variables: expected {prefix}.index")
    version, inside = _meta(folder, path)
    state = tf_checkpoint.read_graph(str(prefix), path)
    metadata = _root_metadata(folder, path) or inside
    state = replace(
        state,
        format="saved-model",
        writer=f"tensorflow {version}" if version else "tensorflow",
        card=_card(folder),
    )
    if metadata is None:
        return state
    writer = f"{state.writer}, Keras 2"
    compiled = _compiled(metadata, path)
    saved = compiled["optimizer"] if compiled is not None else None
    optimizer = state.optimizer
    if saved is not None and optimizer is not None:
        optimizer = SavedOptimizer(saved["class_name"], saved["config"], optimizer.variables)
    return replace(
        state,
        writer=writer,
        architecture=_architecture(metadata, path),
        compiled=compiled,
        optimizer=optimizer,
        rate=_rate(saved) or state.rate,
    )


def _card(folder: Path) -> Card | None:
    """Returns the model card that an export of kresume records; None of another program's SavedModel."""
    try:
        record = atomic.read_json(folder / sealed.NAME)
        return Card.from_dict(record["card"]) if "export_format" in record else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # another program's file of that name


def read_architecture(path: str) -> dict[str, Any] | None:
    """Reads only the architecture, with its compile config; None if the SavedModel has none.

    Raises:
        CheckpointError: if the SavedModel is truncated or damaged.
    """
    _, inside = _meta(Path(path), path)
    metadata = _root_metadata(Path(path), path) or inside
    found = _architecture(metadata, path) if metadata is not None else None
    return (
        {**found, "compile_config": _compiled(metadata, path)} if found is not None and metadata is not None else None
    )


def _compiled(metadata: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """Returns the compile config in the form of a `.keras` file; None if the model was not compiled."""
    training = metadata.get("training_config")
    return keras_2_optimizers.compile_config(training, path) if isinstance(training, Mapping) else None


def _architecture(metadata: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """Returns the model in Keras 3's serialized form.

    Returns None for a subclassed model, whose code is not in the file.
    """
    if metadata.get("class_name") not in MODELS or not isinstance(metadata.get("config"), Mapping):
        return None
    return keras_2.architecture({"class_name": metadata["class_name"], "config": metadata["config"]}, path)


def _rate(saved: Mapping[str, Any] | None) -> SavedRate | None:
    """Returns the schedule of a serialized optimizer as a rate, else None.

    A plain rate is read from its variable, which is more accurate.
    """
    rate = saved["config"].get("learning_rate") if saved is not None else None
    return rate_of_schedule(rate) if isinstance(rate, Mapping) else None


def _meta(folder: Path, path: str) -> tuple[str, dict[str, Any] | None]:
    """Returns TensorFlow's version and any Keras metadata in the graph file.

    Keras 2 before 2.5 stored its metadata there.
    """
    import_tensorflow()
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    try:
        if (folder / GRAPH).is_file():
            model = SavedModel.FromString((folder / GRAPH).read_bytes())
        else:
            model = text_format.Parse((folder / TEXT_GRAPH).read_text(encoding="utf-8"), SavedModel())
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({GRAPH}: {error}): use an earlier copy") from error
    if not model.meta_graphs:
        raise CheckpointError(f"{path} is truncated or damaged ({GRAPH} holds no graph): use an earlier copy")
    graph = model.meta_graphs[0]
    nodes = graph.object_graph_def.nodes
    inside = nodes[0].user_object.metadata if nodes and nodes[0].WhichOneof("kind") == "user_object" else ""
    return str(graph.meta_info_def.tensorflow_version), _object(inside, path) if inside.startswith("{") else None


def _root_metadata(folder: Path, path: str) -> dict[str, Any] | None:
    file = folder / METADATA
    if not file.is_file():
        return None
    from google.protobuf.message import DecodeError

    try:
        nodes = _metadata_type().FromString(file.read_bytes()).nodes
    except DecodeError as error:
        raise CheckpointError(f"{path} is truncated or damaged ({METADATA}: {error}): use an earlier copy") from error
    root = next((node.metadata for node in nodes if node.node_path == "root"), None)
    if root is None:
        raise CheckpointError(
            f"{path} is truncated or damaged ({METADATA} does not describe the model): use an earlier copy"
        )
    return _object(root, path)


def _metadata_type() -> Any:
    """Builds the protobuf message `SavedMetadata` with the fields that are read here.

    Source: Keras 2's saved_metadata.proto.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="kresume_saved_metadata.proto", package="kresume", syntax="proto3")
    node = file.message_type.add(name="SavedObject")
    for name, number in (("node_path", 3), ("identifier", 4), ("metadata", 5)):
        node.field.add(name=name, number=number, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    whole = file.message_type.add(name="SavedMetadata")
    whole.field.add(
        name="nodes", number=1, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED, type_name=".kresume.SavedObject"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kresume.SavedMetadata"))


def _object(text: str, path: str) -> dict[str, Any]:
    """Parses Keras 2's JSON, which stores tuples and shapes as objects."""
    return read_object(text, f"{path}: the Keras metadata", keras_2.plain)
