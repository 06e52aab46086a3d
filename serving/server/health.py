"""The standard gRPC health service, `grpc.health.v1.Health`.

Written out here because the two messages are two fields, while the grpcio-health-checking package needs a newer
protobuf than TensorFlow allows.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "grpc.health.v1.Health"
_SERVING, _SERVICE_UNKNOWN = 1, 3
_FIELD = descriptor_pb2.FieldDescriptorProto


def _messages() -> tuple[type, type]:
    file = descriptor_pb2.FileDescriptorProto(name="serving/server/health.proto", package="grpc.health.v1")
    file.syntax = "proto3"
    request = file.message_type.add(name="HealthCheckRequest")
    request.field.add(name="service", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    # An enum and an int32 look the same on the wire.
    response = file.message_type.add(name="HealthCheckResponse")
    response.field.add(name="status", number=1, type=_FIELD.TYPE_INT32, label=_FIELD.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    names = ("HealthCheckRequest", "HealthCheckResponse")
    types = [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.health.v1.{name}")) for name in names]
    return types[0], types[1]


HealthCheckRequest, HealthCheckResponse = _messages()


class HealthService:
    """Says SERVING for the named services as long as the process answers at all.

    Args:
        services: Names that are known; "" stands for the whole server.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service with a server."""
        codec = {
            "request_deserializer": HealthCheckRequest.FromString,  # type: ignore[attr-defined]
            "response_serializer": HealthCheckResponse.SerializeToString,  # type: ignore[attr-defined]
        }
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, **codec),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **codec),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def _check(self, request: object, context: grpc.aio.ServicerContext) -> object:
        if request.service not in self._services:  # type: ignore[attr-defined]
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return HealthCheckResponse(status=_SERVING)

    async def _watch(self, request: object, context: grpc.aio.ServicerContext) -> AsyncIterator[object]:
        known = request.service in self._services  # type: ignore[attr-defined]
        yield HealthCheckResponse(status=_SERVING if known else _SERVICE_UNKNOWN)
        await asyncio.Event().wait()  # the state does not change while the process lives
