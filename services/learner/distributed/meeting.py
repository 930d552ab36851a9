"""How the machines of a learner meet when an engine has placed them, each on some node.

The first machine, which will have rank 0, opens torch's store on a free port of its own address and tells the coordinator
where, under the name of the round: the launcher gives each start of the machines a name of its own. The others ask the
coordinator for that round, connect to the store and say there that they have come. When all have come, the first machine
lets everybody go on to torchrun, which takes the same store.

 who waits                what for                                  unblocked by
 the first machine        every other machine, in the store         the last one's coming, or the deadline
 another machine          the meeting point, from the coordinator   the first machine's telling, or the deadline; the
                                                                    coordinator answers by then, or after HOLD_S
 another machine          the store to be reached                   a connection, or CONNECT_S
 another machine          the other machines, in the store          the last one's coming, or the deadline
The deadline has room for the wait for a place of the last machine. The launcher ends a round as soon as one of its machines
ends, so that nobody waits for a machine that is gone.
"""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistNetworkError, DistStoreError

from sluice.addresses import host_of, joined
from sluice.errors import Expired

HOLD_S = 5.0
"""How long the coordinator may keep a question that it cannot answer yet: it answers as soon as it can."""

ASK_EVERY_S = 0.5
"""The least time between two questions: a coordinator of an older Sluice answers at once, with nothing."""

TELL_EVERY_S = 2.0
"""A coordinator that is started again has forgotten the meeting point for no longer than this."""

CONNECT_S = 20.0
"""The store is there before the coordinator knows of it; a lost packet is sent again within this time."""

_ALL_ARE_HERE = "all"


class Board(Protocol):
    """The coordinator: who tells gives an endpoint; who asks gives none, and gets "" where nobody tells within `wait_s`."""

    def __call__(self, endpoint: str, /, *, wait_s: float = 0.0) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """All machines of one round. The first machine's process serves the store for as long as it keeps the meeting."""

    endpoint: str
    """host:port of the store."""
    store: TCPStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One machine's place among the machines of a round."""

    round_name: str
    number: int
    """0: the first machine."""
    machines: int
    timeout_s: float

    @property
    def others(self) -> Sequence[int]:
        """The machines that the first one waits for."""
        return range(1, self.machines)

    def key(self, what: int | str) -> str:
        """A key in the store: a foreign round's machine does not count."""
        return f"{self.round_name}/{what}"


def meet(place: Place, board: Board, *, host: str) -> Meeting:
    """Returns when all machines are here; `host` is how the others reach this machine. Raises Expired."""
    until_s = time.monotonic() + place.timeout_s
    return _hold(place, board, host, until_s) if place.number == 0 else _join(place, board, until_s)


def _hold(place: Place, board: Board, host: str, until_s: float) -> Meeting:
    # `multi_tenant`: torchrun's store for the same port, in this process, shares this one's server.
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    endpoint = joined(host, store.port)
    while True:
        board(endpoint)
        missing = [number for number in place.others if not store.check([place.key(number)])]
        if not missing:
            store.set(place.key(_ALL_ARE_HERE), "")
            return Meeting(endpoint=endpoint, store=store)
        _raise_when_late(place, until_s, f"for machine {', '.join(map(str, missing))}")
        _wait(store, [place.key(missing[0])], until_s=until_s)


def _join(place: Place, board: Board, until_s: float) -> Meeting:
    while True:
        asked_s = time.monotonic()
        if endpoint := board("", wait_s=max(0.0, min(HOLD_S, until_s - asked_s))):
            break
        _raise_when_late(place, until_s, "to hear from the coordinator where the first machine is")
        time.sleep(max(0.0, asked_s + ASK_EVERY_S - time.monotonic()))
    store = _connect(place, endpoint)
    store.set(place.key(place.number), "")
    while not _wait(store, [place.key(_ALL_ARE_HERE)], until_s=until_s):
        _raise_when_late(place, until_s, "for all other machines")
    return Meeting(endpoint=endpoint, store=store)


def _connect(place: Place, endpoint: str) -> TCPStore:
    host, port = host_of(endpoint), int(endpoint.rpartition(":")[2])
    try:
        return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S))
    except (DistNetworkError, DistStoreError) as error:
        raise Expired(
            f"machine {place.number} of the learner, on {socket.gethostname()}, did not reach the first machine at "
            f"{endpoint} within {CONNECT_S:g} s ({str(error).splitlines()[0]})",
            fix="network.advertise must name each machine as the others reach it, and their ports must be open to each other",
        ) from error


def _wait(store: TCPStore, keys: list[str], *, until_s: float) -> bool:
    """Whether the keys are in the store within TELL_EVERY_S, or until then. Raises DistNetworkError when the store is gone."""
    limit_s = min(TELL_EVERY_S, max(until_s - time.monotonic(), 0.001))
    try:
        store.wait(keys, timedelta(seconds=limit_s))
    except DistStoreError:  # torch's word for a wait that was too long
        return False
    return True


def _raise_when_late(place: Place, until_s: float, what: str) -> None:
    if time.monotonic() >= until_s:
        raise Expired(
            f"machine {place.number} of the learner, on {socket.gethostname()}, waited {place.timeout_s:g} s {what} of its "
            f"{place.machines} machines",
            fix="launch.place_timeout_s and launch.ready_timeout_s together are the limit; the logs say what became of each",
        )
