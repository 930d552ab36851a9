"""What every engine promises about its tasks (sluice/launch/engines/port.py): subclass for an engine, give the fixtures.

`TasksAnywhere` holds on each engine, `TasksOnNodes` on those that have nodes and room to run out of. Both want a fixture
`site` of class scope. Nodes that a test kills are on this machine, so that every process can be looked for by its id.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from sluice.errors import LaunchError
from sluice.launch.commands import REDIS_PASSWORD, Command, Needs
from sluice.launch.engines.port import LOST, Engine, Task
from sluice.testing import assert_eventually

ROOT = Path(__file__).parents[2]
SLEEPS = "echo pid $$; exec sleep 1000"
GONE_WITHIN_S = 10.0
"""After the launcher was killed."""


class Site(Protocol):
    """An opened engine, and what lies under it."""

    engine: Engine
    environ: Mapping[str, str]
    """With which a launcher finds the same place."""
    many: int
    """Tasks that there is room for at a time."""


class NodeSite(Site, Protocol):
    """At least two like nodes, with at least two GPUs each, real or not."""

    nodes: int
    home: str
    """The node that the launcher needs, if it needs one: it is not killed."""
    cpus_per_node: int
    gpus_per_node: int
    node_lost_within_s: float
    """How long it may take until the engine knows that a node is gone."""

    async def kill_node(self, node: str) -> None:
        """Ends a node and all that runs there, as a power failure would."""
        ...

    async def mend(self) -> None:
        """Returns when as many nodes as before can be used."""
        ...


def shell(name: str, script: str, *, needs: Needs | None = None, **environ: str) -> Command:
    return Command(name=name, argv=["/bin/sh", "-c", script], environ=environ, needs=needs or Needs(cpus=1))


async def start(site: Site, command: Command, folder: Path, *, waits: Callable[[str], None] = print) -> Task:
    async with asyncio.timeout(60):
        return await site.engine.start(command, log_path=folder / f"{command.name}.log", waits=waits)


async def pid_of(log_path: Path) -> int:
    """The number that a task has written behind the word `pid`."""
    await assert_eventually(lambda: "pid" in _text(log_path), within_s=20, what=f"a pid in {log_path}")
    return int(_text(log_path).split("pid ")[1].split()[0])


def _text(path: Path) -> str:
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(*pids: int, within_s: float = 5.0) -> None:
    await assert_eventually(lambda: not any(map(runs, pids)), within_s=within_s, what=f"{pids} are gone")


class TasksAnywhere:
    """On every engine. Any order; each test leaves nothing placed."""

    pytestmark = pytest.mark.asyncio(loop_scope="class")

    async def test_a_task_ends_with_its_own_exit_code_or_signal(self, site: Site, tmp_path: Path) -> None:
        scripts = {0: "exit 0", 2: "exit 2", 75: "exit 75", -9: "kill -9 $$", -15: "kill -15 $$"}
        before_s = time.monotonic()
        for code, script in scripts.items():
            task = await start(site, shell(f"reward-{abs(code)}", script), tmp_path)
            assert await task.wait() == code
            assert await task.wait() == code, "each asker gets it"
            assert not task.alive
            assert (task.name, task.killed, task.lost) == (f"reward-{abs(code)}", "", "")
            assert task.node
            assert before_s <= task.started_s <= time.monotonic()
            await task.stop(grace_s=5)  # of a task that is over: nothing to do

    async def test_stop_gives_sigterm_first(self, site: Site, tmp_path: Path) -> None:
        ends = "trap 'echo orderly; exit 3' TERM; echo pid $$; sleep 1000 & wait"
        task = await start(site, shell("reward-0", ends), tmp_path)
        pid = await pid_of(tmp_path / "reward-0.log")
        began_s = time.monotonic()
        await task.stop(grace_s=30)
        assert time.monotonic() - began_s < 15
        assert not runs(pid)
        assert await task.wait() == 3
        assert task.log_tail().endswith("orderly")

    async def test_stop_kills_the_whole_session_after_the_grace_or_at_once(self, site: Site, tmp_path: Path) -> None:
        deaf = "trap '' TERM; sleep 1000 & echo pid $! $$; sleep 1000"
        tasks = [await start(site, shell(f"rollout-{index}", deaf), tmp_path) for index in range(3)]
        pids = list[int]()
        for task in tasks:
            assert task.log_path is not None
            await pid_of(task.log_path)
            pids += map(int, task.log_tail().split()[1:])
        at_once = asyncio.Event()
        at_once.set()
        began_s = time.monotonic()
        tasks[2].kill("did not answer")
        await asyncio.gather(tasks[0].stop(grace_s=0.5), tasks[1].stop(grace_s=60, at_once=at_once))
        assert [await task.wait() for task in tasks] == [-signal.SIGKILL] * 3
        assert 0.5 <= time.monotonic() - began_s < 30
        assert [task.killed for task in tasks] == ["", "", "did not answer"]
        await gone(*pids)

    async def test_output_and_errors_are_appended_to_the_log(self, site: Site, tmp_path: Path) -> None:
        speaks = "echo out; echo err >&2; echo 'reward: no such grader'; exit 2"
        for times in (1, 2):
            task = await start(site, shell("reward-0", speaks), tmp_path)
            assert await task.wait() == 2
            assert task.log_path == tmp_path / "reward-0.log"
            assert task.log_path.read_text() == "out\nerr\nreward: no such grader\n" * times
        assert task.log_path.stat().st_mode & 0o077 == 0
        assert task.log_tail().startswith("out\n")
        assert task.last_words() == "reward: no such grader"
        (tmp_path / "file").write_text("")
        with pytest.raises(LaunchError, match=r"reward-1: its log .*reward-1\.log cannot be opened"):
            await start(site, shell("reward-1", "exit 0"), tmp_path / "file")

    async def test_a_task_gets_its_own_environment_and_neither_a_secret_nor_the_engines(
        self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(REDIS_PASSWORD, "do not tell")
        task = await start(site, shell("reward-0", "env; cat", SLUICE_MINE="a b='c'", OMP_NUM_THREADS="3"), tmp_path)
        assert await task.wait() == 0, "its standard input is empty"
        assert task.log_path is not None
        environ = task.log_path.read_text()
        assert "SLUICE_MINE=a b='c'\n" in environ
        assert "OMP_NUM_THREADS=3\n" in environ
        assert "PATH=" in environ
        assert "do not tell" not in environ
        # torchrun, vLLM and MPI take other ways where an engine's variables say that they are its processes.
        engines = ("RAY_", "SLURM_", "SRUN_", "PMI_", "PMIX_")
        assert [line for line in environ.splitlines() if line.startswith(engines)] == []

    async def test_many_tasks_come_and_go(self, site: Site, tmp_path: Path) -> None:
        for _ in range(2):
            commands = [shell(f"rollout-{index}", f"[ {index} -lt 2 ] && exit; {SLEEPS}") for index in range(site.many)]
            tasks = await asyncio.gather(*(start(site, command, tmp_path) for command in commands))
            assert [task.name for task in tasks] == [command.name for command in commands]
            assert [await task.wait() for task in tasks[:2]] == [0, 0]
            pids = [await pid_of(tmp_path / f"rollout-{index}.log") for index in range(2, site.many)]
            assert all(map(runs, pids)), "the end of others is not theirs"
            await asyncio.gather(*(task.stop(grace_s=10) for task in tasks))
            assert not any(map(runs, pids))
            assert {await task.wait() for task in tasks[2:]} == {-signal.SIGTERM}
            for command in commands:
                (tmp_path / f"{command.name}.log").unlink()

    async def test_nothing_outlives_a_launcher_that_is_killed(self, site: Site, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "tests.contract.engine_launcher", site.engine.name, str(tmp_path)]
        launcher = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env={**os.environ, **site.environ}, stdout=subprocess.PIPE
        )
        try:
            assert launcher.stdout is not None
            logs = json.loads(await launcher.stdout.readline())
            pids = [await pid_of(Path(log)) for log in logs]
            assert all(map(runs, pids))
        finally:
            launcher.kill()
            await launcher.wait()
        await gone(*pids, within_s=GONE_WITHIN_S)


class TasksOnNodes(TasksAnywhere):
    """On engines that share out the room of several nodes."""

    async def test_a_task_without_room_waits_by_name_and_one_that_is_given_up_leaves_nothing_placed(
        self, site: NodeSite, tmp_path: Path
    ) -> None:
        whole = Needs(cpus=site.cpus_per_node)
        full = [
            await start(site, shell(f"rollout-{index}", SLEEPS, needs=whole), tmp_path) for index in range(site.nodes)
        ]
        assert len({task.node for task in full}) == site.nodes
        reasons = list[str]()
        waiting = [
            asyncio.create_task(start(site, shell(f"reward-{n}", SLEEPS, needs=whole), tmp_path, waits=reasons.append))
            for n in range(2)
        ]
        await assert_eventually(lambda: len(reasons) >= 2, within_s=20, what="both say what they wait for")
        assert all(f"{site.cpus_per_node} " in reason and "CPU" in reason for reason in reasons), reasons
        waiting[0].cancel()
        await asyncio.wait(waiting[:1], timeout=20)
        assert waiting[0].cancelled()
        await full[0].stop(grace_s=10)
        placed = await waiting[1]
        assert placed.node == full[0].node
        await asyncio.gather(*(task.stop(grace_s=10) for task in (placed, *full)))
        again = [await start(site, shell(f"learner-{n}", SLEEPS, needs=whole), tmp_path) for n in range(site.nodes)]
        assert not (tmp_path / "reward-0.log").exists()
        await asyncio.gather(*(task.stop(grace_s=10) for task in again))

    async def test_a_task_that_no_node_could_hold_is_refused(self, site: NodeSite, tmp_path: Path) -> None:
        with pytest.raises(LaunchError, match=r"rollout-0 needs 64 GPUs"):
            await start(site, shell("rollout-0", SLEEPS, needs=Needs(gpus=64)), tmp_path)

    async def test_tasks_of_one_node_get_gpus_of_their_own(self, site: NodeSite, tmp_path: Path) -> None:
        needs = Needs(gpus=1)
        script = f"echo node has $CUDA_VISIBLE_DEVICES; {SLEEPS}"
        number = site.nodes * site.gpus_per_node
        tasks = [await start(site, shell(f"rollout-{n}", script, needs=needs), tmp_path) for n in range(number)]
        for task in tasks:
            await pid_of(tmp_path / f"{task.name}.log")
        held = {(task.node, task.log_tail().splitlines()[0].removeprefix("node has ")) for task in tasks}
        assert len(held) == number, "no GPU twice"
        assert all(gpu.isdigit() for _, gpu in held), held
        none = await start(site, shell("reward-0", f"echo has=$CUDA_VISIBLE_DEVICES.; {SLEEPS}"), tmp_path)
        await pid_of(tmp_path / "reward-0.log")
        assert none.log_tail().startswith(("has=.", "has=NoDevFiles.")), none.log_tail()
        await asyncio.gather(*(task.stop(grace_s=10) for task in (none, *tasks)))

    async def test_a_command_with_a_secret_is_refused(self, site: NodeSite, tmp_path: Path) -> None:
        secret = Command(name="reward-0", argv=["/bin/cat"], environ={}, said="do not tell")
        with pytest.raises(AssertionError, match="reward-0"):
            await start(site, secret, tmp_path)
        assert os.listdir(tmp_path) == []

    async def test_the_tasks_of_a_dead_node_are_lost_and_find_room_elsewhere(
        self, site: NodeSite, tmp_path: Path
    ) -> None:
        whole = Needs(cpus=site.cpus_per_node)
        tasks = [await start(site, shell(f"rollout-{n}", SLEEPS, needs=whole), tmp_path) for n in range(site.nodes)]
        pids = [await pid_of(tmp_path / f"{task.name}.log") for task in tasks]
        dead, left = sorted(tasks, key=lambda task: task.node == site.home)[:: site.nodes - 1]
        try:
            await site.kill_node(dead.node)
            async with asyncio.timeout(site.node_lost_within_s):
                assert await dead.wait() == LOST
            assert not dead.alive
            assert dead.node in dead.lost
            await dead.stop(grace_s=10)
            await gone(pids[tasks.index(dead)])
            assert left.alive
            assert left.lost == ""
            await left.stop(grace_s=10)
            again = await start(site, shell("again", SLEEPS, needs=whole), tmp_path)
            assert again.node != dead.node
            await asyncio.gather(*(task.stop(grace_s=10) for task in (again, *tasks)))
        finally:
            await site.mend()
