"""Classes of protobuf messages, of the few fields that are read."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
BYTES, INT64 = _FIELD.TYPE_BYTES, _FIELD.TYPE_INT64
# message: {field: (number, type or message, repeated)}
Messages = Mapping[str, Mapping[str, tuple[int, int | str, bool]]]


def message_class(messages: Messages, name: str) -> Any:
    """Return the class of the message `name`; fields that are not in `messages` are skipped.

    It is of a pool of its own, so that the package that defines the whole message may be there too.
    """
    file = descriptor_pb2.FileDescriptorProto(name="messages.proto", syntax="proto3")
    for message, fields in messages.items():
        described = file.message_type.add(name=message)
        for field_name, (number, kind, repeated) in fields.items():
            label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            field = described.field.add(name=field_name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
