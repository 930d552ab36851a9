"""The nodes that Ray drains - `ray drain-node`, a spot node's notice, SIGTERM to `ray start --block` - and whoever runs there.

 who waits       for what        unblocked by
 `watch_drains`  the next look   the clock, LOOK_EVERY_S; the engine's end
Ray's head knows which nodes it drains and tells nobody, so that it is asked: once for all tasks, and only while there are any.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import structlog

from sluice.clock import Clock
from sluice.errors import Unavailable

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
"""Chosen: little beside the 30 s that the shortest notices of clouds, and Ray's own on SIGTERM, leave."""


class Resident(Protocol):
    """A task on a node of Ray."""

    @property
    def node(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    def drain(self, why: str) -> None: ...


async def watch_drains(
    draining: Callable[[], Awaitable[Mapping[str, float]]], tasks: Callable[[], Iterable[Resident]], *, clock: Clock
) -> None:
    """Tells each task of a node that is being drained; for ever. `draining`: node ids, each with the Unix time at which the
    node will be gone, 0 where Ray was told of none; Unavailable when the head does not answer."""
    while True:
        await clock.sleep(LOOK_EVERY_S)
        if not any(task.alive for task in tasks()):
            continue
        try:
            gone_at_s = await draining()
        except Unavailable as error:  # a head that is gone ends tasks in its own way; one that is back is asked again
            log.warning("drains_not_known", reason=str(error))
            continue
        for task in tasks():
            if task.alive and task.node_id in gone_at_s:
                task.drain(
                    _words(task.node, gone_at_s[task.node_id] - time.time() if gone_at_s[task.node_id] else None)
                )


def _words(node: str, left_s: float | None) -> str:
    return f"Ray drains node {node}" + ("" if left_s is None else f", which has {max(left_s, 0.0):.0f} s left")
