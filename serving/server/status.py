"""Status codes of the protocol and the one exception that carries them from the model to the client."""

from enum import IntEnum


class Code(IntEnum):
    """Canonical status codes; the numbers are those of gRPC and of TensorFlow."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def http_status(self) -> int:
        """The HTTP status TensorFlow Serving's REST API answers for this code."""
        return _HTTP_STATUS.get(self, 500)


_HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}

_MAX_GRPC_MESSAGE = 1024


class StatusError(Exception):
    """A request or a load that failed, with the code and text the client sees.

    Args:
        code: Canonical status code, not `OK`.
        message: Text for the client.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"

    @property
    def grpc_message(self) -> str:
        """The text as TensorFlow Serving sends it over gRPC: cut at 1024 characters."""
        if len(self.message) > _MAX_GRPC_MESSAGE:
            return self.message[:_MAX_GRPC_MESSAGE] + "...TRUNCATED"
        return self.message


def invalid_argument(message: str) -> StatusError:
    """Returns the error for a request that is itself at fault."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def status_of(error: BaseException) -> StatusError:
    """Turns any exception into a `StatusError`; TensorFlow's own errors keep their code and text."""
    if isinstance(error, StatusError):
        return error
    code = getattr(error, "error_code", None)
    if isinstance(code, int) and 0 < code <= 16:
        return StatusError(Code(code), str(getattr(error, "message", error)))
    if isinstance(error, MemoryError):
        return StatusError(Code.RESOURCE_EXHAUSTED, "Not enough memory to answer this request.")
    return StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")
