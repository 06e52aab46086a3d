"""Errors of the client and of starting a server.

ServingError
├── ServerStartError          a server process did not get as far as answering
├── RequestError              the server says the request is at fault; asking again will not help
│   ├── ModelNotFoundError    no such model, version or label is loaded
│   └── SignatureError        the model has no such signature, input or output
└── ServerError               the server or the network is at fault
    ├── UnavailableError      no server there, or it is going down (retried)
    ├── OverloadedError       the server refuses work for now (retried)
    └── DeadlineError         no answer in time
"""


class ServingError(Exception):
    """Base of every error of this package.

    Args:
        message: What happened and how to mend it.
        code: Name of the status code (`NOT_FOUND`, …); empty if there is none.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class ServerStartError(ServingError):
    """A server process ended, or did not answer in time; the message holds the end of its log."""


class RequestError(ServingError):
    """The request is at fault."""


class ModelNotFoundError(RequestError):
    """The model, version or label is not loaded."""


class SignatureError(RequestError):
    """The model has no such signature, input or output."""


class ServerError(ServingError):
    """The server or the network is at fault."""


class UnavailableError(ServerError):
    """No server there, or one that is going down."""


class OverloadedError(ServerError):
    """The server has too much to do."""


class DeadlineError(ServerError):
    """The deadline was over before the answer came."""
