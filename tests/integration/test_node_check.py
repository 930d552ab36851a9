"""What a node is asked before a task begins there: the real program, started by the real engine of this machine."""

import asyncio
import errno
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sluice.addresses import host_of
from sluice.cli.whereabouts import where
from sluice.clock import SystemClock
from sluice.config.schema import Config, LaunchConfig
from sluice.errors import ConfigError, LaunchError
from sluice.launch.commands import Command
from sluice.launch.engines.checked import MARK, CheckedEngine
from sluice.launch.engines.local import LocalEngine
from sluice.launch.keeper import Keeper
from sluice.launch.processes import Child
from sluice.launch.run import Outcome, Run
from sluice.launch.view import make_view
from sluice.own_address import network_address
from sluice.process import node_check
from sluice.process.exit_codes import UNFIT_NODE
from sluice.rpc.access import Role
from sluice.rpc.credentials import load_credentials
from sluice.rpc.tokens import make_tokens
from sluice.run_dir.full_disk import DiskWaits
from sluice.testing import assert_eventually
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.integration


MODEL = 8
"""Where the model stands in the arguments of the program."""


class Nodes(LocalEngine):
    """A cluster of one node, this machine."""

    name = "nodes"

    @property
    def address(self) -> str:
        """Not known, as with most clusters."""
        return ""


class TwoNodes(Nodes):
    """A cluster of two nodes that are this machine; those that are `lacking` have no model."""

    def __init__(self, *lacking: str) -> None:
        self.lacking, self.out, self.placed = lacking, dict[str, str](), list[str]()

    async def start(self, command: Command, *, log_path: Path, waits: Callable[[str], None]) -> Child:
        left = [node for node in ("n1", "n2") if node not in self.out]
        if not left:
            raise LaunchError(f"{command.name} has no node left: {self.out}")
        self.placed.append(left[0])
        argv = list(command.argv)
        if left[0] in self.lacking:
            argv[MODEL] = "/nowhere"
        task = await super().start(replace(command, argv=argv), log_path=log_path, waits=waits)
        task.node = left[0]
        return task

    async def exclude(self, node: str, why: str) -> None:
        self.out[node] = why


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*")]


async def opened(run_dir: Path, model: Path) -> CheckedEngine:
    engine = CheckedEngine(Nodes(), model_path=str(model), disk=DiskWaits(clock=SystemClock()))
    await engine.open(run_dir=run_dir, node_timeout_s=1.0)
    return engine


async def ended(engine: CheckedEngine, name: str, folder: Path) -> tuple[int, str]:
    """The exit code and the words of a task that prints where it is."""
    command = Command(name=name, argv=["sh", "-c", 'echo "$WHO in $PWD"'], environ={"WHO": name})
    task = await engine.start(command, log_path=folder / f"{name}.log", waits=print)
    return await task.wait(), task.last_words() if (folder / f"{name}.log").stat().st_size else ""


async def test_a_node_that_has_what_the_run_needs_runs_the_task_as_it_is(
    tmp_path: Path,
) -> None:
    (tmp_path / "model").mkdir()
    engine = await opened(tmp_path, tmp_path / "model")
    code, _ = await ended(engine, "rollout-0", tmp_path)
    assert (code, (tmp_path / "rollout-0.log").read_text()) == (0, f"rollout-0 in {os.getcwd()}\n")
    (former,) = hidden(tmp_path)
    again = await opened(tmp_path, tmp_path / "model")  # after a launcher that was killed
    (mark,) = hidden(tmp_path)
    assert (mark.startswith(MARK), mark != former) == (True, True)
    await again.close()
    assert hidden(tmp_path) == []


async def test_a_node_that_has_not_is_refused_by_name_before_the_task_begins(tmp_path: Path) -> None:
    node, run_dir, model = os.uname().nodename, tmp_path / "run", tmp_path / "model"
    run_dir.mkdir()
    engine = await opened(run_dir, model)
    no_model = f"model.path: {model} is no folder on {node}"
    assert (await ended(engine, "learner-1", tmp_path))[0] == UNFIT_NODE
    code, said = await ended(engine, "rollout-0", tmp_path)
    assert (code, said.splitlines()[0][: len(no_model) + 11]) == (UNFIT_NODE, f"rollout-0: {no_model}")
    assert (await ended(engine, "reward-0", tmp_path))[0] == 0  # a reward has no use for the model
    (mark,) = hidden(run_dir)
    (run_dir / mark).unlink()  # as on a node with another folder of that name
    engine._build = "0.0.9 (00000000) under Python 3.11"
    code, said = await ended(engine, "rollout-1", tmp_path)
    lines = said.splitlines()
    assert (code, len(lines)) == (UNFIT_NODE, 3)
    assert lines[0].startswith(
        f"rollout-1: sluice: {node_check.ROOT} on {node} is Sluice {node_check.build()}, the launcher's"
    )
    assert lines[1].startswith(f"run.dir: {run_dir} on {node} is not the run's directory; put it on storage that every")
    assert lines[2].startswith(no_model)


