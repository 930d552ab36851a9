"""The one table of who may call what. A method without an entry is always refused; a test compares table and protos.

A process has one role, which its credentials show with every call (sluice/rpc/credentials.py). Calls follow the path of a
group: only the coordinator calls services, services call only the coordinator, people command only the coordinator.
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


_OPERATOR = frozenset({Role.OPERATOR})
_COORDINATOR = frozenset({Role.COORDINATOR})
_LEARNER = frozenset({Role.LEARNER})
_SERVICES = frozenset({Role.ROLLOUT, Role.REWARD, Role.LEARNER})

SERVED_BY: Mapping[str, Role] = {
    "sluice.v1.CoordinatorService": Role.COORDINATOR,
    "sluice.v1.RolloutService": Role.ROLLOUT,
    "sluice.v1.RewardService": Role.REWARD,
    "sluice.v1.LearnerService": Role.LEARNER,
}

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
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _OPERATOR},
}

ALLOWED: Mapping[str, frozenset[Role]] = {
    f"/{service}/{method}": roles for service, methods in _TABLE.items() for method, roles in methods.items()
}
"""Roles by full method name."""

ANYONE = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
"""Methods open to orchestrators without credentials; the answer says only that a process serves."""


def audiences(caller: Role) -> frozenset[Role]:
    """The roles that `caller` may call; an operator may ask every server for the list of its methods."""
    if caller is Role.OPERATOR:
        return frozenset(SERVED_BY.values())
    return frozenset(
        SERVED_BY[service]
        for service, methods in _TABLE.items()
        if service in SERVED_BY and any(caller in roles for roles in methods.values())
    )
