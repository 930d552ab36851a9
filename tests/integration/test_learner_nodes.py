"""A learner on machines that somebody has started: the same gradients as on one, who waits, what is refused, who is told.

What an engine has placed is test_learner_machines.py.
"""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from services.learner.distributed.interface import interface_towards
from sluice.errors import ConfigError, LaunchError
from sluice.launch.learner_node import stay
from sluice.testing import assert_eventually
from sluice.testing.fakes import FakeCoordinator
from tests.free_port import free_port
from tests.integration.service_process import ENVIRON, ROOT, flags, running
from tests.integration.test_learner_ranks import _assert_equal, _job, _reference
from tests.integration.tiny_run import serving_a_tiny_run
from tests.two_machines import SecondMachine, second_machine
from tests.unit.learner.learner_cases import write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture
def second() -> Iterator[SecondMachine]:
    with second_machine() as machine:
        yield machine


@pytest.fixture
def endpoint(second: SecondMachine) -> str:
    """Where the machines meet."""
    return f"{second.here}:{free_port()}"


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[tuple[FakeCoordinator, str]]:
    async with serving_a_tiny_run(tmp_path, checkpoint_every_steps=1) as served:
        yield served


def _process(*command: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """What it writes is in `stdout`."""
    return running(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)


def _first(endpoint: str, coordinator: str, *, timeout_s: float = 60.0) -> list[str]:
    """Node 0, as `sluice up` starts it."""
    meeting = ["--rdzv-endpoint", endpoint, "--rdzv-id", "run", "--nnodes", "2", "--timeout-s", str(timeout_s)]
    return _node(*meeting, "--", *flags(coordinator))


def _node(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "services.learner.distributed.node", *arguments]


def _further(endpoint: str, *, timeout_s: float = 60.0) -> list[str]:
    """What somebody types on the second machine."""
    meeting = ["--rdzv-endpoint", endpoint, "--rdzv-id", "run", "--nnodes", "2", "--timeout-s", str(timeout_s)]
    return [sys.executable, "-m", "sluice.cli.main", "learner-node", *meeting, "--node-rank", "1"]


async def _ends(process: asyncio.subprocess.Process, *, within_s: float = 60.0) -> tuple[int | None, str]:
    """Exit code and output."""
    output, _ = await asyncio.wait_for(process.communicate(), within_s)
    return process.returncode, output.decode()


def _ranks_under(process: asyncio.subprocess.Process, *, module: str = "services.learner") -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.cmdline()[1:5] == ["-P", "-u", "-m", module]]


