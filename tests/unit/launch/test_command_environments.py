"""What the launcher hands each child: its own role's credentials, and Redis's password to the coordinator alone."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from sluice.clock import SystemClock
from sluice.config.schema import Config, NetworkConfig
from sluice.launch.commands import Command, coordinator_command, inherited, service_command
from sluice.launch.engines.checked import CheckedEngine
from sluice.launch.engines.local import LocalEngine
from sluice.launch.own_network import keep_credentials
from sluice.launch.processes import Child
from sluice.rpc.access import Role
from sluice.rpc.tokens import load, make_tokens
from sluice.run_dir.full_disk import DiskWaits

SECRET = "correct-horse"

KNOWN = {
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "PYTHONUNBUFFERED",
    "GRPC_ENABLE_FORK_SUPPORT",
} | {"SLUICE_CREDENTIALS"}
"""What a node gets beside its own environment. What is added here, a cluster's tools show."""


class Sent(LocalEngine):
    """Notes what it would send."""

    def __init__(self) -> None:
        self.commands: list[Command] = []

    async def start(self, command: Command, *, log_path: Path, waits: object) -> Child:
        self.commands.append(command)
        return None  # type: ignore[return-value]


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


async def test_nothing_that_an_engine_sends_to_a_node_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's tools show argument lists, environments and files to others (engines/port.py)."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    make_tokens(tmp_path / "credentials", private_network=True)
    (tmp_path / "password").write_text(SECRET)
    keep_credentials(tmp_path / "certificates")
    tokens = [token for role in Role for token in load(tmp_path / "credentials" / role).speaks.values()]
    keys = [path.read_text().splitlines()[1] for path in (tmp_path / "certificates").glob("*/key.pem")]
    assert len(keys) == len(Role)
    sent = Sent()
    engine = CheckedEngine(sent, model_path="m", disk=DiskWaits(clock=SystemClock()))
    await engine.open(run_dir=tmp_path, node_timeout_s=1.0)
    for folder in ("credentials", "certificates"):
        network = {"credentials": str(tmp_path / folder), "redis_password_file": str(tmp_path / "password")}
        config = Config(model={"path": "m"}, data={"train_files": ["x"]}, network=network, launch={"engine": "ray"})  # type: ignore[arg-type]
        for role in ("rollout", "reward", "learner"):
            command = service_command(config, role, index=0, coordinator="h:1", run_id="r")
            await engine.start(command, log_path=tmp_path / "log", waits=print)
    await engine.close()
    assert [command.name for command in sent.commands] == ["rollout-0", "reward-0", "learner"] * 2
    for command in sent.commands:
        text = "\n".join([*command.argv, *command.environ, *command.environ.values(), repr(command)])
        assert [secret for secret in (SECRET, *tokens, *keys) if secret in text] == []
        assert (command.said, command.here) == ("", False)
        assert command.environ["SLUICE_CREDENTIALS"].endswith(command.name.partition("-")[0])
        assert command.environ.keys() <= KNOWN


def test_the_password_of_the_runs_own_redis_is_on_standard_input_alone() -> None:
    config = Config(model={"path": "m"}, data={"train_files": ["mixadd3:train"]})  # type: ignore[arg-type]
    made = coordinator_command(
        config, run_dir=Path("r"), redis_url="unix:///s", redis_password="in-memory", port=0, ready_fd=None
    )
    assert made.said == "in-memory"
    assert "in-memory" not in " ".join([*made.argv, *made.environ.values(), repr(made)])
