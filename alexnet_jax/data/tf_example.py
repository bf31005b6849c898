"""A stored record, a serialized tf.train.Example: its image and its label.

tensorflow_datasets has this message too, but takes a second and 100 MB to import, and its own
deserialization six times as long as protobuf, for two fields.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
# message: {field: (number, type or message, repeated)}; tensorflow/core/example/example.proto and
# feature.proto, of which a map is encoded as repeated pairs of key and value
_MESSAGES: dict[str, dict[str, tuple[int, int | str, bool]]] = {
    "Example": {"features": (1, "Features", False)},
    "Features": {"feature": (1, "Named", True)},
    "Named": {"key": (1, _FIELD.TYPE_BYTES, False), "value": (2, "Feature", False)},
    "Feature": {"bytes_list": (1, "BytesList", False), "int64_list": (3, "Int64List", False)},
    "BytesList": {"value": (1, _FIELD.TYPE_BYTES, True)},
    "Int64List": {"value": (1, _FIELD.TYPE_INT64, True)},
}


def image_and_label(record: bytes) -> tuple[bytes, int]:
    """Return the contents of the fields 'image' and 'label'; raise KeyError where one is missing.

    What is not an Example raises the errors of protobuf.
    """
    named = {each.key: each.value for each in _Example.FromString(record).features.feature}
    [image], [label] = named[b"image"].bytes_list.value, named[b"label"].int64_list.value
    return image, label


def _example() -> Any:
    """Return the class of the message, of a pool of its own: tensorflow_datasets defines it too."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", syntax="proto3")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))


_Example = _example()
