"""The services of a run, by role: which are started, with which GPUs, and how many there are as the run goes on.

 who waits               for what                                      unblocked by
 the learner's start     the rollouts that compute on its GPUs         their registration; launch.ready_timeout_s
Where rollouts and rewards are Deployments of Kubernetes (deployments.py), their pods come by themselves and only their number
is set here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from sluice.client import AsyncClient
from sluice.config.schema import Config
from sluice.errors import LaunchError, NotReady
from sluice.launch import deployments
from sluice.launch.autoscale import Autoscaler, autoscaler_of
from sluice.launch.commands import Command, learner_node_line, service_command
from sluice.launch.gpus import Gpus
from sluice.launch.keeper import Keeper, NoPlace
from sluice.v1 import coordinator_pb2 as pb

LOOK_EVERY_S = 1.0
_ROLLOUT, _READY = pb.SERVICE_ROLE_ROLLOUT, pb.SERVICE_STATE_READY


@dataclass(kw_only=True, slots=True)
class Fleet:
    """The services that the keeper keeps for one run."""

    config: Config
    run_id: str
    coordinator: str
    """host:port."""
    keeper: Keeper
    gpus: Gpus
    say: Callable[[str], None]
    check_only: bool
    evaluate_only: bool
    _autoscaler: Autoscaler | None = field(init=False)
    _told: int = field(init=False)
    """The number of rollouts that the coordinator was last told."""
    _carried_out: bool = field(default=True, init=False)
    """Whether there were as many rollouts once, as far as there is room."""
    _heard: int | None = field(default=None, init=False)
    """The number of rollouts that the last `scale` was about."""

    def __post_init__(self) -> None:
        self._autoscaler, self._told = autoscaler_of(self.config.launch), self.config.launch.rollouts

    async def start(self, registered: Callable[[], Awaitable[Collection[str]]]) -> None:
        """Has every service kept that the recipe asks for. `registered`: the services that the coordinator lists now."""
        launch = self.config.launch
        # A check needs one reward service. Without replicas here, the check asks the service that will grade the run.
        wanted = {"reward": min(1, launch.reward_replicas) if self.check_only else launch.reward_replicas}
        wanted |= {} if self.check_only else {"rollout": launch.rollouts}
        for role, replicas in wanted.items():
            await self._start_replicas(role, replicas)
        if self.check_only or self.evaluate_only:
            return
        if self.gpus.sharing:
            self.keeper.supervise("learner-after-rollouts", self._learner_after(self.gpus.sharing, registered))
        else:
            self.keeper.keep(self._command("learner", 0))
        for node_rank in range(1, launch.learner_nnodes if launch.engine == "local" else 1):
            line = learner_node_line(self.config, node_rank=node_rank, run_id=self.run_id)
            self.say(f"the learner waits {launch.ready_timeout_s:.0f} s for its machine {node_rank}: run there")
            self.say(f"  {line}")

    def step(self, event: pb.WatchEventsResponse) -> None:
        """Takes the event of a trained step."""
        if self._autoscaler is not None:
            self._autoscaler.step(event.values)

    async def follow_load(self, status: pb.GetStatusResponse, client: AsyncClient, *, now_s: float) -> None:
        """Asks the coordinator for more or fewer rollouts, so that whoever watches the run sees the change."""
        if self._autoscaler is None or status.state != pb.RUN_STATE_RUNNING:
            return
        kept = len(self.keeper.names("rollout"))
        if self._carried_out and kept < self._autoscaler.wished and not deployments.owner():  # one was given up
            self._autoscaler.wished = self._told = max(kept, self._autoscaler.least)
        ready = [one.running for one in status.services if one.role == _ROLLOUT and one.state == _READY]
        if (replicas := self._autoscaler.look(ready, now_s=now_s)) != self._told:  # also after a call that failed
            self.say(f"{replicas} rollout{'s' * (replicas != 1)} instead of {self._told} {self._autoscaler.why()}")
            self._carried_out = False
            self._heard = None
            try:
                await client.scale("rollout", replicas)
            except NotReady:
                if self._heard != replicas:  # no launcher was attached; otherwise `scale` has said why there are fewer
                    raise
            self._told = replicas

    async def scale(self, role: str, replicas: int) -> str:
        """Starts or ends replicas of a role until there are `replicas`; returns why there are fewer, empty if not."""
        if self._autoscaler is not None and role == "rollout" and replicas != self._autoscaler.wished:
            self._autoscaler = None
            self.say(f"{replicas} rollouts by request: from now on their number follows requests alone")
        self._heard = replicas if role == "rollout" else self._heard
        if owner := deployments.owner():
            return await self._scale_deployment(owner, role, replicas)
        running, refused = self.keeper.names(role), ""
        for name in sorted(running):
            if int(name.removeprefix(f"{role}-")) >= replicas:
                await self.keeper.end(name)
                self.gpus.give_back(name)
        for index in range(replicas):
            if f"{role}-{index}" not in running:
                try:
                    self.keeper.keep(self._command(role, index), requested=True)
                except LaunchError as error:
                    refused = str(error)
                    self.say(f"scale {role} {replicas}: {refused}")
                    if self._autoscaler is not None and role == "rollout":
                        self._autoscaler.most = max(index, self._autoscaler.least)
                    break
        self._carried_out |= role == "rollout"
        return refused

    async def _scale_deployment(self, owner: str, role: str, replicas: int) -> str:
        try:
            self.say(await asyncio.to_thread(deployments.scale, owner, role, replicas))
        except LaunchError as error:
            self.say(str(error))
            return str(error)
        return ""

    async def _start_replicas(self, role: str, replicas: int) -> None:
        owner, ready_s = deployments.owner(), self.config.launch.ready_timeout_s
        if owner and role == "rollout" and self._autoscaler is not None:  # it may have more from before this pod
            await self._scale_deployment(owner, role, replicas)
        if owner or not replicas:
            why = f"{owner}-{role} is a Deployment" if owner else f"launch.{role}_replicas is 0"
            self.say(f"{why}: waiting {ready_s:.0f} s for a {role} to register with {self.coordinator}")
        for index in range(0 if owner else replicas):
            self.keeper.keep(self._command(role, index))

    async def _learner_after(
        self, rollouts: frozenset[str], registered: Callable[[], Awaitable[Collection[str]]]
    ) -> None:
        """Keeps the learner once the rollouts on its GPUs have registered: until then they measure and take their memory."""
        now_s = time.monotonic()
        why = "the rollouts on its GPUs measure and take their memory first"
        self.keeper.no_place["learner"] = NoPlace(since_s=now_s, why=why)
        try:
            while rollouts - self.keeper.known and time.monotonic() < now_s + self.config.launch.ready_timeout_s:
                await asyncio.sleep(LOOK_EVERY_S)
                self.keeper.known.update(await registered())
        finally:
            self.keeper.no_place.pop("learner", None)
        self.keeper.keep(self._command("learner", 0))

    def _command(self, role: str, index: int) -> Command:
        """The command of a service. Raises LaunchError for a rollout that finds no free GPU."""
        return service_command(
            self.config,
            role,
            index=index,
            coordinator=self.coordinator,
            run_id=self.run_id,
            evaluate_only=self.evaluate_only,
            gpus=self.gpus.share(role, "learner" if role == "learner" else f"{role}-{index}"),
        )
