"""A stored record, a serialized tf.train.Example: its image and its label.

tensorflow_datasets has this message too, but takes a second and 100 MB to import, and its own
deserialization six times as long as protobuf, for two fields.
"""

from alexnet_jax.data.messages import BYTES, INT64, message_class

# tensorflow/core/example/example.proto and feature.proto, of which a map is encoded as repeated
# pairs of key and value
_Example = message_class(
    {
        "Example": {"features": (1, "Features", False)},
        "Features": {"feature": (1, "Named", True)},
        "Named": {"key": (1, BYTES, False), "value": (2, "Feature", False)},
        "Feature": {"bytes_list": (1, "BytesList", False), "int64_list": (3, "Int64List", False)},
        "BytesList": {"value": (1, BYTES, True)},
        "Int64List": {"value": (1, INT64, True)},
    },
    "Example",
)


def image_and_label(record: bytes) -> tuple[bytes, int]:
    """Return the contents of the fields 'image' and 'label'; raise KeyError where one is missing.

    What is not an Example raises the errors of protobuf.
    """
    named = {each.key: each.value for each in _Example.FromString(record).features.feature}
    [image], [label] = named[b"image"].bytes_list.value, named[b"label"].int64_list.value
    return image, label
