"""Where a watch of events stands, so that it goes on after a break: the connection's, or the coordinator's own restart."""

from collections.abc import Iterable
from typing import Any

import grpc

from sluice.client.calls import Event, RunState
from sluice.rpc.error_status import FailedCall
from sluice.rpc.event_stream import PROCESS_KEY, SEQUENCE_KEY
from sluice.v1 import coordinator_pb2 as pb

STREAM_TIMEOUT_S = 3600.0
"""A stream is begun anew after this long, so that one which hangs unnoticed does not hang for ever."""

PATIENCE_S = 120.0
"""How long a coordinator may be gone: as long as its services wait for it."""

_BROKEN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_FINAL = frozenset(str(state) for state in RunState if state.final)


class Place:
    """Behind the last event seen, or where the first stream began."""

    def __init__(self, *, after_sequence: int, process: str, launcher: bool = False) -> None:
        self._sequence, self._process, self._launcher = after_sequence, process, launcher
        self.run_has_ended = False

    def request(self) -> pb.WatchEventsRequest:
        """Everything behind it."""
        return pb.WatchEventsRequest(after_sequence=self._sequence, process=self._process, launcher=self._launcher)

    def begin(self, metadata: Iterable[Any] | None) -> None:
        """A stream has begun, with this initial metadata."""
        told = dict(metadata or ())
        if PROCESS_KEY in told and SEQUENCE_KEY in told:
            self._process, self._sequence = told[PROCESS_KEY], int(told[SEQUENCE_KEY])

    def move(self, event: Event) -> None:
        """`event` was seen."""
        self._sequence, self._process = event.sequence, event.process
        self.run_has_ended = event.kind == "run_state" and event.labels.get("state", "") in _FINAL

    def is_broken(self, error: FailedCall) -> bool:
        """Whether watching again may help: not before the first stream has begun."""
        return bool(self._process) and error.code() in _BROKEN
