"""The worker that takes episodes from a gateway, against a gateway of canned answers; no library of environments is needed."""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from sluice.agents.episode import Episode, Outcome
from sluice.agents.gateway import Gateway
from sluice.agents.taskset import Tasks, env_config, rows
from sluice.agents.verifiers_runner import not_complete, outcome
from sluice.agents.worker import Worker
from sluice.errors import ConfigError, DataError, LaunchError, Unavailable

URL = "http://run/v1"
Answer = httpx.Response | Exception


def episode(name: str, **changed: Any) -> httpx.Response:
    limits = {"turns": 4, "sampled_tokens": 12, "sequence_tokens": 100}
    tree = {"key": f"key-{name}", "episode": name, "model": "m", "scores": True, "env_args": {"task": 0}}
    return httpx.Response(200, json={**tree, "limits": limits, "sampling": {"temperature": 1.0}, **changed})


def refused(status: int, message: str = "no") -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "code": "c"}})


class Canned:
    """A gateway that gives these answers to who asks for an episode, then that the run has ended."""

    def __init__(self, *episodes: Answer, finishes: tuple[Answer, ...] = ()) -> None:
        self.episodes, self.finishes = list(episodes), list(finishes)
        self.taken: list[dict[str, Any]] = []
        self.ended: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body, shown = json.loads(request.content), request.headers.get("Authorization", "")
        if request.url.path == "/v1/episodes":
            self.taken.append(body | {"shown": shown})
            answer = self.episodes.pop(0) if self.episodes else refused(410, "the run has ended")
        else:
            self.ended.append((shown, body))
            answer = self.finishes.pop(0) if self.finishes else httpx.Response(200, json={})
        if isinstance(answer, Exception):
            raise answer
        return answer


class Playing:
    """A runner of one function."""

    def __init__(self, play: Callable[[Episode], Any]) -> None:
        self._play = play
        self.seats: list[int] = []

    async def play(self, episode: Episode, *, seat: int) -> Outcome:
        self.seats.append(seat)
        played = self._play(episode)
        return await played if asyncio.iscoroutine(played) else played


def worker(canned: Canned, play: Callable[[Episode], Any], **changed: Any) -> Worker:
    headers = {"authorization": "Bearer token"}
    gateway = Gateway(URL, headers=headers, pause_s=0.0, transport=httpx.MockTransport(canned))
    settings: dict[str, Any] = {"environment": "mine", "parallel": 1, "grace_s": 0.0}
    return Worker(gateway, Playing(play), **settings | changed)


def scored(_: Episode) -> Outcome:
    return Outcome(score=0.5, parts={"right": 0.5, "lost": float("nan"), "x" * 200: 1.0})


async def test_episodes_are_played_until_the_run_is_over_and_their_ends_are_told_with_their_keys() -> None:
    canned = Canned(
        episode("a"), httpx.Response(204), refused(429, "too many agents"), refused(503), episode("b", scores=False)
    )
    tally = await worker(canned, scored).work()
    assert (tally.finished, tally.failed) == (2, 0)
    assert canned.taken[0] == {"environment": "mine", "wait_s": 30.0, "shown": "Bearer token"}
    assert canned.ended == [
        ("Bearer key-a", {"score": 0.5, "parts": {"right": 0.5, "x" * 100: 1.0}}),
        ("Bearer key-b", {}),
    ]


async def test_what_an_environment_raises_costs_its_episode_and_not_the_worker() -> None:
    def play(episode: Episode) -> Outcome:
        if episode.episode == "a":
            raise RuntimeError("no  sandbox")
        return Outcome(score=float("inf")) if episode.episode == "b" else scored(episode)

    late = (httpx.Response(200), httpx.Response(200), refused(410), refused(409, "no turn was sampled"))
    canned = Canned(*(episode(name) for name in "abcd"), finishes=late)
    tally = await worker(canned, play).work()
    assert (tally.finished, tally.failed) == (1, 3)  # c was over already, which is no failure
    said = [body.get("error", "") for _, body in canned.ended]
    assert said[0] == "RuntimeError: no  sandbox"
    assert said[1].startswith("ValueError: the score must be finite")
    assert said[2:] == ["", "", "InvalidRequest: no turn was sampled"]


