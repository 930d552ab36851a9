"""An error crosses the wire whole: kind, reason, fix; and arrives from servers that know nothing of that."""

import dataclasses
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from sluice import errors
from sluice.errors import (
    DataError,
    Forbidden,
    InvalidRequest,
    LaunchError,
    NotReady,
    Overloaded,
    SluiceError,
    Unavailable,
)
from sluice.rpc.error_status import DETAILS_KEY, error_of, known, message_of, status_of, trailers_of

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SluiceError)]


@dataclasses.dataclass
class Failed:
    """A failed call."""

    status: grpc.StatusCode
    message: str | None
    trailers: tuple[tuple[str, Any], ...] = ()

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str | None:
        return self.message

    def trailing_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self.trailers


def crossed(error: SluiceError) -> SluiceError:
    return error_of(Failed(status_of(error), message_of(error), trailers_of(error)), peer="peer")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_arrives_as_itself_with_its_fix(kind: type[SluiceError]) -> None:
    arrived = crossed(kind("queue: must be open, is shut", fix="open it"))
    assert type(arrived) is kind
    assert (arrived.status, arrived.reason, arrived.fix) == (
        kind.status,
        "peer: queue: must be open, is shut",
        "open it",
    )
    assert str(arrived) == "peer: queue: must be open, is shut; open it"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_has_a_status_and_a_fix_of_last_resort_that_is_no_part_of_its_message(kind: type[SluiceError]) -> None:
    arrived = crossed(kind("queue: shut"))
    assert arrived.fix == kind.usual_fix != ""
    assert str(arrived) == "peer: queue: shut"


def test_a_kind_of_a_service_s_own_arrives_as_the_one_it_is_based_on() -> None:
    class Forgot(Unavailable):
        pass

    assert type(crossed(Forgot("gone"))) is Unavailable


def test_other_errors_are_the_request_s_fault_or_ours() -> None:
    assert type(known(ValueError("must be odd"))) is InvalidRequest
    assert (type(known(KeyError())), str(known(KeyError()))) == (SluiceError, "KeyError")


@pytest.mark.parametrize("letter", ["x", "ü", "語"])
def test_a_long_message_stays_below_the_limit_of_grpc_for_metadata(letter: str) -> None:
    error = DataError(letter * 100_000, fix=letter * 100_000)
    metadata_bytes = len(quote(message_of(error))) + len(b64encode(trailers_of(error)[0][1]))
    assert 4_000 < metadata_bytes < 8_000
    assert crossed(error).reason.endswith("…")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.CANCELLED, Unavailable),
        (grpc.StatusCode.PERMISSION_DENIED, Forbidden),
        (grpc.StatusCode.UNIMPLEMENTED, NotReady),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNKNOWN, SluiceError),
    ],
)
def test_a_server_that_is_not_sluice_s_is_understood_by_its_status(
    status: grpc.StatusCode, kind: type[SluiceError]
) -> None:
    for trailers in ((), ((DETAILS_KEY, b"\xff\xff"),)):
        arrived = error_of(Failed(status, "no", trailers), peer="peer")
        assert (type(arrived), str(arrived)) == (kind, "peer: no")
    assert type(error_of(Failed(grpc.StatusCode.INTERNAL, None), peer="peer")) is not LaunchError


def test_a_message_over_the_limit_of_grpc_is_no_back_pressure() -> None:
    words = "CLIENT: Received message larger than max (200000000 vs. 4194304)"
    error = error_of(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, words), peer="reward-0")
    assert type(error) is SluiceError
    assert isinstance(error_of(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy"), peer="reward-0"), Overloaded)
