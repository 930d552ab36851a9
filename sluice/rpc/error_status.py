"""How an error crosses the wire: as one gRPC status with a message, and with details in `grpc-status-details-bin`.

sluice/errors.py gives each error its status. The details are a google.rpc.Status on the wire, with one
sluice.v1.ErrorDetails: a program reads kind, reason and fix in the details, a person reads all three in the message.
"""

import re
from collections.abc import Iterable
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from sluice import errors
from sluice.errors import DiskFull, InvalidRequest, NotReady, SluiceError, Unavailable
from sluice.run_dir.full_disk import is_full
from sluice.v1 import common_pb2

DETAILS_KEY = "grpc-status-details-bin"

_MESSAGE_BYTES = 1_400
_PART_BYTES = 600
"""Limit of message, reason and fix each. gRPC drops answers with more than 8 KiB of metadata: three times the message,
which may be percent-encoded whole, and 4/3 of message, reason and fix in the details."""

_KINDS: dict[str, type[SluiceError]] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper(): kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SluiceError)
}
"""Error classes by the name of the kind on the wire: NOT_READY is NotReady."""

_TOO_LARGE = "message larger than max"
"""gRPC's own words for a message over its limit, which it calls RESOURCE_EXHAUSTED: calling again is no help."""

_NAMES = {kind: name for name, kind in _KINDS.items()}

_KIND_OF: dict[grpc.StatusCode, type[SluiceError]] = {
    grpc.StatusCode[kind.status]: kind for kind in _KINDS.values() if kind.status != SluiceError.status
} | {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: NotReady,
}
"""Error classes for statuses without details, which gRPC itself or another server sends. Other statuses: SluiceError."""


class FailedCall(Protocol):
    """The methods that grpc.aio.AioRpcError and the blocking API's RpcError have in common."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Iterable[Any] | None: ...


def known(error: BaseException) -> SluiceError:
    """The error as a SluiceError: DiskFull for a full disk, InvalidRequest for any other ValueError, SluiceError (INTERNAL)
    for a bug."""
    if isinstance(error, SluiceError):
        return error
    if isinstance(error, OSError) and is_full(error):
        return DiskFull(str(error))
    message = str(error) or type(error).__name__
    return InvalidRequest(message) if isinstance(error, ValueError) else SluiceError(message)


def status_of(error: SluiceError) -> grpc.StatusCode:
    """The gRPC status of an error."""
    return grpc.StatusCode[error.status]


def message_of(error: SluiceError) -> str:
    """The message for a person, cut at the limit."""
    return _cut(str(error), _MESSAGE_BYTES)


def trailers_of(error: SluiceError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata with the parts of an error."""
    kind = next(_NAMES[base] for base in type(error).__mro__ if base in _NAMES)
    detail = common_pb2.ErrorDetails(
        kind=kind, reason=_cut(error.reason, _PART_BYTES), fix=_cut(error.fix, _PART_BYTES)
    )
    status = common_pb2.RpcStatus(code=status_of(error).value[0], message=message_of(error))
    status.details.add().Pack(detail)
    return ((DETAILS_KEY, status.SerializeToString()),)


def error_of(error: FailedCall, *, peer: str) -> SluiceError:
    """The Sluice error behind a failed call; `peer` names the callee in the message."""
    detail = _details(error)
    if detail is None:
        message = error.details() or error.code().name
        kind = SluiceError if _TOO_LARGE in message else _KIND_OF.get(error.code(), SluiceError)
        return kind(f"{peer}: {message}")
    kind = _KINDS.get(detail.kind) or _KIND_OF.get(error.code(), SluiceError)
    message, tail = error.details() or detail.reason, f"; {detail.fix}"
    if message.endswith(tail):
        return kind(f"{peer}: {message.removesuffix(tail)}", fix=detail.fix)
    made = kind(
        f"{peer}: {message}"
    )  # the kind's usual fix; the error's own fix stands in the message, unless it was cut off
    made.fix = detail.fix
    return made


def _details(error: FailedCall) -> common_pb2.ErrorDetails | None:
    """The details that the callee sent with the error; None without details, or for bytes that are no details."""
    detail = common_pb2.ErrorDetails()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status = common_pb2.RpcStatus.FromString(value)
                if any(packed.Unpack(detail) for packed in status.details):
                    return detail
            except DecodeError:
                return None  # bytes of another kind of server, whose status and message still say what is wrong
    return None


def _cut(text: str, most_bytes: int) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= most_bytes else data[: most_bytes - 3].decode(errors="ignore") + "…"
