"""What the launcher hands each child: its own role's credentials, and Redis's password to the coordinator alone."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from sluice.config.schema import Config, NetworkConfig
from sluice.launch.commands import coordinator_command, inherited, service_command

SECRET = "correct-horse"


@pytest.fixture(autouse=True)
def _launched_by_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_REDIS_PASSWORD", SECRET)
    monkeypatch.setenv("SLUICE_CREDENTIALS", "/somewhere/operator")


def environments(credentials: str | None) -> dict[str, tuple[Mapping[str, str], str]]:
    config = Config(
        model={"path": "m"},  # type: ignore[arg-type]
        data={"train_files": ["mixadd3:train"]},  # type: ignore[arg-type]
        network=NetworkConfig(credentials=credentials),
    )
    made = {"coordinator": coordinator_command(config, run_dir=Path("r"), redis_url="redis://h", port=0, ready_fd=None)}
    for role in ("rollout", "reward", "learner"):
        made[role] = service_command(config, role, index=0, coordinator="h:1", run_id="r")
    return {role: (command.environ, " ".join(command.argv)) for role, command in made.items()}


def test_each_child_gets_the_folder_of_its_role() -> None:
    given = {role: environ["SLUICE_CREDENTIALS"] for role, (environ, _) in environments("/creds").items()}
    assert given == {role: f"/creds/{role}" for role in ("coordinator", "rollout", "reward", "learner")}


def test_without_credentials_no_child_inherits_those_of_the_person() -> None:
    assert {environ["SLUICE_CREDENTIALS"] for environ, _ in environments(None).values()} == {""}


def test_only_the_coordinator_is_told_the_password_of_redis_and_not_on_its_command_line() -> None:
    told = {role for role, (environ, _) in environments("/creds").items() if SECRET in environ.values()}
    assert told == {"coordinator"}
    assert SECRET not in inherited().values()
    assert [argv for _, argv in environments("/creds").values() if SECRET in argv] == []


def test_the_password_of_the_runs_own_redis_is_on_standard_input_alone() -> None:
    config = Config(model={"path": "m"}, data={"train_files": ["mixadd3:train"]})  # type: ignore[arg-type]
    made = coordinator_command(
        config, run_dir=Path("r"), redis_url="unix:///s", redis_password="in-memory", port=0, ready_fd=None
    )
    assert made.said == "in-memory"
    assert "in-memory" not in " ".join([*made.argv, *made.environ.values(), repr(made)])
