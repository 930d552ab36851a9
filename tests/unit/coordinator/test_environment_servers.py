"""What a server of environments may say when it registers, and who may register as one."""

import pytest

from services.coordinator.api.registrations import check_may_join, environments_from
from services.coordinator.state.member import EnvironmentInfo, Role
from sluice.errors import Forbidden, InvalidRequest
from sluice.rpc import access
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import environment_pb2


def registration(*names: str, version: str = "1", role: int = pb.SERVICE_ROLE_ENVIRONMENT) -> pb.RegisterRequest:
    infos = [environment_pb2.EnvironmentInfo(name=name, version=version, scores=True) for name in names]
    return pb.RegisterRequest(role=role, environments=infos)  # type: ignore[arg-type]


def test_the_environments_of_a_server_are_kept_by_name() -> None:
    assert environments_from(registration("a", "b")) == dict.fromkeys("ab", EnvironmentInfo(version="1", scores=True))
    assert environments_from(registration(role=pb.SERVICE_ROLE_REWARD)) == {}


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (registration(), "must be 1 to 256, got 0"),
        (registration(*(f"e{number}" for number in range(257))), "must be 1 to 256, got 257"),
        (registration("a", "a"), "names must be unique, got a twice"),
        (registration("with a blank"), "without blanks"),
        (registration("a", version="x" * 201), "environments.version"),
        (registration("a", role=pb.SERVICE_ROLE_REWARD), "for SERVICE_ROLE_ENVIRONMENT alone"),
    ],
)
def test_what_no_server_hosts_is_refused(request_: pb.RegisterRequest, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        environments_from(request_)


def test_a_reward_may_host_environments_and_a_server_of_environments_may_do_nothing_else() -> None:
    shown = access.Role
    for who, role in ((shown.REWARD, Role.ENVIRONMENT), (shown.ENVIRONMENT, Role.ENVIRONMENT), (None, Role.LEARNER)):
        check_may_join(who, role)
    for who, role in (
        (shown.ENVIRONMENT, Role.REWARD),
        (shown.ROLLOUT, Role.ENVIRONMENT),
        (shown.REWARD, Role.LEARNER),
    ):
        with pytest.raises(Forbidden, match="may not join as a"):
            check_may_join(who, role)
