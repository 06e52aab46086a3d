"""Reads configuration files, which are text messages; some the tensorflow-serving-api package leaves out.

Those are built at run time from the field numbers of TensorFlow Serving's public .proto files, in a descriptor pool of
our own.
"""

from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.message import Message

from serving.server.status import Code, StatusError, invalid_argument

MessageT = TypeVar("MessageT", bound=Message)
_TYPES = descriptor_pb2.FieldDescriptorProto
_WRAPPERS = "google/protobuf/wrappers.proto"
# Message to fields: name, number, type (a scalar type, or the full name of a message), repeated.
_MESSAGES: dict[str, list[tuple[str, int, int | str, bool]]] = {
    "SSLConfig": [
        ("server_key", 1, _TYPES.TYPE_STRING, False),
        ("server_cert", 2, _TYPES.TYPE_STRING, False),
        ("custom_ca", 3, _TYPES.TYPE_STRING, False),
        ("client_verify", 4, _TYPES.TYPE_BOOL, False),
    ],
    "PrometheusConfig": [
        ("enable", 1, _TYPES.TYPE_BOOL, False),
        ("path", 2, _TYPES.TYPE_STRING, False),
    ],
    "MonitoringConfig": [("prometheus_config", 1, ".tensorflow.serving.PrometheusConfig", False)],
    "BatchingParameters": [
        ("max_batch_size", 1, ".google.protobuf.Int64Value", False),
        ("batch_timeout_micros", 2, ".google.protobuf.Int64Value", False),
        ("max_enqueued_batches", 3, ".google.protobuf.Int64Value", False),
        ("num_batch_threads", 4, ".google.protobuf.Int64Value", False),
        ("thread_pool_name", 5, ".google.protobuf.StringValue", False),
        ("allowed_batch_sizes", 6, _TYPES.TYPE_INT64, True),
        ("pad_variable_length_inputs", 7, _TYPES.TYPE_BOOL, False),
        ("enable_large_batch_splitting", 8, ".google.protobuf.BoolValue", False),
        ("max_execution_batch_size", 9, ".google.protobuf.Int64Value", False),
    ],
}


def _message_classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="serving/server/config.proto", package="tensorflow.serving", syntax="proto3", dependency=[_WRAPPERS]
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in fields:
            field = message.field.add(name=field_name, number=number)
            field.label = _TYPES.LABEL_REPEATED if repeated else _TYPES.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type, field.type_name = _TYPES.TYPE_MESSAGE, kind
            else:
                field.type = kind  # type: ignore[assignment]
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _message_classes()


def read_text_config(name: str, path: str) -> Any:
    """Reads a text file as the message `name`: `SSLConfig`, `MonitoringConfig` or `BatchingParameters`.

    Raises:
        StatusError: As `read_text_message`.
    """
    return read_text_message(_CLASSES[name](), path)


def read_text_message(message: MessageT, path: str) -> MessageT:
    """Reads a text file into an empty message; what cannot be parsed is refused in TensorFlow Serving's words.

    Raises:
        StatusError: NOT_FOUND or INVALID_ARGUMENT with the file and, for a parse error, line and column.
    """
    name = message.DESCRIPTOR.full_name
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StatusError(Code.NOT_FOUND, f"Cannot read the {name} file {path}: {error}") from error
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise invalid_argument(f"Invalid protobuf file: '{path}': Error parsing text-format {name}: {error}") from error