def _has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.needs("machines")
def test_ranks_on_two_machines_compute_the_gradients_of_the_plain_reference(
    second: SecondMachine, endpoint: str, tmp_path: Path
) -> None:
    model, out = write_tiny_model(tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    meeting = ["--nnodes", "2", "--rdzv-backend", "static", "--rdzv-endpoint", endpoint, "--no-python"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *meeting]
    worker = [sys.executable, str(Path(__file__).with_name("learner_rank.py")), str(model), str(out)]
    jobs = json.dumps([_job(max_tokens=40), _job(mode="seq-mean-token-mean", filtering=True)])

    def start(interface: str, prefix: Sequence[str], *, node: int) -> subprocess.Popen[str]:
        command = [*torchrun, "--node-rank", str(node), "--nproc-per-node", "1", *worker, jobs]
        environ = ENVIRON | {"GLOO_SOCKET_IFNAME": interface}
        return subprocess.Popen([*prefix, *command], env=environ, cwd=ROOT, text=True, stderr=subprocess.PIPE)

    with (
        start(second.near_end, [], node=0) as first,
        start(second.far_end, second.command(), node=1) as further,
    ):
        try:
            for process in (first, further):
                _, errors = process.communicate(timeout=120)
                assert process.returncode == 0, errors[-4000:]
        finally:
            first.terminate()
            further.terminate()
    plain, filtered = (dict(np.load(out / f"{index}.npz")) for index in range(2))
    _assert_equal(plain, _reference(model, mode="token-mean", filtering=False))
    _assert_equal(filtered, _reference(model, mode="seq-mean-token-mean", filtering=True))


@pytest.mark.parametrize(
    ("codes", "times", "raised"), [("7 1 0", 2, None), ("7 2", 1, ConfigError), ("4", 0, LaunchError)]
)
async def test_a_further_machine_joins_round_after_round_until_the_run_has_ended_or_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: str, times: int, raised: type[Exception] | None
) -> None:
    (tmp_path / "ends").write_text(codes)
    monkeypatch.setenv("RANK_ENDS", str(tmp_path / "ends"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said: list[str] = []
    staying = stay(["--module", "tests.integration.rejoining_rank"], grace_s=5.0, say=said.append)
    with pytest.raises(raised, match=r"refused to start|did not meet") if raised else contextlib.nullcontext():
        assert await staying == 0
    assert (tmp_path / "ends").read_text() == ""
    expected = [f"the learner's ranks here ended with code {code} before the run did: joining again" for code in (7, 1)]
    assert said == expected[:times]


@pytest.mark.chaos
async def test_a_machine_whose_learner_is_killed_comes_back_and_both_end_with_the_run(
    second: SecondMachine, endpoint: str, coordinator: tuple[FakeCoordinator, str]
) -> None:
    fake, address = coordinator
    fake.ready = 1
    async with _process(*second.command(*_further(endpoint))) as further:
        async with _process(*_first(endpoint, address)) as first:
            await fake.until(lambda: len(fake.checkpoints) == 1)
            (victim,) = _ranks_under(further)
            assert victim.environ()["RANK"] == "1"
            victim.kill()
            await fake.allow(ready=2)  # the first machine notices now, not after its wait for a batch
            code, output = await _ends(first)
            assert code == 1
            assert "rank 0" in output
            assert "waited for another rank of the learner, which is gone or unreachable" in output
        async with _process(*_first(endpoint, address)) as first:  # what the launcher does
            await fake.until(lambda: len(fake.registrations) == 2)
            await fake.allow(end=2)
            assert (await _ends(first))[0] == 0
        assert (await _ends(further))[0] == 0
    assert fake.registrations[1].version.number == 1
    assert [commit.version.number for commit in fake.commits] == [1, 2]


async def test_a_killed_torchrun_takes_its_ranks_with_it_frozen_ones_too() -> None:
    waiting = ["--nproc-per-node", "2", "--module", "http.server", "--", "0"]  # whatever a rank does
    async with _process(*_node(*waiting)) as torchrun:
        found = partial(_ranks_under, torchrun, module="http.server")
        await assert_eventually(lambda: len(found()) == 2, within_s=60, what="its ranks are there")
        ranks = found()
        ranks[1].suspend()
        torchrun.kill()
        await assert_eventually(lambda: all(_has_ended(rank) for rank in ranks), within_s=30, what="its ranks are gone")


async def test_a_machine_that_sees_another_run_directory_and_model_is_refused_by_name_on_both(
    second: SecondMachine, endpoint: str, coordinator: tuple[FakeCoordinator, str], tmp_path: Path
) -> None:
    fake, address = coordinator
    hide = " && ".join(f"mount -t tmpfs none {tmp_path / folder}" for folder in ("run", "base"))
    elsewhere = ["sh", "-c", f'{hide} && exec "$@"', "sh"]
    async with (
        _process(*second.command(*elsewhere, *_further(endpoint))) as further,
        _process(*_first(endpoint, address)) as first,
    ):
        for process in (first, further):
            code, output = await _ends(process)
            assert code == 2
            assert f"run.dir: {tmp_path / 'run'} on {socket.gethostname()}" in output
            assert f"model.path: {tmp_path / 'base'} on {socket.gethostname()}" in output
    assert list(fake.run_dir.glob(".learner-*")) == []


async def test_a_cut_cable_ends_the_wait_of_both_machines_at_the_limit_of_a_collective(
    second: SecondMachine, endpoint: str
) -> None:
    program = (
        "import datetime, services.learner.distributed.ranks as ranks\n"
        "ranks.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=3)\n"
        "with ranks.naming_lost_ranks():\n"
        "    joined = ranks.join_ranks()\n"
        "    while True:\n"
        "        joined.command()\n"
        "        print('met', flush=True)\n"
    )
    host, _, port = endpoint.rpartition(":")
    words = ["WORLD_SIZE=2", f"MASTER_ADDR={host}", f"MASTER_PORT={port}"]

    def rank(number: int, interface: str) -> list[str]:
        return ["env", *words, f"RANK={number}", f"GLOO_SOCKET_IFNAME={interface}", sys.executable, "-c", program]

    async with (
        _process(*rank(0, second.near_end)) as first,
        _process(*second.command(*rank(1, second.far_end))) as further,
    ):
        for process in (first, further):
            assert process.stdout is not None
            await asyncio.wait_for(process.stdout.readuntil(b"met\n"), 60)
        second.cut()
        for process, number in ((first, 0), (further, 1)):
            code, output = await _ends(process, within_s=30)
            assert code == 1
            assert f"rank {number} on {socket.gethostname()} waited for another rank of the learner" in output


async def test_machines_that_nobody_joins_say_who_waited_for_whom_and_for_how_long_or_leave_on_control_c(
    second: SecondMachine, endpoint: str
) -> None:
    nobody = f"{second.here}:{free_port(second.here)}"
    async with (
        _process(*_first(endpoint, "127.0.0.1:1", timeout_s=2)) as first,
        _process(*second.command(*_further("10.255.255.1:1", timeout_s=2))) as unreachable,
        _process(*second.command(*_further(nobody, timeout_s=2))) as alone,
        _process(*second.command(*_further(nobody))) as patient,
    ):
        code, output = await _ends(first)
        assert code == 4
        assert f"node 0 waited up to 2 s at {endpoint} for the other 1 of its 2 machines" in output
        code, output = await _ends(unreachable)
        assert code == 2
        assert "must be HOST:PORT that this machine has a route to, got 10.255.255.1:1" in output
        patient.send_signal(signal.SIGINT)
        assert (await _ends(patient))[0] == 130
        code, output = await _ends(alone)
        assert code == 1
        assert f"node 1 waited up to 2 s for node 0 at {nobody}" in output


def test_the_interface_is_the_one_that_leads_to_the_meeting_point(second: SecondMachine, endpoint: str) -> None:
    assert interface_towards(endpoint) == second.near_end
    program = (
        "from services.learner.distributed.interface import interface_towards\n"
        "from sluice.own_address import address_towards, loopback, network_address, own_address\n"
        f"print(interface_towards('{endpoint}'), address_towards('{endpoint}'), network_address())\n"
        f"print(*(own_address(words, auto=loopback, key='') for words in ('{second.far_end}', '10.213.0.0/16')))"
    )
    said = subprocess.check_output(second.command(sys.executable, "-c", program), cwd=ROOT, text=True).split()
    there = f"{second.here.rpartition('.')[0]}.254"  # on a machine that has a cable and no default route
    assert said == [second.far_end, there, there, there, there]


@pytest.mark.parametrize("endpoint", ["trainer-1", "127.0.0.1:99999", "no.such.host.invalid:1"])
def test_a_meeting_point_that_is_none_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=f"HOST:PORT that this machine has a route to, got {endpoint}"):
        interface_towards(endpoint)


def test_loopback_is_taken_when_it_is_asked_for_and_refused_when_a_name_stands_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert interface_towards("127.0.0.1:1") == interface_towards("localhost:1") == "lo"
    monkeypatch.setattr("services.learner.distributed.interface.route_to", lambda host: "127.0.1.1")
    with pytest.raises(ConfigError, match="must be an address that other machines reach, got trainer-1"):
        interface_towards("trainer-1:1")


@pytest.mark.needs("own-network")
async def test_the_ranks_of_a_machine_with_ipv6_alone_whose_own_name_does_not_resolve_meet() -> None:
    node = [*_node("--nproc-per-node", "2", "--module", "tests.integration.meeting_rank"), "--"]
    nameless = [sys.executable, str(ROOT / "tests" / "nameless_machine.py"), "--ipv6-alone"]
    async with _process(*nameless, *node) as process:
        code, output = await _ends(process)
    assert code == 0, output
    assert "met 2" in output
