"""Where the machines of a learner meet: the first machine tells, the others ask. Kept in memory alone.

 who waits          for what                        unblocked by
 `LearnerMeetings`  the first machine of a round    its telling; the seconds that the caller waits at most
Each start of the machines, a round, has a name of its own, so that a machine of a former round - one behind a cut link may
live longer than its round - neither finds a newer round nor is found. The first machine tells again and again while it
waits, so that a coordinator that was started meanwhile knows as much as its predecessor. A machine that asks and goes away
leaves nothing here.

Not a file in the run directory: a network file system may remember for a minute that a file was missing.
"""

import asyncio

from services.coordinator.api.registrations import check_address
from services.coordinator.state.signal import Signal
from sluice.rpc.requests import duration_s, name

MOST_ROUNDS = 8
"""Rounds that are kept, the last ones told of: the newest, and those of machines that do not know yet that theirs is over."""

LONGEST_WAIT_S = 30.0


class LearnerMeetings:
    """The meeting point of each of the last rounds."""

    def __init__(self) -> None:
        self._endpoints: dict[str, str] = {}
        self._told = Signal()

    async def meet(self, round_name: str, endpoint: str, *, wait_s: float) -> str:
        """Notes the `endpoint` of a round, if one is given; returns the round's endpoint, empty for none within `wait_s`, or
        within LONGEST_WAIT_S.

        Raises InvalidRequest for what can be no name, no endpoint or no duration.
        """
        name(round_name, field="meet: round")
        check_address(endpoint, field="meet: endpoint", may_be_empty=True)
        limit_s = min(duration_s(wait_s, field="meet: wait_s", may_be_0=True), LONGEST_WAIT_S)
        if endpoint:
            self._tell(round_name, endpoint)
        try:
            async with asyncio.timeout(limit_s):
                while round_name not in self._endpoints and limit_s:
                    await self._told.wait()
        except TimeoutError:
            pass
        return self._endpoints.get(round_name, "")

    def _tell(self, round_name: str, endpoint: str) -> None:
        self._endpoints.pop(round_name, None)  # so that it becomes the last one
        self._endpoints[round_name] = endpoint
        while len(self._endpoints) > MOST_ROUNDS:
            del self._endpoints[next(iter(self._endpoints))]
        self._told.notify()
