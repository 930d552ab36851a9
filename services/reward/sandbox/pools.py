"""Two pools of workers, with the network and without: a verifier that may use it shares no process with one that may not.

The pool with the network exists where a route asks for it.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from services.reward.ports import Graded, Job
from services.reward.sandbox.grader_handle import Limits
from services.reward.sandbox.pool import GraderPool


class GraderPools:
    """`Graders`. Open it with `GraderPools.open`."""

    def __init__(self, pools: Mapping[bool, GraderPool]) -> None:
        self._pools = pools

    @classmethod
    @asynccontextmanager
    async def open(cls, *, workers: int, limits: Limits, network: bool) -> AsyncIterator["GraderPools"]:
        """`workers` of a kind; those with the network iff `network`."""
        async with AsyncExitStack() as stack:
            kinds = (False, True) if network else (False,)
            yield cls(
                {
                    kind: await stack.enter_async_context(
                        GraderPool.open(workers=workers, limits=replace(limits, network=kind))
                    )
                    for kind in kinds
                }
            )

    @property
    def capacity(self) -> int:
        """Groups it grades at once; the graders of a route follow one another."""
        return self._pools[False].capacity

    @property
    def running(self) -> int:
        """Groups being graded now."""
        return sum(pool.running for pool in self._pools.values())

    async def grade(self, job: Job) -> Graded:
        """Grades a group. Raises Overloaded when the queue of its pool is full."""
        return await self._pools[job.network].grade(job)
