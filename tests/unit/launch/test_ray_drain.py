"""One watch a cluster asks which nodes Ray drains, and tells who runs there."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from sluice.errors import Unavailable
from sluice.launch.engines.ray_drain import LOOK_EVERY_S, watch_drains
from sluice.testing import ManualClock


@dataclass
class Resident:
    node: str
    alive: bool = True
    heard: list[str] = field(default_factory=list)

    @property
    def node_id(self) -> str:
        return f"id of {self.node}"

    def drain(self, why: str) -> None:
        self.heard.append(why)


async def test_who_runs_on_a_node_that_is_drained_hears_of_it_and_nobody_is_asked_while_nothing_runs() -> None:
    clock, asked, draining = ManualClock(), list[float](), dict[str, float]()
    tasks = [Resident("n1"), Resident("n1", alive=False), Resident("n2")]

    async def ask() -> Mapping[str, float]:
        asked.append(clock.now())
        return draining

    watch = asyncio.create_task(watch_drains(ask, lambda: tasks, clock=clock))
    await asyncio.sleep(0)
    await clock.advance(3 * LOOK_EVERY_S)
    assert len(asked) == 3, "once for all tasks"
    draining["id of n1"] = 0.0
    await clock.advance(LOOK_EVERY_S)
    draining["id of n2"] = 1.0  # long ago
    await clock.advance(LOOK_EVERY_S)
    heard = ["Ray drains node n1"], [], ["Ray drains node n2, which has 0 s left"]
    assert [task.heard[:1] for task in tasks] == list(heard)
    for task in tasks:
        task.alive = False
    await clock.advance(3 * LOOK_EVERY_S)
    assert len(asked) == 5
    watch.cancel()


async def test_a_head_that_does_not_answer_is_asked_again() -> None:
    clock, answers, task = ManualClock(), iter([Unavailable("no head"), Unavailable("no head"), None]), Resident("n1")

    async def ask() -> Mapping[str, float]:
        if (failure := next(answers)) is not None:
            raise failure
        return {"id of n1": 0.0}

    watch = asyncio.create_task(watch_drains(ask, lambda: [task], clock=clock))
    await asyncio.sleep(0)
    await clock.advance(3 * LOOK_EVERY_S)
    assert task.heard == ["Ray drains node n1"]
    watch.cancel()
