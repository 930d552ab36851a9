"""The parts of one run's coordinator, wired, for the servicer."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.coordinator.api.learner_meetings import LearnerMeetings
from services.coordinator.api.learner_seat import LearnerSeat
from services.coordinator.api.scale_orders import ScaleOrders
from services.coordinator.episodes.player import Player
from services.coordinator.groups.assignment import Assigner
from services.coordinator.groups.conductor import Conductor
from services.coordinator.loggers.all_loggers import Loggers
from services.coordinator.prompts.difficulty import Difficulty
from services.coordinator.prompts.feed import PromptFeed
from services.coordinator.recovery.repair import Repair
from services.coordinator.recovery.rollback import Rollbacks
from services.coordinator.run.commits import Commits
from services.coordinator.run.evaluation import Evaluator
from services.coordinator.run.lifecycle import Lifecycle
from services.coordinator.run.stall import StallWatch
from services.coordinator.state.cache_use import CacheUse
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from services.coordinator.storage.redis_store import Store
from services.coordinator.weights.push import WeightPush
from services.coordinator.wire.clients import Clients
from services.coordinator.wire.messages import ZstdGroups
from sluice.model_identity import ModelIdentity
from sluice.telemetry.traces.process_tracer import CLOSE_WITHIN_S

if TYPE_CHECKING:
    from services.coordinator.agents.gateway import Gateway


@dataclass(kw_only=True, slots=True)
class RunParts:
    """A run's memory, its durable records, and the parts that act on both."""

    run: RunContext
    records: Records
    store: Store
    """The store of `records`, here with the methods that only the owning process may call."""
    codec: ZstdGroups
    identity: ModelIdentity
    unique_name: str
    """The name that no other run has."""
    loggers: Loggers
    clients: Clients
    prompts: PromptFeed
    conductor: Conductor
    assigner: Assigner
    push: WeightPush
    commits: Commits
    evaluator: Evaluator
    evaluates_only: bool
    """Whether rollouts serve the model folder's own weights, because there is no learner."""
    lifecycle: Lifecycle
    stall: StallWatch
    rollbacks: Rollbacks
    learner: LearnerSeat
    repair: Repair
    cache_use: CacheUse
    player: Player | None
    """Plays episodes; None without environments."""
    sampler: Difficulty | None
    """None: the prompts come in their order."""
    gateway: "Gateway | None"
    """Where agents take episodes; None without an environment `agent`."""
    meetings: LearnerMeetings = field(default_factory=LearnerMeetings)
    scale_orders: ScaleOrders = field(default_factory=ScaleOrders)
    launchers: int = 0
    """Launchers that watch events now; a launcher starts and ends services for `Scale`."""

    async def close(self) -> None:
        """Closes channels and connections, each of them whatever becomes of the others."""
        async with contextlib.AsyncExitStack() as closing:
            closing.push_async_callback(asyncio.to_thread, self.run.tracer.close, within_s=CLOSE_WITHIN_S)
            closing.push_async_callback(self.store.close)
            closing.push_async_callback(self.clients.close)
            if self.player is not None:
                closing.push_async_callback(
                    self.player.close
                )  # over the clients' channels, so it is called before them
            closing.push_async_callback(self.loggers.close)
            closing.push_async_callback(self.repair.break_off)  # it writes to the store, so it ends before

    async def roll_back(self) -> None:
        """Makes the requested rollback, once nothing is booked any more. The process has to end afterwards."""
        self.learner.vacate()
        await self.assigner.close()
        await self.commits.close()
        await self.repair.close()
        await self.rollbacks.make()
