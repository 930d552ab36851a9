"""Real worker processes under real attacks: good samples are scored, bad ones flagged, the pool is whole afterwards.

A fork bomb is set off only where the machine permits its limit: else it would take the tests along.
"""

import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from services.reward.ports import Completion, Job, Question
from services.reward.sandbox.grader_handle import Limits
from services.reward.sandbox.pool import GraderPool
from services.reward.sandbox.protections import say_protections
from sluice.errors import Overloaded
from sluice.testing.manual_clock import ManualClock
from sluice.testing.waiting import assert_eventually
from tests.needs import sandbox_permits

pytestmark = pytest.mark.integration

MAX_PROCESSES = 48
HANG_S = 120.0
"""For a worker on a busy machine to come to an attack."""
QUESTION = Question(data_source="nasty", prompt_text="", ground_truth="", extra_info={})


@pytest.fixture(autouse=True)
def _nasty_verifier_is_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def event_loop_policy():
    """The service runs on uvloop, whose pipes and processes fail in their own way."""
    return uvloop.EventLoopPolicy()


def limits(*, timeout_s=1.0, recycle_after=10_000, network=False):
    return Limits(
        timeout_s=timeout_s,
        memory_bytes=1 << 30,
        recycle_after=recycle_after,
        file_bytes=1 << 24,
        max_processes=MAX_PROCESSES,
        environment=("SLUICE_TEST",),
        network=network,
    )


def pool(*, workers=2, clock=None, **others):
    return GraderPool.open(workers=workers, limits=limits(**others), clock=clock)


def job(*texts, verifier="reward_nasty_verifier", deadline_s=None, ground_truth=""):
    completions = [Completion(text=text, finished=True) for text in texts]
    question = dataclasses.replace(QUESTION, ground_truth=ground_truth)
    return Job(verifier=verifier, question=question, completions=completions, deadline_s=deadline_s)


@pytest.fixture
def marked(monkeypatch, tmp_path):
    """Whether any process lives that this test started, wherever it went: they all have its environment."""
    monkeypatch.setenv("SLUICE_TEST", str(tmp_path))
    return lambda: is_here("SLUICE_TEST", tmp_path)


@pytest.fixture
def without_namespaces(tmp_path):
    """A Python that permits none."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("no_namespaces.py")} "$@"\n')
    python.chmod(0o755)
    said = subprocess.run(
        [python, "-m", "services.reward.sandbox.isolation"], check=True, capture_output=True, timeout=60
    )
    assert not json.loads(said.stdout)["survivors"]
    return str(python)


def descendants(*pids):
    """Living processes below `pids`."""
    children = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), set()).add(int(entry.parent.name))
    found, below = set(), set(pids)
    while below := set().union(*(children.get(pid, ()) for pid in below)):
        found |= below
    return found


def is_here(name, value):
    """Whether a living process has `name=value` in its environment."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if f"{name}={value}".encode() in entry.read_bytes().split(b"\0"):
                return True
    return False


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_group_full_of_attacks_costs_only_the_attackers(tmp_path):
    """No sample is late on this clock unless it has said that it hangs."""
    bad = {
        "spin": "timeout",
        "regex": "timeout",
        "power": "timeout",
        "stubborn": "timeout",
        **({"bomb": "timeout"} if sandbox_permits()["processes"] else {}),
        "file": "error",
        "memory": "error",
        "die": "error",
        "exit": "error",
        "raise": "error",
        "nan": "error",
        "chatty": "ok",
    }
    texts = [text for attack in bad for text in ("good", attack)] + ["good"]
    clock = ManualClock()
    async with pool(clock=clock) as graders:
        before = graders.pids
        grading = asyncio.create_task(graders.grade(job(*texts, ground_truth=str(tmp_path))))
        for hanging in (text for text, status in bad.items() if status == "timeout"):
            await assert_eventually((tmp_path / hanging).exists, within_s=HANG_S)
            await in_hand()
            await clock.advance(1.0)
        graded = await grading
        statuses = [outcome.status for outcome in graded.outcomes]
        assert statuses == [bad.get(text, "ok") for text in texts]
        details = dict(zip(texts, (outcome.detail for outcome in graded.outcomes), strict=True))
        assert details["spin"] == "not graded within 1 s"
        assert details["raise"] == "KeyError: 'boom'"
        assert details["memory"].startswith("MemoryError")
        assert "2 times over" in details["die"]
        assert "finite" in details["nan"]
        assert graded.version == "666"

        after = graders.pids
        assert len(after) == len(before)
        assert all(is_alive(pid) for pid in after)
        assert not any(is_alive(pid) for pid in set(before) - set(after))
        assert [o.status for o in (await graders.grade(job(*["good"] * 20))).outcomes] == ["ok"] * 20
    assert not any(is_alive(pid) for pid in after)


