"""A learner's sender and the coordinator's pushes in this process, rollouts in processes of their own, gloo between them.

Real are the plan, the pushes, the calls over gRPC with tokens, both ends of every transfer. Missing are models, batches and
heartbeats: `lose` says what the silence of a process would say some seconds later.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.push_times import PushTimes
from services.coordinator.weights.push import WeightPush
from services.coordinator.wire.clients import Clients
from services.learner.control.publisher_state import PublisherState
from services.learner.control.servicer import LearnerServicer
from sluice.clock import SystemClock
from sluice.rpc import access
from sluice.rpc.credentials import load_credentials
from sluice.rpc.tokens import make_tokens
from sluice.testing import assert_eventually
from sluice.weights.deltas import Deltas
from sluice.weights.sender import WeightSender
from sluice.weights.snapshot import Snapshot
from tests.integration.relay_rollout import ANSWER_S, RolloutProcess
from tests.integration.weight_cases import BUCKET_BYTES, random_snapshot, stepped_snapshot
from tests.rack import Rack
from tests.unit.coordinator.fakes import Stage, make_config


class RelayFleet:
    """To be entered; rollouts are known by name."""

    def __init__(
        self,
        folder: Path,
        *,
        rack: Rack | None = None,
        total_bytes: int = 1 << 20,
        bucket_bytes: int = BUCKET_BYTES,
        deltas: bool = False,
        **weights: Any,
    ) -> None:
        """Without a rack everybody is on loopback and only says that it is on another machine. With `deltas` versions differ
        little, and travel as what has changed."""
        make_tokens(folder, private_network=True)
        self._folder, self._rack, self.total_bytes, self._bucket_bytes = folder, rack, total_bytes, bucket_bytes
        here = rack.here if rack else "127.0.0.1"
        self._deltas = deltas
        self.sender = WeightSender(
            backend="auto", host=here, bind=here, deltas=Deltas(most_share=0.5) if deltas else None
        )
        weights = {"timeout_s": 2.0, "encoding": "delta" if deltas else "dense", **weights}
        config = make_config(**{f"weights__{key}": value for key, value in weights.items()})
        run = dataclasses.replace(Stage(config).run, clock=SystemClock())
        self.fleet, self.events, self.times = run.fleet, run.events, PushTimes()
        self._clients = Clients(load_credentials(folder / "coordinator", role=access.Role.COORDINATOR), vocabulary=10)
        state = PublisherState(self.sender, world_size=1, backend="gloo")
        self._learner_service = LearnerServicer(state, config=config, run_dir=folder, wake=lambda: None)
        self._push = WeightPush(run, self, times=self.times, prober=None)
        self._learner = self._member("learner", Role.LEARNER, address="-", host=here)
        self.rollouts: dict[str, RolloutProcess] = {}
        self.members: dict[str, Member] = {}
        self.newest = -1
        """The number of the newest version."""

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator["RelayFleet"]:
        """Pushes run within."""
        pushing = asyncio.create_task(self._push.run())
        try:
            yield self
        finally:
            pushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pushing
            await self._clients.close()
            for rollout in self.rollouts.values():
                rollout.kill()
            await asyncio.to_thread(self.sender.close)

    async def add(self, *names: str) -> None:
        """Rollouts that join, each on a machine of its own; `host:name` says on which one."""
        started = [self._start(name) for name in names]
        for name, rollout in zip(names, started, strict=True):
            address = await asyncio.to_thread(rollout.started)
            self.rollouts[name] = rollout
            host = name.partition(":")[0]
            self.members[name] = self._member(name, Role.ROLLOUT, address=address, host=host)

    def publish(self) -> None:
        """The learner has a new version."""
        self.newest += 1
        snapshot = self._snapshot()
        self.sender.publish(snapshot)
        self._learner.version = snapshot.manifest.version
        self.fleet.notify_all()

    async def spread(self) -> None:
        """Publishes a version, and waits until all have it."""
        self.publish()
        await self.all_hold_it()

    async def all_hold_it(self, *, but: str = "") -> None:
        """Returns when everybody serves the newest version, by its own account and with the learner's digest."""
        others = {name: member for name, member in self.members.items() if name != but}
        await assert_eventually(
            lambda: all(self._is_current(member) for member in others.values()),
            within_s=ANSWER_S,
            what=str(self.sources()),
        )
        digest = self._snapshot().manifest.digest
        assert {self.rollouts[name].serves() for name in others} == {(self.newest, digest)}

    async def push_ms(self) -> float:
        """Publishes a version; how long until the last rollout has it, in ms."""
        await self.spread()
        return max(member.push_ms for member in self.members.values())

    def sources(self) -> dict[str, str]:
        """Who sent each rollout what it holds."""
        return {name: member.source for name, member in self.members.items()}

    def chain(self) -> list[str]:
        """The rollouts in the order in which the newest version went through them; each sent to one other."""
        after = {source: name for name, source in self.sources().items()}
        assert len(after) == len(self.members), f"no chain: {self.sources()}"
        order = [after["learner"]]
        while order[-1] in after:
            order.append(after[order[-1]])
        return order

    async def lose(self, name: str) -> None:
        """Kills the process; the coordinator notices."""
        self.rollouts.pop(name).kill()
        self.fleet.lose(self.members.pop(name), "no heartbeat")

    def learner(self, member: Member) -> Any:
        """PushClients.learner: the learner's servicer without a wire."""
        return _Unwired(self._learner_service)

    def rollout(self, member: Member) -> Any:
        """PushClients.rollout."""
        return self._clients.rollout(member)

    def _snapshot(self) -> Snapshot:
        make = stepped_snapshot if self._deltas else random_snapshot
        return make(self.newest, total_bytes=self.total_bytes, bucket_bytes=self._bucket_bytes)

    def _is_current(self, member: Member) -> bool:
        return member.state is State.READY and member.version is not None and member.version.number == self.newest

    def _start(self, name: str) -> RolloutProcess:
        place = len(self.rollouts) if self._rack is None else self._rack.machines.index(name)
        return RolloutProcess(
            name,
            credentials=self._folder / "rollout",
            total_bytes=self.total_bytes,
            address=self._rack.addresses[place] if self._rack else "127.0.0.1",
            machine=name if self._rack else "",
        )

    def _member(self, name: str, role: Role, *, address: str, host: str) -> Member:
        member = Member(
            service_id=name,
            role=role,
            address=address,
            incarnation=f"{name}@{address}",
            capacity=1,
            last_beat_s=0.0,
            host=host,
            device="cpu",
        )
        self.fleet.register(member)
        return member


class _Unwired:
    def __init__(self, servicer: LearnerServicer) -> None:
        self._servicer = servicer

    async def OpenTransfer(self, request: Any, *, timeout: float) -> Any:
        return await asyncio.wait_for(self._servicer.OpenTransfer(request, None), timeout)  # type: ignore[arg-type]
