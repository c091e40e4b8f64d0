"""Writes warm-up records for TensorFlow Serving without its API package.

    write_warmup(path, [predict_request("flowers", "serving_default", {"image_bytes": tf.constant([jpeg])})])
    for request in read_warmup(path): request.model_spec.signature_name, request.inputs

Warm-up records are real requests that a server runs before it reports that it is ready. This module declares the four
messages in protobuf's descriptor pool, on TensorFlow's own `tensor.proto`, with only the fields that a warm-up needs.
It imports nothing of kresume: the check of an export runs it where kresume cannot be imported.

Sources: `tensorflow_serving/apis/{model,predict,prediction_log}.proto`; "SavedModel Warmup"
(https://www.tensorflow.org/tfx/serving/saved_model_warmup): a TFRecord file of `PredictionLog`s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

PATH = "assets.extra/tf_serving_warmup_requests"
PACKAGE = "tensorflow.serving"


@cache
def messages() -> dict[str, Any]:
    """Returns the message classes `ModelSpec`, `PredictRequest`, `PredictLog` and `PredictionLog`.

    They live in their own pool, so that they never collide with those of an installed `tensorflow-serving-api`.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from tensorflow.core.framework import (
        resource_handle_pb2,
        tensor_pb2,
        tensor_shape_pb2,
        types_pb2,
    )

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="kresume/warmup.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[tensor_pb2.DESCRIPTOR.name],
    )

    def message(name: str) -> Any:
        return file.message_type.add(name=name)

    def add(owner: Any, name: str, number: int, kind: Any, type_name: str = "", repeated: bool = False) -> Any:
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        return owner.field.add(name=name, number=number, type=kind, type_name=type_name or None, label=label)

    spec = message("ModelSpec")
    add(spec, "name", 1, field.TYPE_STRING)
    add(spec, "signature_name", 3, field.TYPE_STRING)
    request = message("PredictRequest")
    add(request, "model_spec", 1, field.TYPE_MESSAGE, f".{PACKAGE}.ModelSpec")
    entry = request.nested_type.add(name="InputsEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, ".tensorflow.TensorProto")
    add(request, "inputs", 2, field.TYPE_MESSAGE, f".{PACKAGE}.PredictRequest.InputsEntry", repeated=True)
    log = message("PredictLog")
    add(log, "request", 1, field.TYPE_MESSAGE, f".{PACKAGE}.PredictRequest")
    prediction = message("PredictionLog")
    prediction.oneof_decl.add(name="log_type")
    add(prediction, "predict_log", 6, field.TYPE_MESSAGE, f".{PACKAGE}.PredictLog").oneof_index = 0

    pool = descriptor_pool.DescriptorPool()
    for module in (types_pb2, tensor_shape_pb2, resource_handle_pb2, tensor_pb2):
        copied = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(copied)
        pool.Add(copied)
    pool.Add(file)
    names = [entry.name for entry in file.message_type]
    found = {name: pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in names}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def predict_request(model: str, signature: str, inputs: Mapping[str, Any]) -> Any:
    """Builds a `PredictRequest`.

    Args:
        model: the model's name for the server.
        signature: the signature's name.
        inputs: tensors or arrays by input name; the first axis is the batch.
    """
    import tensorflow as tf

    request = messages()["PredictRequest"]()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name in sorted(inputs):
        # Through bytes: the pool's TensorProto and TensorFlow's own are two classes with the same wire format.
        request.inputs[name].ParseFromString(tf.make_tensor_proto(inputs[name]).SerializeToString())
    return request


def write_warmup(path: Path, requests: Sequence[Any]) -> None:
    """Writes the records as a TFRecord file of `PredictionLog`s."""
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = messages()["PredictionLog"]()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString(deterministic=True))


def read_warmup(path: Path) -> Iterator[Any]:
    """Yields the `PredictRequest`s of a records file."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False  # as in kresume/images/tf_data.py, which cannot be imported here
    for record in tf.data.TFRecordDataset(str(path)).with_options(options):
        yield messages()["PredictionLog"].FromString(record.numpy()).predict_log.request


def feed(request: Any, signatures: Mapping[str, Any]) -> dict[str, Any]:
    """Answers a `PredictRequest` as a server does: with its signature and its inputs."""
    import tensorflow as tf

    inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
    answer: dict[str, Any] = signatures[request.model_spec.signature_name](**inputs)
    return answer