async def in_hand():
    """The grader said so after all of its earlier answers: what a turn of the event loop reads is on the pipe already."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.needs("own-network")
@pytest.mark.parametrize("network", [True, False])
async def test_only_workers_that_may_use_the_network_reach_it(network):
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with pool(workers=1, timeout_s=60.0, network=network) as graders:
            (outcome,) = (await graders.grade(job(f"connect {server.getsockname()[1]}"))).outcomes
    assert (outcome.status, outcome.detail) == (
        ("ok", "") if network else ("error", "OSError: [Errno 101] Network is unreachable")
    )


@pytest.mark.needs("process-limit")
async def test_a_fork_bomb_is_held_at_its_limit_and_all_of_it_ends(marked, tmp_path):
    clock, held = ManualClock(), 0
    async with pool(workers=1, clock=clock) as graders:
        grading = asyncio.create_task(graders.grade(job("good", "bomb", "good", ground_truth=str(tmp_path))))
        await assert_eventually((tmp_path / "bomb").exists, within_s=HANG_S)
        await assert_eventually(lambda: len(descendants(*graders.pids)) >= MAX_PROCESSES - 3, within_s=HANG_S)
        for _ in range(100):
            held = max(held, len(descendants(*graders.pids)))
            await asyncio.sleep(0)
        (bombed,) = graders.pids
        await clock.advance(1.0)
        assert [outcome.status for outcome in (await grading).outcomes] == ["ok", "timeout", "ok"]
        assert not is_alive(bombed)
    assert held <= MAX_PROCESSES
    assert not marked()


@pytest.mark.needs("own-processes")
async def test_what_a_grader_left_in_the_background_ends_with_its_worker(marked):
    async with pool(workers=1, timeout_s=60.0) as graders:
        assert (await graders.grade(job("daemon"))).outcomes[0].status == "ok"
        await assert_eventually(lambda: len(descendants(*graders.pids)) == 3, what="first process, worker and daemon")
    assert not marked()


async def test_it_ends_with_its_worker_where_namespaces_are_not_permitted_too(marked, monkeypatch, without_namespaces):
    monkeypatch.setattr(sys, "executable", without_namespaces)
    async with pool(workers=1, timeout_s=60.0) as graders:
        assert (await graders.grade(job("daemon"))).outcomes[0].status == "ok"
        await assert_eventually(lambda: len(descendants(*graders.pids)) == 2, what="the worker and the daemon")
    assert not marked()


async def test_the_service_says_which_protections_are_on_and_what_follows_from_those_that_are_not(
    monkeypatch, without_namespaces
):
    with capture_logs() as logs:
        await say_protections()
    assert set(logs[0]["off"]) == {
        name for name in ("network", "processes", "survivors") if not sandbox_permits()[name]
    }
    monkeypatch.setattr(sys, "executable", without_namespaces)
    with capture_logs() as logs:
        await say_protections()
    said, warning = logs
    assert said["event"] == "sandbox"
    assert {"wall clock", "memory", "cpu time", "file size"} <= set(said["on"])
    assert {"network", "survivors"} <= set(said["off"])
    assert (warning["event"], warning["log_level"]) == ("sandbox_incomplete", "warning")
    assert "graders and programs reach the network" in warning["consequence"]


async def test_a_process_that_is_frozen_between_two_jobs_is_replaced_and_costs_no_sample():
    async with pool(workers=1) as graders:
        await graders.grade(job("good"))
        frozen = descendants(*graders.pids)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            graded = await graders.grade(job("good", "good"))
        assert [outcome.status for outcome in graded.outcomes] == ["ok", "ok"]
        assert not any(is_alive(pid) for pid in frozen)


async def test_good_groups_pass_while_another_hangs(tmp_path):
    clock = ManualClock()
    async with pool(clock=clock) as graders:
        hanging = asyncio.create_task(graders.grade(job("spin", ground_truth=str(tmp_path))))
        await assert_eventually((tmp_path / "spin").exists, within_s=HANG_S)
        good = await asyncio.gather(*(graders.grade(job(*["good"] * 8)) for _ in range(25)))
        assert not hanging.done()
        assert all(outcome.status == "ok" for graded in good for outcome in graded.outcomes)
        await in_hand()
        await clock.advance(1.0)
        assert (await hanging).outcomes[0].status == "timeout"


async def test_the_event_loop_is_never_held_while_a_grader_hangs(tmp_path):
    clock = ManualClock()  # it stands still: a loop that waited for a grader would do so for ever
    async with pool(clock=clock) as graders:
        hanging = [
            asyncio.create_task(graders.grade(job(what, ground_truth=str(tmp_path)))) for what in ("spin", "regex")
        ]
        for what in ("spin", "regex"):
            await assert_eventually((tmp_path / what).exists, within_s=HANG_S)
        await in_hand()
        assert not any(one.done() for one in hanging)
        await clock.advance(1.0)
        assert [(await one).outcomes[0].status for one in hanging] == ["timeout", "timeout"]


async def test_a_worker_killed_from_outside_while_idle_or_grading_loses_no_sample():
    async with pool(workers=1) as graders:
        os.kill(graders.pids[0], signal.SIGKILL)
        assert (await graders.grade(job("good"))).outcomes[0].status == "ok"
        grading = asyncio.create_task(graders.grade(job("good", "wait", "good")))
        await asyncio.sleep(0.25)
        os.kill(graders.pids[0], signal.SIGKILL)
        assert [outcome.status for outcome in (await grading).outcomes] == ["ok", "ok", "ok"]


async def test_a_verifier_that_cannot_be_loaded_fails_its_group_by_name_and_nothing_else():
    async with pool() as graders:
        graded = await graders.grade(job("a", "b", verifier="no_such_module"))
        assert [outcome.status for outcome in graded.outcomes] == ["error", "error"]
        assert "no_such_module" in graded.outcomes[0].detail
        assert (await graders.grade(job("good"))).outcomes[0].status == "ok"


async def test_what_is_not_reached_before_the_deadline_is_a_timeout_and_the_rest_is_kept():
    async with pool(timeout_s=30.0, workers=1) as graders:
        await graders.grade(job("good"))  # so that the start of the process is not part of it
        deadline_s = asyncio.get_running_loop().time() + 0.7
        graded = await graders.grade(job("good", "stubborn", "good", deadline_s=deadline_s))
        assert [outcome.status for outcome in graded.outcomes] == ["ok", "timeout", "timeout"]
        assert asyncio.get_running_loop().time() < deadline_s + 2.0


async def test_a_process_is_replaced_after_its_share_of_samples():
    async with pool(workers=1, recycle_after=4) as graders:
        pids = {(await graders.grade(job("good", "good"))).outcomes[0].grade.extracted for _ in range(6)}
        assert len(pids) == 3


async def test_a_full_queue_is_back_pressure(monkeypatch):
    monkeypatch.setattr("services.reward.sandbox.pool.MAX_WAITING_JOBS", 2)
    async with pool(workers=1, timeout_s=0.5) as graders, asyncio.TaskGroup() as group:
        tasks = [group.create_task(graders.grade(job("spin")))]
        await asyncio.sleep(0.1)
        tasks += [group.create_task(graders.grade(job("good"))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="start more reward replicas"):
            await graders.grade(job("good"))
    assert [task.result().outcomes[0].status for task in tasks] == ["timeout", "ok", "ok"]


SERVICE = """
import asyncio
from services.reward.ports import Completion, Job, Question
from services.reward.sandbox.pool import GraderPool
from services.reward.sandbox.grader_handle import Limits

