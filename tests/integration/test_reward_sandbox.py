"""Real worker processes under real attacks: good samples are scored, bad ones flagged, the pool is whole afterwards."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
import uvloop

from services.reward.ports import Completion, Job, Question
from services.reward.sandbox import GraderPool
from services.reward.worker_process import Limits
from sluice.errors import Overloaded

pytestmark = pytest.mark.integration

QUESTION = Question(data_source="nasty", prompt_text="", ground_truth="", extra_info={})


@pytest.fixture(autouse=True)
def _nasty_verifier_is_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def event_loop_policy():
    """The service runs on uvloop, whose pipes and processes fail in their own way."""
    return uvloop.EventLoopPolicy()


def pool(*, workers=2, timeout_s=1.0, memory_bytes=1 << 30, recycle_after=10_000):
    limits = Limits(timeout_s=timeout_s, memory_bytes=memory_bytes, recycle_after=recycle_after)
    return GraderPool.open(workers=workers, limits=limits)


def job(*texts, verifier="reward_nasty_verifier", deadline_s=None):
    completions = [Completion(text=text, finished=True) for text in texts]
    return Job(verifier=verifier, question=QUESTION, completions=completions, deadline_s=deadline_s)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_group_full_of_attacks_costs_only_the_attackers():
    bad = {
        "spin": "timeout",
        "regex": "timeout",
        "power": "timeout",
        "stubborn": "timeout",
        "memory": "error",
        "die": "error",
        "exit": "error",
        "raise": "error",
        "nan": "error",
        "chatty": "ok",
    }
    texts = [text for attack in bad for text in ("good", attack)] + ["good"]
    async with pool() as graders:
        before = graders.pids
        graded = await graders.grade(job(*texts))
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


async def test_a_process_that_is_frozen_between_two_jobs_is_replaced_and_costs_no_sample():
    async with pool(workers=1) as graders:
        await graders.grade(job("good"))
        (frozen,) = graders.pids
        os.kill(frozen, signal.SIGSTOP)
        async with asyncio.timeout(20):
            graded = await graders.grade(job("good", "good"))
        assert [outcome.status for outcome in graded.outcomes] == ["ok", "ok"]
        assert not is_alive(frozen)


async def test_good_groups_pass_while_another_hangs():
    async with pool(timeout_s=3.0) as graders:
        hanging = asyncio.create_task(graders.grade(job("spin")))
        good = await asyncio.gather(*(graders.grade(job(*["good"] * 8)) for _ in range(25)))
        assert not hanging.done()
        assert all(outcome.status == "ok" for graded in good for outcome in graded.outcomes)
        assert (await hanging).outcomes[0].status == "timeout"


async def test_the_event_loop_is_never_held_while_a_grader_hangs():
    async with pool() as graders:
        loop = asyncio.get_running_loop()
        hanging = asyncio.create_task(graders.grade(job("spin", "regex")))
        longest_s, last = 0.0, loop.time()
        while not hanging.done():
            await asyncio.sleep(0.01)
            longest_s, last = max(longest_s, loop.time() - last), loop.time()
        assert longest_s < 0.5


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
    monkeypatch.setattr("services.reward.sandbox.MAX_WAITING_JOBS", 2)
    async with pool(workers=1, timeout_s=0.5) as graders, asyncio.TaskGroup() as group:
        tasks = [group.create_task(graders.grade(job("spin")))]
        await asyncio.sleep(0.1)
        tasks += [group.create_task(graders.grade(job("good"))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="start more reward replicas"):
            await graders.grade(job("good"))
    assert [task.result().outcomes[0].status for task in tasks] == ["timeout", "ok", "ok"]


async def test_no_worker_outlives_a_service_that_is_killed():
    script = (
        "import asyncio\n"
        "from services.reward.sandbox import GraderPool\n"
        "from services.reward.worker_process import Limits\n"
        "async def main():\n"
        "    limits = Limits(timeout_s=60, memory_bytes=1 << 30, recycle_after=100)\n"
        "    async with GraderPool.open(workers=2, limits=limits) as pool:\n"
        "        print(*pool.pids, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    pids = [int(pid) for pid in (await service.stdout.readline()).split()]
    exits = [asyncio.get_running_loop().create_future() for _ in pids]
    descriptors = [os.pidfd_open(pid) for pid in pids]
    for descriptor, gone in zip(descriptors, exits, strict=True):
        asyncio.get_running_loop().add_reader(descriptor, lambda gone=gone: gone.done() or gone.set_result(None))
    service.kill()
    async with asyncio.timeout(10):
        await asyncio.gather(*exits)
    for descriptor in descriptors:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
    await service.wait()
