"""The one table between Sluice's errors and gRPC statuses, used in both directions."""

import grpc

from sluice.errors import (
    ConfigError,
    DataError,
    Expired,
    Fenced,
    Forbidden,
    InvalidRequest,
    LaunchError,
    NotFound,
    NotReady,
    Overloaded,
    SluiceError,
    TransferError,
    Unauthenticated,
    Unavailable,
)

STATUS_OF: dict[type[SluiceError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    DataError: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    NotReady: grpc.StatusCode.FAILED_PRECONDITION,
    Fenced: grpc.StatusCode.ABORTED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Expired: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    TransferError: grpc.StatusCode.DATA_LOSS,
    LaunchError: grpc.StatusCode.INTERNAL,
}

_ERROR_OF: dict[grpc.StatusCode, type[SluiceError]] = {
    status: error for error, status in reversed(list(STATUS_OF.items()))
} | {
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNKNOWN: SluiceError,
    grpc.StatusCode.INTERNAL: SluiceError,
    grpc.StatusCode.UNIMPLEMENTED: NotReady,
}


def status_of(error: BaseException) -> grpc.StatusCode:
    """The status an error leaves a server with: INVALID_ARGUMENT for any ValueError, INTERNAL for a bug of ours."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF:
            return STATUS_OF[kind]
    return grpc.StatusCode.INVALID_ARGUMENT if isinstance(error, ValueError) else grpc.StatusCode.INTERNAL


def error_of(error: grpc.aio.AioRpcError, *, peer: str) -> SluiceError:
    """The Sluice error behind a failed call; `peer` names the callee in the message."""
    kind = _ERROR_OF.get(error.code(), SluiceError)
    return kind(f"{peer}: {error.details() or error.code().name}")
