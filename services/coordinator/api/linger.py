"""When the coordinator of a run that has ended may leave: nobody would look for it any more.

who waits          for what                             unblocked by
`everybody_left`   services to leave, or come again     their leaving; LINGER_S in which nobody comes or goes
"""

from services.coordinator.state.fleet import State
from services.coordinator.state.run_context import RunContext

LINGER_S = 120.0
"""How long the coordinator of a run that has ended waits for anybody to leave or to come again. A learner that is alive
exports the model, which takes what it takes.
"""
LAST_CALLS_S = 5.0
"""How long it goes on when all have left and nobody is on the way, for whoever asks now and then how the run stands."""


async def everybody_left(run: RunContext) -> None:
    """Returns when all have left and nobody is on the way, LAST_CALLS_S later."""

    def alone() -> bool:
        return run.fleet.has_left and not run.fleet.expects(now_s=run.clock.now())

    while True:
        changed_s = run.clock.now()
        while not alone():
            if await run.fleet.roster.wait(timeout_s=LAST_CALLS_S):
                changed_s = run.clock.now()
            learner, quiet_s = run.fleet.learner, run.clock.now() - changed_s
            if quiet_s > LINGER_S and (learner is None or learner.state is State.DRAINING):
                return
        await run.clock.sleep(LAST_CALLS_S)
        if alone():
            return
