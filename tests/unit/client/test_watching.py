"""Where a watch goes on after a break."""

from typing import Any

import grpc

from sluice.client.watching import Place
from sluice.rpc.event_stream import PROCESS_KEY, SEQUENCE_KEY
from sluice.v1 import coordinator_pb2 as pb
from tests.unit.rpc.test_errors import Failed

BROKEN: Any = Failed(grpc.StatusCode.UNAVAILABLE, "socket closed")


def begun() -> Place:
    place = Place(after_sequence=0, process="")
    place.begin(((PROCESS_KEY, "a"), (SEQUENCE_KEY, "7")))
    return place


def test_it_goes_on_where_the_stream_began_or_after_the_last_event() -> None:
    place = begun()
    assert place.request() == pb.WatchEventsRequest(after_sequence=7, process="a")
    place.move(pb.WatchEventsResponse(sequence=8, process="a", kind="warning"))
    assert place.request() == pb.WatchEventsRequest(after_sequence=8, process="a")


def test_only_a_stream_that_has_begun_is_begun_again_and_not_after_a_refusal() -> None:
    refused: Any = Failed(grpc.StatusCode.PERMISSION_DENIED, "no")
    assert begun().is_broken(BROKEN)
    assert not begun().is_broken(refused)
    assert not Place(after_sequence=0, process="").is_broken(BROKEN)


def test_the_final_state_ends_it() -> None:
    place = begun()
    place.move(pb.WatchEventsResponse(kind="run_state", labels={"state": "paused"}))
    assert not place.run_has_ended
    place.move(pb.WatchEventsResponse(kind="run_state", labels={"state": "starved"}))
    assert place.run_has_ended
