"""The errors that others can cause. Each error crosses the wire as one gRPC status (sluice/rpc/error_status.py).

A broken invariant of Sluice's own is an `assert`, not one of these errors. A message says where, the rule, the value and
the fix.
"""

from typing import ClassVar


class SluiceError(Exception):
    """Base of every error with a message meant for a user: `reason`, and `fix` where a fix is known.

    Where `reason` ends with the fix for this very error, `fix` says what usually helps against this kind of error.
    """

    status: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status."""
    usual_fix: ClassVar[str] = "the log of the process that answered has the details"

    def __init__(self, reason: str = "", *, fix: str = "") -> None:
        super().__init__(f"{reason}; {fix}" if fix else reason)
        self.reason, self.fix = reason, fix or self.usual_fix


class ConfigError(SluiceError, ValueError):
    """The configuration cannot be used; one message per problem, joined by newlines."""

    status = "INVALID_ARGUMENT"
    usual_fix = "change the setting that the message names"


class DataError(SluiceError, ValueError):
    """A data set is missing, empty or malformed."""

    status = "INVALID_ARGUMENT"
    usual_fix = "mend the data that the message names"


class InvalidRequest(SluiceError, ValueError):
    """A call carries a value that can never be served."""

    status = "INVALID_ARGUMENT"
    usual_fix = "change the request; it fails the same way each time"


class Unauthenticated(SluiceError, ValueError):
    """The caller showed no credentials, or credentials that the server does not know."""

    status = "UNAUTHENTICATED"
    usual_fix = "show credentials of the run: credentials=, --credentials or SLUICE_CREDENTIALS"


class Forbidden(SluiceError, ValueError):
    """The caller's role may not do this."""

    status = "PERMISSION_DENIED"
    usual_fix = "show credentials of a role that may; docs/security.md has the table"


class NotReady(SluiceError):
    """The callee is in the wrong state for this call."""

    status = "FAILED_PRECONDITION"
    usual_fix = "bring the run into the state that the call needs, then call again"


class Fenced(SluiceError):
    """The caller was replaced by a newer one."""

    status = "ABORTED"
    usual_fix = "end this process; a newer one has its place"


class Overloaded(SluiceError):
    """Back-pressure: try again later, elsewhere or with less."""

    status = "RESOURCE_EXHAUSTED"
    usual_fix = "call later, elsewhere or with less"


class Unavailable(SluiceError):
    """The other side cannot be reached right now; retrying is right."""

    status = "UNAVAILABLE"
    usual_fix = "call again later"


class Busy(Unavailable):
    """The other side is at work on what the call needs, and goes on by itself; the message says on what, and how far it is."""

    usual_fix = "call again; that the other side works takes no patience"


class DiskFull(Busy):
    """The other side waits for room on its disk, and goes on by itself; the message names the folder and the bytes."""

    usual_fix = "free space on the disk that the message names"


class Expired(SluiceError):
    """A deadline passed; the message names who waited for whom."""

    status = "DEADLINE_EXCEEDED"
    usual_fix = "allow more time, or find out why it takes so long with `sluice status`"


class NotFound(SluiceError):
    """Nothing exists under the given name."""

    status = "NOT_FOUND"
    usual_fix = "name something that exists"


class TransferError(SluiceError):
    """A weight transfer failed, or the bytes of a transfer did not verify."""

    status = "DATA_LOSS"
    usual_fix = "the transfer is tried again by itself; if it goes on, look at the network and the disk"


class WrongBytes(TransferError):
    """A source of weights sent other bytes than the learner published."""


class LaunchError(SluiceError):
    """A process or tool that the run needs could not be started or kept alive."""

    status = "INTERNAL"
    usual_fix = "the log of the process that is named has the cause"


def first_error(group: BaseExceptionGroup) -> BaseException:
    """The first exception inside nested groups: what to tell when tasks that belong together failed together."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
