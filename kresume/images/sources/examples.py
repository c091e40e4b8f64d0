"""Makes the message class of `tf.train.Example` without TensorFlow.

    feature = example_class().FromString(record).features.feature
    feature["image/encoded"].bytes_list.value[0]

Importing TensorFlow imports Keras, which then runs on TensorFlow for as long as the process lives. Images are listed before
the backend is chosen, so it is not imported for the sake of a message.

Source: tensorflow/core/example/example.proto and feature.proto.
"""

from __future__ import annotations

from functools import cache
from typing import Any

PACKAGE = "kresume"
BYTES, FLOAT, INT64 = "bytes", "float", "int64"


@cache
def example_class() -> Any:
    """Returns the class, whose messages have the fields of `tf.train.Example`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    types = {BYTES: kinds.TYPE_BYTES, FLOAT: kinds.TYPE_FLOAT, INT64: kinds.TYPE_INT64}
    file = descriptor_pb2.FileDescriptorProto(name="kresume_example.proto", package=PACKAGE, syntax="proto3")

    def field(message: Any, name: str, number: int, kind: str, *, repeated: bool = False) -> Any:
        """Adds a field of a scalar type or of another message."""
        label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        added = message.field.add(name=name, number=number, label=label)
        added.type = types.get(kind, kinds.TYPE_MESSAGE)
        if kind not in types:
            added.type_name = f".{PACKAGE}.{kind}"
        return added

    lists = {"BytesList": BYTES, "FloatList": FLOAT, "Int64List": INT64}
    for name, kind in lists.items():
        field(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(lists.items(), 1):
        field(feature, f"{kind}_list", number, name).oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    field(entry, "key", 1, BYTES).type = kinds.TYPE_STRING
    field(entry, "value", 2, "Feature")
    field(features, "feature", 1, "Features.FeatureEntry", repeated=True)
    field(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.Example"))
