"""Groups that fail one after the other have a common cause: then one group is tried at a time, TRY_AGAIN_S apart, until one
ends well (run/failing.py ends a run in which none does).
"""

from typing import Final

from services.coordinator.state.group import GroupFailed
from services.coordinator.state.run_context import RunContext

FEWEST_FAILURES: Final = 16
"""Groups that fail in a row before a common cause is assumed; at least two batches of them."""
TRY_AGAIN_S: Final = 5.0


class Failures:
    """Counts the failures in a row, and spaces the tries."""

    def __init__(self, run: RunContext) -> None:
        self._board, self._clock = run.board, run.clock
        self.in_a_row = 0
        """Groups that failed since the last group that was kept or filtered."""
        self.last_fault = ""
        """Why the last of them failed."""
        self._try_from_s = run.clock.now()
        """When the next group may be tried while groups fail."""

    @property
    def have_a_cause(self) -> bool:
        """Whether so many groups have failed in a row that they have a common cause."""
        return self.in_a_row >= max(FEWEST_FAILURES, 2 * self._board.train_batch_size)

    def may_try(self) -> bool:
        """Whether another group may be admitted."""
        return not (self.have_a_cause and (self._board.open or self._clock.now() < self._try_from_s))

    def until_try_s(self) -> float | None:
        """Seconds until the next try while groups fail; None where other changes are waited for."""
        left_s = self._try_from_s - self._clock.now()
        return left_s if self.have_a_cause and not self._board.open and left_s > 0 else None

    def add(self, failure: GroupFailed) -> None:
        """A group has failed."""
        self.in_a_row += 1
        self.last_fault, self._try_from_s = f"{failure.reason}: {failure.fault}", self._clock.now() + TRY_AGAIN_S

    def end(self) -> None:
        """A group has ended well."""
        self.in_a_row = 0
