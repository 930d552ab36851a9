"""Two processes of a part talk in lines of JSON over a pair of sockets: what arrives is data, whatever the other one sends."""

import json
import socket
from typing import Any

MOST_BYTES = 64 << 20
"""Of one line. Chosen: above the manifest of any model here, and all samples of a step."""


class Lines:
    """One end. Not for several threads."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self._incoming = end, end.makefile("rb")

    def send(self, value: Any) -> None:
        """Sends what JSON has words for; a float is read as the same float."""
        self._end.settimeout(None)
        self._end.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, *, within_s: float | None = None) -> Any:
        """The next value. Raises TimeoutError after `within_s` of silence, EOFError when the other process has ended."""
        self._end.settimeout(within_s)
        line = self._incoming.readline(MOST_BYTES)
        if not line.endswith(b"\n"):
            raise EOFError(
                "the other process has ended" if len(line) < MOST_BYTES else f"a line over {MOST_BYTES} bytes"
            )
        return json.loads(line)

    def close(self) -> None:
        """This process's hold of this end."""
        self._incoming.close()
        self._end.close()


def line_pair() -> tuple[Lines, Lines]:
    """Both ends, before a fork; each process closes the one that is not its own."""
    one, other = socket.socketpair()
    return Lines(one), Lines(other)
