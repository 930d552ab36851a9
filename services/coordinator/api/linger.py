"""When the coordinator of a run that has ended may leave: when no service will call the coordinator any more.

who waits          for what                              unblocked by
`everybody_left`   all services to leave                 the last service's leaving; LINGER_S without any coming or going
"""

from services.coordinator.state.member import State
from services.coordinator.state.run_context import RunContext

LINGER_S = 120.0
"""How long the coordinator of a run that has ended waits without any service leaving or coming again. A live learner is
waited for without this limit, because the learner exports the model, however long the export takes.
"""
LAST_CALLS_S = 5.0
"""How long the coordinator still answers after all services have left, for callers that ask for the status now and then."""


async def everybody_left(run: RunContext) -> None:
    """Returns LAST_CALLS_S after all services have left and no service is expected."""

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
