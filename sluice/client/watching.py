"""The position of a watch of events, so that the watch goes on after a broken connection or a restarted coordinator."""

from collections.abc import Iterable
from typing import Any

import grpc

from sluice.client.calls import Event, RunState
from sluice.rpc.error_status import FailedCall
from sluice.rpc.event_stream import PROCESS_KEY, SEQUENCE_KEY
from sluice.v1 import coordinator_pb2 as pb

STREAM_TIMEOUT_S = 3600.0
"""A stream is opened anew after this long, so that a stream that hangs unnoticed does not hang for ever."""

PATIENCE_S = 120.0
"""How long a coordinator may be gone: as long as the run's services wait for a coordinator."""

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
    """The position behind the last event seen; before any event, the position where the first stream began."""

    def __init__(self, *, after_sequence: int, process: str, launcher: bool = False) -> None:
        self._sequence, self._process, self._launcher = after_sequence, process, launcher
        self.run_has_ended = False

    def request(self) -> pb.WatchEventsRequest:
        """The request for every event behind this position."""
        return pb.WatchEventsRequest(after_sequence=self._sequence, process=self._process, launcher=self._launcher)

    def begin(self, metadata: Iterable[Any] | None) -> None:
        """Takes the position from the initial metadata of a stream that has begun."""
        told = dict(metadata or ())
        if PROCESS_KEY in told and SEQUENCE_KEY in told:
            self._process, self._sequence = told[PROCESS_KEY], int(told[SEQUENCE_KEY])

    def move(self, event: Event) -> None:
        """Moves the position behind `event`."""
        self._sequence, self._process = event.sequence, event.process
        self.run_has_ended = event.kind == "run_state" and event.labels.get("state", "") in _FINAL

    def is_broken(self, error: FailedCall) -> bool:
        """Whether the error broke a stream that had begun, so that watching again may help."""
        return bool(self._process) and error.code() in _BROKEN