async def test_what_a_node_lacks_fails_the_run_with_its_words_and_a_replica_on_request_alone(tmp_path: Path) -> None:
    engine, said = await opened(tmp_path, tmp_path / "nowhere"), list[str]()

    async def is_over() -> bool:
        return False

    def keeper() -> Keeper:
        return Keeper(launch=LaunchConfig(), log_dir=tmp_path, say=said.append, is_over=is_over, engine=engine)

    requested, wanted = keeper(), keeper()
    command = Command(name="rollout-0", argv=["true"], environ={})
    wanted.keep(command)
    with pytest.raises(
        ConfigError, match=rf"^rollout-0: model\.path: {tmp_path}/nowhere is no folder on .*rollout-0\.log"
    ):
        await asyncio.wait_for(wanted.failed, 20.0)
    requested.keep(replace(command, name="rollout-1"), requested=True)
    assert await requested.left("rollout-1", within_s=20.0)
    assert not requested.failed.done()
    assert [line for line in said if "nowhere is no folder" in line]


async def test_a_service_of_the_run_leaves_a_node_that_lacks_something_for_another_one_until_none_is_left(
    tmp_path: Path,
) -> None:
    said, model = list[str](), tmp_path / "model"
    model.mkdir()
    nodes = TwoNodes("n1")
    engine = CheckedEngine(nodes, model_path=str(model), disk=DiskWaits(clock=SystemClock()))
    await engine.open(run_dir=tmp_path, node_timeout_s=1.0)

    async def is_over() -> bool:
        return False

    keeper = Keeper(
        launch=LaunchConfig(max_restarts=0), log_dir=tmp_path, say=said.append, is_over=is_over, engine=engine
    )
    keeper.known.add("rollout-0")
    keeper.keep(Command(name="rollout-0", argv=["sleep", "1000"], environ={}))
    await assert_eventually(lambda: len(nodes.placed) == 2 and keeper.child("rollout-0"), what="it is placed elsewhere")
    assert nodes.placed == ["n1", "n2"]
    ((node, why),) = nodes.out.items()
    assert node == "n1"
    assert why.startswith("rollout-0: model.path: /nowhere is no folder on ")
    assert said == [f"node n1 is left out from now on, and rollout-0 looks for another place: {why}"]
    nodes.lacking = ("n1", "n2")
    child = keeper.child("rollout-0")
    assert child is not None
    child.lost = "node n2 is gone"  # pyright: ignore
    child.kill("")
    with pytest.raises(LaunchError, match=r"rollout-0 has no node left: .*n2"):
        await asyncio.wait_for(keeper.failed, 20.0)
    await keeper.stop(last="", at_once=asyncio.Event())


def test_a_run_directory_that_takes_no_files_is_refused_and_a_full_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".mark").touch()
    assert node_check.run_dir_problem(str(tmp_path), ".mark") == ""
    assert [path.name for path in tmp_path.iterdir()] == [".mark"]

    def fails(code: int) -> str:
        def opening(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", opening)
            return node_check.run_dir_problem(str(tmp_path), ".mark")

    assert f"run.dir: {tmp_path} on {os.uname().nodename} takes no new files: Read-only file system" in fails(
        errno.EROFS
    )
    assert "Permission denied" in fails(errno.EACCES)
    assert fails(errno.ENOSPC) == fails(errno.EDQUOT) == ""


def test_tokens_that_must_not_leave_a_machine_end_a_clusters_run_before_anything_listens(tmp_path: Path) -> None:
    make_tokens(tmp_path / "tokens", private_network=False)
    outcome, printed = placed_run(tmp_path, model="m", credentials=str(tmp_path / "tokens"))
    assert outcome.exit_code == 2, printed
    assert "must be a loopback address with these tokens, got 0.0.0.0" in outcome.message
    assert "Use `sluice certs`" in outcome.message
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def placed_run(tmp_path: Path, *, model: str, **network: str) -> tuple[Outcome, str]:
    """The check of a recipe whose services a cluster places, and what it prints."""
    config = Config.model_validate(
        {
            "model": {"path": model},
            "data": {"train_files": ["mixadd3:train"], "max_prompt_length": 16, "max_response_length": 32}
            | {"template": "none", "train_batch_size": 4},
            "launch": {"engine": "ray", "grace_s": 5.0},
            "reward": {"workers": 1},
            "network": {"bind": "0.0.0.0", "coordinator_port": 0, "metrics": False, **network},
        }
    )
    printed = io.StringIO()
    view = make_view(printed, plain=True)
    run = Run(config=config, run_dir=tmp_path / "run", view=view, check_only=True, engine=Nodes())
    return asyncio.run(run.run()), printed.getvalue()


def test_a_clusters_run_makes_certificates_and_its_services_find_each_other_with_them(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    outcome, printed = placed_run(tmp_path, model=str(write_tiny_model(tmp_path / "model")))
    assert outcome.exit_code == 0, (outcome.message, printed)
    address, operator = where(run_dir)
    assert host_of(address) == network_address()
    assert load_credentials(operator, role=Role.OPERATOR)
    assert f"made certificates for this run in {run_dir / 'credentials'}" in printed
    assert f"coordinator={address} " in (run_dir / "logs" / "reward-0.log").read_text()
    assert hidden(run_dir) == [".lock"]
