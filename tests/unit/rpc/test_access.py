"""The table of who may call what is complete, and says what the roles are for."""

import pytest

from sluice.rpc.access import ALLOWED, ANYONE, SERVED_BY, Role, audiences
from tests.security_cases import methods


def test_every_method_of_every_service_has_an_entry_with_somebody_in_it() -> None:
    paths = {path for _, path, _ in methods()}
    assert len(paths) > 30
    assert {path for path in paths if not ALLOWED.get(path)} == set()


def test_the_table_names_no_method_that_is_not_there() -> None:
    assert {path for path in ALLOWED if path.startswith("/sluice.v1.")} == {path for _, path, _ in methods()}


def test_every_service_is_served_by_one_role() -> None:
    assert {service for service, _, _ in methods()} == set(SERVED_BY)


@pytest.mark.parametrize("role", [Role.ROLLOUT, Role.REWARD])
def test_a_rollout_or_reward_can_do_no_more_than_join(role: Role) -> None:
    may = {path.rpartition("/")[2] for path, roles in ALLOWED.items() if role in roles}
    assert may == {"GetConfig", "Register", "Heartbeat"}


def test_nothing_that_commands_a_run_is_open_to_its_services() -> None:
    commands = ("Pause", "Resume", "Drain", "Stop", "Scale", "Rollback", "SubmitPrompts", "SaveCheckpoint", "Evaluate")
    assert {name: ALLOWED[f"/sluice.v1.CoordinatorService/{name}"] for name in commands} == dict.fromkeys(
        commands, frozenset({Role.OPERATOR})
    )


def test_only_health_is_open_to_everybody() -> None:
    assert {path.rpartition("/")[0] for path in ANYONE} == {"/grpc.health.v1.Health"}


def test_services_have_business_with_the_coordinator_only() -> None:
    assert {role: audiences(role) for role in (Role.ROLLOUT, Role.REWARD, Role.LEARNER)} == dict.fromkeys(
        (Role.ROLLOUT, Role.REWARD, Role.LEARNER), frozenset({Role.COORDINATOR})
    )
    assert audiences(Role.COORDINATOR) == {Role.ROLLOUT, Role.REWARD, Role.LEARNER}
