"""The one table of who may call what. A method without an entry is always refused; a test compares table and protos.

A process has one role, which its credentials show with every call (sluice/rpc/credentials.py). Calls follow the path of a
group: only the coordinator calls services, services call only the coordinator, people command only the coordinator. Weights
alone go from service to service: a rollout fetches them from the learner, or from another rollout that relays.
"""

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """The role of a process in a run. The values are names of folders and go into certificates."""

    OPERATOR = "operator"
    """A person, a script, or the launcher."""
    COORDINATOR = "coordinator"
    ROLLOUT = "rollout"
    REWARD = "reward"
    LEARNER = "learner"
    ENVIRONMENT = "environment"
    """A server of environments beside the run's own services."""
    METRICS = "metrics"
    """Prometheus or the like: reads the metrics of every service, and may do nothing else."""


_OPERATOR = frozenset({Role.OPERATOR})
_COORDINATOR = frozenset({Role.COORDINATOR})
_LEARNER = frozenset({Role.LEARNER})
_ROLLOUT = frozenset({Role.ROLLOUT})
_ENVIRONMENT = frozenset({Role.REWARD, Role.ENVIRONMENT})
"""A reward service hosts the environments of a recipe; others have servers of their own."""
_SERVICES = frozenset({Role.ROLLOUT, Role.REWARD, Role.LEARNER, Role.ENVIRONMENT})

READS_METRICS = frozenset({Role.OPERATOR, Role.METRICS})
"""The roles that the metrics endpoint of every service answers (sluice/rpc/metrics_gate.py)."""

TAKES_EPISODES = frozenset({Role.ENVIRONMENT})
"""The roles that the coordinator's gateway gives episodes to (services/coordinator/agents/door.py)."""

SERVED_BY: Mapping[str, frozenset[Role]] = {
    "sluice.v1.CoordinatorService": _COORDINATOR,
    "sluice.v1.RolloutService": _ROLLOUT,
    "sluice.v1.RewardService": frozenset({Role.REWARD}),
    "sluice.v1.LearnerService": _LEARNER,
    "sluice.v1.EnvironmentService": _ENVIRONMENT,
    "sluice.v1.WeightService": _LEARNER | _ROLLOUT,
}
"""The roles that serve a service."""

SERVERS = frozenset().union(*SERVED_BY.values())
"""Everybody who serves something."""

_TABLE: Mapping[str, Mapping[str, frozenset[Role]]] = {
    "sluice.v1.CoordinatorService": {
        "GetStatus": _OPERATOR | _LEARNER,
        "WatchEvents": _OPERATOR,
        "Pause": _OPERATOR,
        "Resume": _OPERATOR,
        "Drain": _OPERATOR,
        "Stop": _OPERATOR,
        "Scale": _OPERATOR,
        "ReportPlaces": _OPERATOR,
        "SaveCheckpoint": _OPERATOR,
        "Evaluate": _OPERATOR,
        "SubmitPrompts": _OPERATOR,
        "ListGroups": _OPERATOR,
        "GetGroup": _OPERATOR,
        "GetLedger": _OPERATOR,
        "Rollback": _OPERATOR,
        "GetConfig": _OPERATOR | _SERVICES,
        "Register": _SERVICES,
        "Heartbeat": _SERVICES,
        "GetBatch": _LEARNER,
        "CommitStep": _LEARNER,
        "CommitCheckpoint": _LEARNER,
        "MeetLearner": _LEARNER,
    },
    "sluice.v1.RolloutService": {
        "Generate": _COORDINATOR,
        "Abort": _COORDINATOR,
        "GetInfo": _COORDINATOR | _OPERATOR,
        "JoinEpoch": _COORDINATOR,
        "ReceiveWeights": _COORDINATOR,
        "ApplyWeights": _COORDINATOR,
        "OpenTransfer": _COORDINATOR,
        "Drain": _COORDINATOR,
    },
    "sluice.v1.RewardService": {
        "Score": _COORDINATOR,
        "ListGraders": _COORDINATOR | _OPERATOR,
    },
    "sluice.v1.LearnerService": {
        "GetInfo": _COORDINATOR | _OPERATOR,
        "OpenTransfer": _COORDINATOR,
        "SaveCheckpoint": _COORDINATOR,
        "Export": _OPERATOR,
    },
    "sluice.v1.EnvironmentService": {
        "ListEnvironments": _COORDINATOR | _OPERATOR,
        "Open": _COORDINATOR,
        "Step": _COORDINATOR,
        "Close": _COORDINATOR,
    },
    "sluice.v1.WeightService": {"FetchWeights": _ROLLOUT},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _OPERATOR},
}

ALLOWED: Mapping[str, frozenset[Role]] = {
    f"/{service}/{method}": roles for service, methods in _TABLE.items() for method, roles in methods.items()
}
"""Roles by full method name."""

ANYONE = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
"""Methods open to orchestrators without credentials; the answer says only that a process serves."""


def audiences(caller: Role) -> frozenset[Role]:
    """The roles that `caller` may call; an operator may ask every server for the list of its methods, and for its metrics."""
    if caller in READS_METRICS:
        return SERVERS
    called = [name for name, methods in _TABLE.items() if any(caller in roles for roles in methods.values())]
    return frozenset().union(*(SERVED_BY.get(name, frozenset()) for name in called))
