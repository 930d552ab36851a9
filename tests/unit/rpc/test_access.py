"""The table of who may call what is complete, and says what the roles are for."""

import pytest

from sluice.rpc.access import ALLOWED, ANYONE, READS_METRICS, SERVED_BY, SERVERS, Role, audiences
from tests.security_cases import methods


def test_every_method_of_every_service_has_an_entry_with_somebody_in_it() -> None:
    paths = {path for _, path, _ in methods()}
    assert len(paths) > 30
    assert {path for path in paths if not ALLOWED.get(path)} == set()


def test_the_table_names_no_method_that_is_not_there() -> None:
    assert {path for path in ALLOWED if path.startswith("/sluice.v1.")} == {path for _, path, _ in methods()}


def test_every_service_is_served_by_somebody() -> None:
    assert {service for service, _, _ in methods()} == set(SERVED_BY)


@pytest.mark.parametrize(
    ("role", "more"), [(Role.ROLLOUT, {"FetchWeights"}), (Role.REWARD, set()), (Role.ENVIRONMENT, set())]
)
def test_a_rollout_or_reward_can_do_little_more_than_join(role: Role, more: set[str]) -> None:
    may = {path.rpartition("/")[2] for path, roles in ALLOWED.items() if role in roles}
    assert may == {"GetConfig", "Register", "Heartbeat"} | more


def test_who_reads_metrics_alone_may_call_nothing() -> None:
    assert Role.METRICS in READS_METRICS
    assert not [path for path, roles in ALLOWED.items() if Role.METRICS in roles]


def test_nothing_that_commands_a_run_is_open_to_its_services() -> None:
    commands = ("Pause", "Resume", "Drain", "Stop", "Scale", "Rollback", "SubmitPrompts", "SaveCheckpoint", "Evaluate")
    assert {name: ALLOWED[f"/sluice.v1.CoordinatorService/{name}"] for name in commands} == dict.fromkeys(
        commands, frozenset({Role.OPERATOR})
    )


def test_only_health_is_open_to_everybody() -> None:
    assert {path.rpartition("/")[0] for path in ANYONE} == {"/grpc.health.v1.Health"}


def test_services_have_business_with_the_coordinator_only_but_rollouts_for_weights() -> None:
    assert audiences(Role.REWARD) == audiences(Role.ENVIRONMENT) == audiences(Role.LEARNER) == {Role.COORDINATOR}
    assert audiences(Role.ROLLOUT) == {Role.COORDINATOR, Role.LEARNER, Role.ROLLOUT}
    assert audiences(Role.COORDINATOR) == {Role.ROLLOUT, Role.REWARD, Role.LEARNER, Role.ENVIRONMENT}
    assert audiences(Role.OPERATOR) == audiences(Role.METRICS) == SERVERS
