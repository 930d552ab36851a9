"""Two pools of workers, with the network and without: a verifier with the network shares no process with one without.

The pool with the network exists only where a route asks for the network.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from services.reward.ports import Graded, Job
from services.reward.sandbox.grader_handle import Limits
from services.reward.sandbox.pool import GraderPool


class GraderPools:
    """`Graders` over both pools. `GraderPools.open` makes them."""

    def __init__(self, pools: Mapping[bool, GraderPool]) -> None:
        self._pools = pools

    @classmethod
    @asynccontextmanager
    async def open(cls, *, workers: int, limits: Limits, network: bool) -> AsyncIterator["GraderPools"]:
        """Opens a pool of `workers` without the network, and iff `network` a second pool with the network."""
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
        """Groups that the pools grade at once; the graders of a route follow one another."""
        return self._pools[False].capacity

    @property
    def running(self) -> int:
        """Groups that are being graded."""
        return sum(pool.running for pool in self._pools.values())

    async def grade(self, job: Job) -> Graded:
        """Grades a group in the pool that fits the job. Raises Overloaded when that pool's queue is full."""
        return await self._pools[job.network].grade(job)