async def main():
    limits = Limits(timeout_s=600, memory_bytes=1 << 30, recycle_after=100, file_bytes=1, max_processes=48,
        environment=["SLUICE_TEST"])
    question = Question(data_source="", prompt_text="", ground_truth="", extra_info={})
    async with GraderPool.open(workers=1, limits=limits) as pool:
        for text in ("daemon", "stubborn"):
            completions = [Completion(text=text, finished=True)]
            graded = await pool.grade(Job(verifier="reward_nasty_verifier", question=question, completions=completions))
            print(graded.outcomes[0].status, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("namespaces", [True, False])
async def test_nothing_outlives_a_service_that_is_killed(marked, without_namespaces, namespaces):
    service = await asyncio.create_subprocess_exec(
        *(sys.executable if namespaces else without_namespaces, "-c", SERVICE),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        async with asyncio.timeout(HANG_S):
            assert await service.stdout.readline() == b"ok\n"
        assert marked()
    finally:
        service.kill()
        await service.wait()
    await assert_eventually(lambda: not marked())


def tried(line):
    """A completion that makes the nasty verifier run a line; the outcome is `ok` when the line raised nothing."""
    return job(f"do {line}")


@pytest.mark.needs("own-files")
async def test_a_grader_reads_but_writes_only_temporary_files(tmp_path_factory):
    here = Path(__file__)
    (Path(tempfile.gettempdir()) / "sluice-redis-test").mkdir(exist_ok=True)
    lines = {
        f"open({str(here)!r}).read()": "ok",
        f"open({str(here)!r}, 'a')": "error",
        f"open({str(here.with_suffix('.new'))!r}, 'w')": "error",
        "open(os.path.expanduser('~/sluice-test'), 'w')": "error",
        "import tempfile; tempfile.TemporaryFile().write(b'x')": "ok",
        "import tempfile; os.rmdir(tempfile.gettempdir() + '/sluice-redis-test')": "error",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x20000) == 0": "error",
        "assert 'SLUICE_TEST_KEY' in os.environ": "error",
        "assert len([name for name in os.listdir('/proc') if name.isdigit()]) > 9": "error",
    }
    async with pool(workers=1, timeout_s=60.0) as graders:
        for line, status in lines.items():
            (outcome,) = (await graders.grade(tried(line))).outcomes
            assert (line, outcome.status) == (line, status), outcome.detail


async def test_a_grader_sees_of_the_environment_what_is_usual_and_what_is_named(monkeypatch):
    monkeypatch.setenv("SLUICE_TEST_KEY", "correct-horse")
    monkeypatch.setenv("SLUICE_TEST", "named")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    line = "assert 'SLUICE_TEST_KEY' not in os.environ and os.environ['SLUICE_TEST'] and os.environ['https_proxy']"
    async with pool(workers=1, timeout_s=60.0) as graders:
        (outcome,) = (await graders.grade(tried(line))).outcomes
    assert outcome.status == "ok", outcome.detail
