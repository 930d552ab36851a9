"""What a launcher says, for tests that look at nothing else of its view."""

from sluice.v1 import coordinator_pb2 as pb


class Said:
    """A view of which only the messages count."""

    def __init__(self) -> None:
        self.said = list[str]()

    def message(self, text: str) -> None:
        self.said.append(text)

    def update(self, status: pb.GetStatusResponse) -> None: ...
    def event(self, event: pb.WatchEventsResponse) -> None: ...
    def close(self) -> None: ...
