"""Reward services under load, over real gRPC: a judge that is away, full, slow and back; replicas of different speed."""

import asyncio
import json
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest
from structlog.testing import capture_logs

from services.coordinator.groups.grading import Grading
from services.coordinator.state import back_pressure
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import Group, GroupFailed
from services.coordinator.state.member import Member, Role
from services.coordinator.wire.clients import Clients
from services.reward.app import make_reward_server, open_graders
from services.reward.routing import Router
from sluice.clock import SystemClock
from sluice.telemetry.prometheus import Exporter
from sluice.testing.waiting import assert_eventually
from tests.free_port import free_port
from tests.quiet_server import QuietServer, answering
from tests.unit.coordinator.fakes import FakePrompt, make_config, make_sample

pytestmark = pytest.mark.integration

N = 4


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """So that a group is told often to come again within seconds."""
    monkeypatch.setattr(back_pressure, "FIRST_PAUSE_S", 0.05)


class Judge(QuietServer):
    """An OpenAI-compatible server whose `mood` is what becomes of the next call."""

    def __init__(self, port, mood):
        super().__init__(("127.0.0.1", port), _Answer)
        self.mood, self.asked_s = mood, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked_s.append(time.monotonic())
        mood = self.server.mood
        if mood == "full once":
            self.server.mood = "up"
        if mood == "slow":
            time.sleep(4)
        if mood != "up":
            self.send_response(429 if "full" in mood else 503)
            self.send_header("Retry-After", {"full once": "1", "full for long": "3600"}.get(mood, "soon"))
            self.end_headers()
            return
        raw = json.dumps({"choices": [{"message": {"content": "Score: 1"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@contextmanager
def judge(mood="up", port=0):
    server = Judge(port, mood)
    with answering(server):
        yield server


class Counted:
    """Graders that remember how many groups they had at once."""

    def __init__(self, graders):
        self._graders, self.now, self.most, self.graded = graders, 0, 0, 0

    async def grade(self, job):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._graders.grade(job)
        finally:
            self.now -= 1
            self.graded += 1


@asynccontextmanager
async def replica(fleet, service_id, route, *, workers=1, timeout_s=2.0, **reward):
    """A reward service in this process, registered with `fleet`; `fake` is routed to `route`."""
    settings = {"workers": workers, "timeout_s": timeout_s, "routes": {"fake": route}, **reward}
    config = make_config(**{f"reward__{name}": value for name, value in settings.items()})
    router = Router(config.reward.routes)
    async with open_graders(config, router) as pools:
        counted = Counted(pools)
        server = await make_reward_server(config, router, counted, Exporter(service="reward"))
        counted.most = counted.graded = 0  # of the self-check
        address = f"127.0.0.1:{await server.start(bind='127.0.0.1', port=0)}"
        member = Member(
            service_id=service_id,
            role=Role.REWARD,
            address=address,
            incarnation=service_id,
            capacity=pools.capacity,
            last_beat_s=0.0,
        )
        fleet.register(member)
        try:
            yield counted
        finally:
            await server.stop(grace_s=1.0)


@asynccontextmanager
async def judging(url, *, wait_s=60.0, **settings):
    """Fills a group as the coordinator does, by a real service that asks the judge at `url`."""
    settings = {"url": url, "model": "m", "pause_s": 0.5, "timeout_s": 1.0, **settings}
    fleet, clients = Fleet(), Clients(vocabulary=1)
    config = make_config(coordinator__score_wait_s=wait_s)
    scoring = Grading(config=config, fleet=fleet, rewards=clients, clock=SystemClock())

    async def fill(name="g"):
        group = Group(group_id=name, admission=0, cursor="", prompt=FakePrompt(prompt_id=name))
        group.samples = {index: make_sample(index, version=0) for index in range(N)}
        await scoring.fill(group)
        return [reward.acc for reward in group.rewards]

    async with replica(fleet, "reward-0", {"grader": "judge", "settings": settings}):
        try:
            yield fill
        finally:
            await clients.close()


@pytest.fixture
def pushed_back():
    """Waits until a group was told to come again so often."""

    async def wait(group_id, *, times):
        def count():
            return sum(event["event"] == "graders_push_back" and event["group_id"] == group_id for event in events)

        await assert_eventually(lambda: count() >= times, within_s=60)

    with capture_logs() as events:
        yield wait


async def test_groups_wait_for_a_judge_that_is_down_and_are_graded_when_it_is_back(pushed_back):
    port = free_port()
    async with judging(f"http://127.0.0.1:{port}/v1") as fill:
        groups = [asyncio.create_task(fill(f"g{number}")) for number in range(3)]
        await pushed_back("g0", times=5)  # more often than there are attempts
        assert not any(group.done() for group in groups)
        with judge(port=port):
            assert await asyncio.gather(*groups) == [[1.0] * N] * 3


async def test_a_judge_that_fails_is_left_alone_but_for_a_probe_a_pause(pushed_back):
    with judge("down") as server:
        async with judging(server.url, pause_s=600.0) as fill:
            group = asyncio.create_task(fill())
            await pushed_back("g", times=4)
            assert len(server.asked_s) >= 5
            assert len(server.asked_s) <= 5 + N, "those that were under way when it opened"
            assert not group.done()
            group.cancel()
            await asyncio.gather(group, return_exceptions=True)


async def test_a_429_is_asked_again_when_the_judge_said_so():
    with judge("full once") as server:
        async with judging(server.url) as fill:
            assert await fill() == [1.0] * N
    assert len(server.asked_s) == N + 1
    assert server.asked_s[-1] - server.asked_s[0] >= 1.0


async def test_a_retry_after_beyond_the_limit_makes_the_group_wait_without_asking():
    with judge("full for long") as server:
        async with judging(server.url, wait_s=1.0) as fill:
            with pytest.raises(GroupFailed) as failed:
                await fill()
    assert failed.value.reason == "reward_overloaded"
    assert "coordinator.score_wait_s is 1" in failed.value.fault
    assert len(server.asked_s) <= N


async def test_a_slow_judge_costs_tries_until_it_is_clear_that_it_answers_nobody():
    with judge("slow") as server:
        async with judging(server.url, open_after=N) as fill:
            group = asyncio.create_task(fill())
            await assert_eventually(lambda: len(server.asked_s) >= N, within_s=20)
            server.mood = "up"
            assert await group == [1.0] * N


async def test_the_faster_replica_gets_more_and_none_more_than_it_holds(tmp_path):
    fleet, clients = Fleet(), Clients(vocabulary=1)
    for name, seconds in (("fast", 0.01), ("slow", 0.15)):
        (tmp_path / f"{name}.py").write_text(
            f"import time\ndef score(solution_str):\n    time.sleep({seconds})\n    return 1.0\n"
        )
    graders = Grading(config=make_config(), fleet=fleet, rewards=clients, clock=SystemClock())
    took = Counter()

    async def one(number):
        def taken_by(service_id):
            took[service_id] += bool(service_id)

        samples = [make_sample(index, version=0) for index in range(N)]
        rewards = await graders.score(
            tries=graders.tries(),
            group_id=f"g{number}",
            prompt=FakePrompt(prompt_id="p"),
            samples=samples,
            timeout_s=60.0,
            taken_by=taken_by,
        )
        assert all(reward.acc == 1.0 for reward in rewards)

    async with AsyncExitStack() as stack:
        fast, slow = [
            await stack.enter_async_context(
                replica(fleet, name, f"{tmp_path / name}.py:score", workers=workers, timeout_s=30.0)
            )
            for name, workers in (("fast", 2), ("slow", 1))
        ]
        stack.push_async_callback(clients.close)
        await asyncio.gather(*(one(number) for number in range(60)))
        assert (fast.most, slow.most) == (2, 1)
        assert fast.graded + slow.graded == 60, "none was asked twice, none refused"
        assert took["fast"] > 3 * took["slow"] > 0


async def test_a_completion_too_long_to_be_graded_is_not_tried_again(tmp_path):
    (tmp_path / "any.py").write_text("def score(solution_str):\n    return 1.0\n")
    fleet, clients = Fleet(), Clients(vocabulary=1)
    config = make_config(reward__max_answer_chars=100)
    scoring = Grading(config=config, fleet=fleet, rewards=clients, clock=SystemClock())
    group = Group(group_id="g", admission=0, cursor="", prompt=FakePrompt(prompt_id="p"))
    group.samples = {index: make_sample(index, version=0) for index in range(N)}
    group.samples[1] = replace(group.samples[1], text="x" * 101)
    async with replica(fleet, "reward-0", f"{tmp_path / 'any.py'}:score", max_answer_chars=100) as counted:
        with pytest.raises(GroupFailed, match=r"over reward\.max_answer_chars") as failed:
            await scoring.fill(group)
        await clients.close()
    assert failed.value.reason == "reward_error"
    assert counted.graded == 1


async def test_a_queue_that_is_full_is_waited_out(tmp_path, monkeypatch):
    """A service that others use too: its capacity says nothing of its queue."""
    monkeypatch.setattr("services.reward.sandbox.pool.MAX_WAITING_JOBS", 1)
    (tmp_path / "slow.py").write_text("import time\ndef score(solution_str):\n    time.sleep(0.05)\n    return 1.0\n")
    fleet, clients = Fleet(), Clients(vocabulary=1)
    graders = Grading(config=make_config(), fleet=fleet, rewards=clients, clock=SystemClock())
    async with replica(fleet, "reward-0", f"{tmp_path / 'slow.py'}:score", timeout_s=30.0) as counted:
        (member,) = fleet.of(Role.REWARD)
        member.capacity = 16
        call = {"prompt": FakePrompt(prompt_id="p"), "samples": [make_sample(0, version=0)], "timeout_s": 60.0}
        groups = [graders.score(tries=graders.tries(), group_id=f"g{number}", **call) for number in range(16)]
        rewards = await asyncio.gather(*groups)
        await clients.close()
        assert [[reward.acc for reward in group] for group in rewards] == [[1.0]] * 16
        assert counted.graded > 16, "some were refused first"
