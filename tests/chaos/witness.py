"""A thread that watches a run from outside: who lives, what the coordinator says, when everybody is back after a strike.

It looks every LOOK_S until `close`, wakes what is to be thawed, and waits for nobody longer than CALL_S.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
import psutil

from sluice.rpc.channel import open_blocking_channel
from sluice.rpc.credentials import Credentials
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc
from tests.chaos.plan import LAUNCHED, LIAR, Victim
from tests.chaos.victims import by_role, send

LOOK_S = 0.1
CALL_S = 1.0

SERVICE = {
    Victim.ROLLOUT: pb.SERVICE_ROLE_ROLLOUT,
    Victim.REWARD: pb.SERVICE_ROLE_REWARD,
    Victim.LEADER: pb.SERVICE_ROLE_LEARNER,
    Victim.FOLLOWER: pb.SERVICE_ROLE_LEARNER,
    Victim.TORCHRUN: pb.SERVICE_ROLE_LEARNER,
}
"""Which service has another address once this victim was replaced."""


@dataclass(kw_only=True, slots=True)
class Recovery:
    """What became of one strike. Seconds since then; None: not seen before the run ended."""

    victims: list[str]
    struck_s: float
    """Unix time."""
    thawed_s: float
    """Unix time at which the last frozen one, or the link, goes on."""
    former: dict[Victim, tuple[int, str]]
    """Process id and address of those that have to be replaced."""
    back_s: float | None = None
    """Everybody is READY again."""
    step_s: float | None = None
    """The next step is committed."""


class Witness:
    """Its attributes may be read at any time; `recoveries` and thaws are handed to it."""

    def __init__(
        self,
        *,
        address: str,
        processes: Callable[[], list[psutil.Process]],
        committed_s: Callable[[], Iterable[float]],
        forgetful: bool,
        credentials: Credentials,
    ) -> None:
        """`committed_s` gives the Unix times of all steps; with a `forgetful` Redis the coordinator may go back."""
        self._address, self._processes, self._committed_s = address, processes, committed_s
        self._forgetful, self._credentials = forgetful, credentials
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)
        self._thaws: list[tuple[float, psutil.Process]] = []
        self.recoveries: list[Recovery] = []
        self.seen: dict[tuple[int, float], psutil.Process] = {}
        """Every process there ever was, by number and birth."""
        self.alive: dict[Victim, psutil.Process] = {}
        self.status = pb.GetStatusResponse()
        """The coordinator's last answer."""
        self.answers = False
        """Whether it answered the last time."""
        self.addresses: set[str] = set()
        """Of every service there ever was."""
        self.quarantined: set[str] = set()
        """Services that the coordinator named as getting no work because their answers failed."""
        self.went_back: list[str] = []
        """Numbers that must only grow, and did not."""

    def start(self) -> None:
        """From now on."""
        self._thread.start()

    def close(self) -> None:
        """No more looks."""
        self._closed.set()
        self._thread.join()

    @property
    def watches(self) -> bool:
        """False when it has failed, or was closed."""
        return self._thread.is_alive()

    def note(self, recovery: Recovery) -> None:
        """Watches out for the end of what a strike has done."""
        with self._lock:
            self.recoveries.append(recovery)

    def thaw_later(self, process: psutil.Process, *, at_s: float) -> None:
        """Sends SIGCONT at a Unix time."""
        with self._lock:
            self._thaws.append((at_s, process))

    def address_of(self, victim: Victim) -> str:
        """host:port of the victim's service, as the coordinator last said; empty for who is none."""
        here = {service.role: service.address for service in self._honest()}
        return here.get(SERVICE.get(victim, pb.SERVICE_ROLE_UNSPECIFIED), "")

    def _honest(self) -> list[pb.ServiceStatus]:
        """The services that the launcher keeps, of which there is one a role."""
        return [service for service in self.status.services if not service.service_id.startswith(LIAR)]

    def _watch(self) -> None:
        with contextlib.closing(open_blocking_channel(self._address, credentials=self._credentials)) as channel:
            stub = coordinator_pb2_grpc.CoordinatorServiceStub(channel)
            while not self._closed.wait(LOOK_S):
                self._look(stub)

    def _look(self, stub: coordinator_pb2_grpc.CoordinatorServiceStub) -> None:
        found = self._processes()
        self.seen |= {(process.pid, process.create_time()): process for process in found}
        self.alive = by_role(found)
        try:
            status = stub.GetStatus(pb.GetStatusRequest(), timeout=CALL_S)
        except grpc.RpcError:
            self.answers = False
        else:
            self._compare(status)
            self.status, self.answers = status, True
        now = time.time()
        with self._lock:
            for process in [process for at_s, process in self._thaws if at_s <= now]:
                send(process, signal.SIGCONT)
            self._thaws = [thaw for thaw in self._thaws if thaw[0] > now]
            for recovery in self.recoveries:
                self._follow(recovery, now)

    def _compare(self, status: pb.GetStatusResponse) -> None:
        self.addresses |= {service.address for service in status.services}
        self.quarantined |= {wait.who for wait in status.waits if "quarantined: no work for" in wait.why}
        if self._forgetful:
            return
        if status.version.number < self.status.version.number:
            self.went_back.append(f"status: version {status.version.number} after {self.status.version.number}")
        if status.step < self.status.step:
            self.went_back.append(f"status: step {status.step} after {self.status.step}")

    def _follow(self, recovery: Recovery, now: float) -> None:
        if recovery.step_s is None:
            later = [at_s - recovery.struck_s for at_s in self._committed_s() if at_s > recovery.struck_s]
            recovery.step_s = min(later, default=None)
        if recovery.back_s is None and now >= recovery.thawed_s and self._all_are_back(recovery):
            recovery.back_s = now - recovery.struck_s

    def _all_are_back(self, recovery: Recovery) -> bool:
        ready = {one.role: one.address for one in self._honest() if one.state == pb.SERVICE_STATE_READY}
        if not self.answers or not self.alive.keys() >= set(LAUNCHED) or not ready.keys() >= set(SERVICE.values()):
            return False
        return all(
            victim in self.alive
            and self.alive[victim].pid != pid
            and (victim not in SERVICE or ready[SERVICE[victim]] != address)
            for victim, (pid, address) in recovery.former.items()
        )
