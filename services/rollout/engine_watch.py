"""Ends a rollout whose engine hangs: the rollout's heartbeats come from the event loop and would go on for ever.

 who waits   for what                                   unblocked by
 the watch   the end of a step or a change of weights   that end, or the limit: the process ends
An engine may hang because one of the engine's own processes hangs. The watch kills these processes too, because a stopped
process would outlive the rollout. A hang that holds Python's lock stops the heartbeats as well, which the launcher notices.
"""

import faulthandler
import multiprocessing
import os
import sys
from typing import NoReturn

import structlog

from services.rollout.engine_loop import EngineLoop
from sluice.clock import Clock
from sluice.weights.deadlines import handling_s

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0


async def hung_s(loop: EngineLoop, *, limit_s: float, clock: Clock) -> float:
    """Returns when a step has taken longer than `limit_s`, or a change of weights so much longer as its bytes allow; returns
    the seconds so far."""
    while (busy_s := loop.busy_s) <= limit_s + handling_s(loop.loading_bytes):
        await clock.sleep(min(LOOK_EVERY_S, limit_s / 4))
    return busy_s


def end_process(busy_s: float, *, limit_s: float) -> NoReturn:
    """Logs one line, prints all stacks to stderr, and ends the engine's processes and this process with code 1."""
    log.critical(
        "engine_hung",
        busy_s=round(busy_s, 1),
        limit_s=limit_s,
        setting="rollout.step_timeout_s",
        then="this rollout ends, its stacks follow; started again, it gets weights and work again",
    )
    sys.stdout.flush()
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)