async def test_a_connection_that_is_lost_is_tried_again_and_a_gateway_that_stays_away_ends_the_worker() -> None:
    lost = httpx.ConnectError("refused")
    canned = Canned(lost, lost, episode("a"), finishes=(lost, lost))
    assert (await worker(canned, scored).work()).finished == 1
    assert len(canned.ended) == 3
    with pytest.raises(Unavailable, match="http://run/v1 cannot be reached: refused"):
        await worker(Canned(*[lost] * 9), scored, gone_s=-1.0).work()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (refused(403, "episodes are for the role environment"), "episodes are for the role environment"),
        (httpx.Response(404, text="<html>"), "status 404, which is no answer of a gateway"),
        (httpx.Response(200, json={"key": "k"}), "answers no episode"),
    ],
)
async def test_a_gateway_that_refuses_the_worker_ends_it(answer: httpx.Response, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        await worker(Canned(answer), scored).work()


async def test_what_no_episode_can_mend_ends_the_worker_after_its_episode_is_given_back() -> None:
    def play(_: Episode) -> Outcome:
        raise ConfigError("task 7: the taskset has only 5 tasks")

    canned = Canned(episode("a"))
    with pytest.raises(ConfigError, match="only 5 tasks"):
        await worker(canned, play, parallel=3).work()
    assert canned.ended[0][1] == {"error": "task 7: the taskset has only 5 tasks"}


async def test_a_worker_that_is_stopped_lets_episodes_end_and_gives_back_those_that_do_not() -> None:
    both = asyncio.Event()

    async def play(episode: Episode) -> Outcome:
        if episode.episode == "b":
            both.set()
            await asyncio.Event().wait()
        await both.wait()
        at_work.stop.set()
        return scored(episode)

    canned = Canned(episode("a"), episode("b"), *[httpx.Response(204)] * 9)
    at_work = worker(canned, play, parallel=2, grace_s=0.01)
    tally = await at_work.work()
    assert (tally.finished, tally.failed) == (1, 1)
    assert canned.ended[-1] == ("Bearer key-b", {"error": "the worker was stopped"})


class Task:
    """What the adapter reads of a task of verifiers."""

    def __init__(self, prompt: str, key: str) -> None:
        self.key = key
        self.data = type("Data", (), {"prompt_text": prompt, "system_prompt": "Be brief." if prompt else None})


class Endless:
    bounded = False
    config = type("Config", (), {"id": "sums"})

    def __iter__(self) -> Any:
        raise AssertionError("nobody reads an endless taskset to its end")

    def take(self, number: int) -> Any:
        return [Task(f"{each} + 9" if each else "", f"{each:064}") for each in range(number)]


async def test_rows_name_tasks_and_a_row_of_another_taskset_is_refused() -> None:
    taskset: Any = Endless()
    with pytest.raises(DataError, match="sums: the taskset is endless; give --limit N"):
        list(rows(taskset, environment="", limit=None))
    first, second = rows(taskset, environment="mine", limit=2)
    assert first["prompt"] == [{"role": "user", "content": "task 0"}]
    assert second["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 9"}]
    assert (second["environment"], second["data_source"]) == ("mine", "sums")
    tasks = Tasks(taskset.take(2))
    arguments: Any = second["env_args"]
    assert (await tasks.of(arguments)).data.prompt_text == "1 + 9"
    for wrong, why in (
        ({}, "env_args.task: must be the number of a task, got None"),
        ({"task": 1, "key": "another"}, "task 1: the taskset has another task"),
        ({"task": 2, "key": ""}, "task 2: the taskset has only 2 tasks"),
    ):
        with pytest.raises(ConfigError, match=why):
            await tasks.of(wrong)


def trace(*, agent: str = "agent", stop: str = "", error: str = "", **rewards: float) -> Any:
    """What the adapter reads of a trace of verifiers."""
    return SimpleNamespace(
        agent=SimpleNamespace(name=agent),
        rewards={name: SimpleNamespace(value=value) for name, value in rewards.items()} | {"skipped": None},
        metrics={"turns": 2.0, "unknown": None},
        reward=sum(rewards.values()),
        stop_condition=stop,
        errors=[SimpleNamespace(type="ProviderError", message=error)] if error else [],
    )


def test_the_score_is_the_rewards_and_the_parts_are_rewards_and_metrics() -> None:
    assert outcome([trace(right=1.0, form=-0.5)]) == Outcome(
        score=0.5, parts={"right": 1.0, "form": -0.5, "turns": 2.0}
    )
    two = outcome([trace(agent="a", right=1.0), trace(agent="b", right=0.0)])
    assert two == Outcome(score=0.5, parts={"a.right": 1.0, "a.turns": 2.0, "b.right": 0.0, "b.turns": 2.0})
    with pytest.raises(ValueError, match="no agent of the episode asked the policy"):
        outcome([])


@pytest.mark.parametrize(
    "broken_off",
    [
        trace(stop="max_turns", error="the exchange is over"),
        trace(error="Error code: 400 - {'error': {'code': 'context_length_exceeded'}}"),
        trace(error="Prompt length (417) exceeds maximum context length (256)."),
    ],
)
def test_an_episode_that_the_budgets_broke_off_scores_nothing_and_one_that_failed_is_an_error(broken_off: Any) -> None:
    ended = SimpleNamespace(errors=[], traces=[broken_off])
    assert not_complete(ended) == Outcome(score=0.0, parts={"out_of_room": 1.0})
    with pytest.raises(RuntimeError, match="ProviderError: 503"):
        not_complete(SimpleNamespace(errors=[], traces=[trace(error="503")]))


def test_where_verifiers_is_missing_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LaunchError, match=r'pip install "sluice-rl\[verifiers\]"'):
        env_config("sums", env="", settings="")
