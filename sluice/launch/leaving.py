"""A task whose node is about to be taken away leaves in order while the node is still there. The next place is the keeper's.

who waits     for what                                  unblocked by
`until_end`   the end of a task, or its node's notice   the exit; the engine; then the task's own end, `grace_s`
"""

import asyncio
from collections.abc import Callable

from sluice.launch.engines.port import Task


async def until_end(task: Task, *, grace_s: float, say: Callable[[str], None]) -> int:
    """Task.wait, for whom a notice is a SIGTERM: a rollout hands its groups on, the learner saves a checkpoint."""
    ending, noticed = asyncio.ensure_future(task.wait()), asyncio.ensure_future(task.notice())
    try:
        await asyncio.wait([ending, noticed], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            say(f"{task.name} leaves its node: {noticed.result()}")
            await task.stop(grace_s=grace_s)
        return await ending
    finally:
        for each in (ending, noticed):
            each.cancel()
