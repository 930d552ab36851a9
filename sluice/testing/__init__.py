"""For tests, Sluice's own and a user's: a clock that a test moves, waiting with a deadline, in `fakes` services without
a model, and in `conformance` the checks of reward, environment and rollout servers.
"""

from sluice.testing.manual_clock import ManualClock
from sluice.testing.waiting import assert_eventually, assert_eventually_blocking

__all__ = ["ManualClock", "assert_eventually", "assert_eventually_blocking"]
