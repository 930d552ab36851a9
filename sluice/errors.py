"""The errors that others can cause. Each maps to one gRPC status in sluice/rpc/errors.py.

Our own broken invariants are `assert`s, not these. A message says where, the rule, the value and the fix.
"""


class SluiceError(Exception):
    """Base of every error with a message meant for a user."""


class ConfigError(SluiceError, ValueError):
    """The configuration cannot be used; one message per problem, joined by newlines."""


class DataError(SluiceError, ValueError):
    """A data set is missing, empty or malformed."""


class InvalidRequest(SluiceError, ValueError):
    """A call carries a value that can never be served (INVALID_ARGUMENT)."""


class Unauthenticated(SluiceError, ValueError):
    """The caller did not show who it is, or not credibly (UNAUTHENTICATED)."""


class Forbidden(SluiceError, ValueError):
    """The caller's role may not do this (PERMISSION_DENIED)."""


class NotReady(SluiceError):
    """The callee is in the wrong state for this call (FAILED_PRECONDITION)."""


class Fenced(SluiceError):
    """The caller was replaced by a newer one (ABORTED)."""


class Overloaded(SluiceError):
    """Back-pressure: try again later, elsewhere or with less (RESOURCE_EXHAUSTED)."""


class Unavailable(SluiceError):
    """The other side cannot be reached right now; retrying is right (UNAVAILABLE)."""


class Expired(SluiceError):
    """A deadline passed; the message names who waited for whom (DEADLINE_EXCEEDED)."""


class NotFound(SluiceError):
    """Nothing under this name (NOT_FOUND)."""


class TransferError(SluiceError):
    """A weight transfer failed or its bytes did not verify (DATA_LOSS)."""


class LaunchError(SluiceError):
    """A process or tool that the run needs could not be started or kept alive."""
