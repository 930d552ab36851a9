"""Where the machines of a learner meet: the first machine tells, the others ask. Memory alone.

Each start of the machines, a round, has a name of its own, so that a machine of a former round - one behind a cut link may
live longer than its round - neither finds a newer round nor is found. The first machine tells again and again while it
waits, so that a coordinator that was started meanwhile knows as much as its predecessor.

Not a file in the run directory: a network file system may remember for a minute that a file was missing.
"""

from services.coordinator.api.registrations import check_address
from sluice.rpc.requests import name

MOST_ROUNDS = 8
"""Rounds that are kept, the last ones told of: the newest, and those of machines that do not know yet that theirs is over."""


class LearnerMeetings:
    """The meeting point of each of the last rounds."""

    def __init__(self) -> None:
        self._endpoints: dict[str, str] = {}

    def meet(self, round_name: str, endpoint: str) -> str:
        """Notes the `endpoint` of a round, if one is given; returns the round's endpoint, empty for none yet.

        Raises InvalidRequest for what can be no name or no endpoint.
        """
        name(round_name, field="meet: round")
        check_address(endpoint, field="meet: endpoint", may_be_empty=True)
        if endpoint:
            self._endpoints.pop(round_name, None)  # so that it becomes the last one
            self._endpoints[round_name] = endpoint
            while len(self._endpoints) > MOST_ROUNDS:
                del self._endpoints[next(iter(self._endpoints))]
        return self._endpoints.get(round_name, "")
