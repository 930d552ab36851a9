"""Services without a model that speak the real protocol: tests and benchmarks put these fakes around the service under test.

    async with serving(FakeRollout()) as address:  # keeps the contract: `sluice conformance rollout` finds nothing
        ...

`FakeRollout`, `FakeReward` and `FakeLearner` stand around a real coordinator, `FakeCoordinator` around any other service.
"""

from sluice.testing.fakes.coordinator import FakeCoordinator
from sluice.testing.fakes.environment import FakeEnvironment
from sluice.testing.fakes.learner import FakeLearner
from sluice.testing.fakes.reward import FakeReward
from sluice.testing.fakes.rollout import FakeRollout
from sluice.testing.fakes.service import FakeService, digest, serving, version
from sluice.testing.fakes.timed_engine import Lengths, TimedEngine

__all__ = [
    "FakeCoordinator",
    "FakeEnvironment",
    "FakeLearner",
    "FakeReward",
    "FakeRollout",
    "FakeService",
    "Lengths",
    "TimedEngine",
    "digest",
    "serving",
    "version",
]
