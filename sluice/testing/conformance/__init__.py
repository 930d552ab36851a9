"""Checks any reward, environment or rollout server, in any language, against the contract of protos/sluice/v1.

    verdicts = await check_reward("127.0.0.1:18052")
    assert all(verdict.outcome != "FAIL" for verdict in verdicts)

`sluice conformance` prints the verdicts as a table. A rollout under check must not be at work in a run.
"""

from sluice.testing.conformance.environment import check_environment
from sluice.testing.conformance.reward import check_reward
from sluice.testing.conformance.rollout import check_rollout
from sluice.testing.conformance.suite import Verdict

__all__ = ["Verdict", "check_environment", "check_reward", "check_rollout"]
