"""The check of environments before training: a scripted episode, what it refuses and what it tells. Real chat templates."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.coordinator.episodes.chat import chat_of
from services.coordinator.episodes.rehearsal import made_up
from services.coordinator.run.environment_check import AGAIN_AFTER_S, check_environments, scored_twice
from services.coordinator.state.ports import WrongAnswer
from services.reward.environments.builtin.calculator import Calculator
from sluice.environments import Message, Opening, Reply, Row, Score
from sluice.errors import ConfigError, NotReady, Overloaded, SluiceError, Unavailable
from tests.unit.coordinator.chat_templates import FAMILIES, tokenizer_of
from tests.unit.coordinator.fake_episodes import EpisodePrompt, EpisodeStage
from tests.unit.coordinator.fakes import settle

PROMPT = EpisodePrompt(prompt_id="p", data_source="mine", messages=(Message(role="user", content="1+1="),))


class Guess:
    """Says no once; scores."""

    def __init__(self) -> None:
        self.tries = 0

    def open(self, row: Row) -> Opening:
        return Opening(messages=[Message(role="user", content=f"Guess {row.seed}.")])

    def step(self, message: Message) -> Reply:
        self.tries += 1
        if self.tries == 1:
            return Reply(messages=[Message(role="user", content="no")])
        return Reply(done=True, score=Score(score=2.0, acc=1.0, parts={"tries": 2.0}))


@dataclass
class Servers:
    """Servers of environments, each with a class of its own; `fails` raises for a server's call."""

    make: Callable[[], Any]
    fails: Callable[[str, str], Exception | None] = lambda service_id, call: None
    open_now: dict[str, Any] = field(default_factory=dict)
    said: list[Message] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    async def open(self, member: Any, *, episode_id: str, prompt: Any, seed: int, max_turns: int, **_: Any) -> Opening:
        self._fail(member.service_id, "open")
        self.ids.append(episode_id)
        self.open_now[episode_id] = self.make()
        facts = {"data_source": "", "ground_truth": "", "extra_info": {}, "arguments": {}}
        row = Row(messages=prompt.messages, seed=seed, max_turns=max_turns, **facts)
        return self.open_now[episode_id].open(row)

    async def step(self, member: Any, *, episode_id: str, message: Message, **_: Any) -> Reply:
        self._fail(member.service_id, "step")
        self.said.append(message)
        return self.open_now[episode_id].step(message)

    async def close(self, member: Any, *, episode_id: str, timeout_s: float) -> None:
        self.open_now.pop(episode_id, None)

    def _fail(self, service_id: str, call: str) -> None:
        if (error := self.fails(service_id, call)) is not None:
            raise error


def checking(
    servers: Servers,
    *,
    template_text: str = FAMILIES["chatml"][0],
    hosts: int = 1,
    prompt: Any = PROMPT,
    template: Any = "model",
    **changes: Any,
) -> tuple[Coroutine[Any, Any, list[Any]], EpisodeStage]:
    budgets = {"data__max_prompt_length": 500, "data__max_response_length": 50, "data__max_episode_tokens": None}
    stage = EpisodeStage(hosts=hosts, **(budgets | changes))
    chat = chat_of(tokenizer_of(template_text, "<|im_end|>"), template=template)
    return check_environments(stage.run, environments=servers, chat=chat, prompts=[prompt]), stage


async def checked(servers: Servers, **of: Any) -> Any:
    check, _ = checking(servers, **of)
    [found] = await check
    assert not servers.open_now, "every episode was closed"
    return found


async def test_a_scripted_episode_is_told_message_by_message() -> None:
    found = await checked(Servers(Guess))
    lines = [line.split(" (0.")[0] for line in found.lines()]
    assert lines == [
        "game on env-0: opened in 0.00 s; tools: none",
        "  user: Guess 0.",
        "  assistant (scripted): 2",
        "  user",
        "  assistant (scripted): 2",
        "  done at turn 2: score 2, acc 1, tries 2",
    ]
    assert str(found).startswith("game on env-0: done at turn 2, score 2, acc 1, tries 2; 0.")
    assert found.notes == []


async def test_a_tool_is_called_and_its_answer_follows() -> None:
    servers = Servers(Calculator)
    found = await checked(servers)
    assert [call.arguments_json for call in servers.said[0].tool_calls] == ['{"expression": "1"}']
    assert '  assistant (scripted):  calculate({"expression": "1"})' in list(found.lines())
    assert (found.turns[0][1].messages[0].content, found.done, found.score) == ("1", True, None)
    assert "a grader scores it" in str(found)


def test_arguments_are_made_up_from_the_schema() -> None:
    kinds = {
        "text": {"type": "string"},
        "of": {"enum": ["b", "a"]},
        "n": {"type": "integer"},
        "left": {"default": 7},
        "deep": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
        "list": {"type": "array"},
        "any": True,
        "either": {"type": ["integer", "null"]},
        "odd": {"type": "object", "properties": ["x"], "required": True},
        "names": {"type": "object", "required": [["x"], "y"]},
    }
    schema = {"type": "object", "properties": {**kinds, "optional": {"type": "string"}}, "required": [*kinds]}
    made = {"text": "1", "of": "b", "n": 1, "left": 7, "deep": {"on": True}, "list": [], "any": "1"}
    made |= {"either": 1, "odd": {}, "names": {"y": "1"}}
    assert made_up(schema) == made
    assert made_up({}) == {}


class Chance(Guess):
    """Draws without the seed."""

    drawn = 0

    def open(self, row: Row) -> Opening:
        Chance.drawn += 1
        return Opening(messages=[Message(role="user", content=f"Guess {Chance.drawn}.")])


@pytest.mark.parametrize(
    ("servers", "changes", "says"),
    [
        (
            Servers(Calculator),
            {"template_text": "{% for m in messages %}{{ m.content }}{% endfor %}"},
            "environments.game: the chat template leaves out the tool 'calculate': take",
        ),
        (
            Servers(Calculator),
            {"template": "none"},
            "environments.game: data.template: none knows no tools, and the environment",
        ),
        (
            Servers(Chance),
            {},
            r"environments.game: .* must begin with the same messages and tools, got 'Guess 1.' and 'Guess 2.'",
        ),
        (
            Servers(Guess, fails=lambda _, call: WrongAnswer("env-0: tool 0: parameters_json must be JSON")),
            {"hosts": 2},
            "environments.game: env-0: tool 0: parameters_json must be JSON",
        ),
        (
            Servers(Guess, fails=lambda _, call: SluiceError("env-0: step: KeyError: 7") if call == "step" else None),
            {},
            "environments.game: env-0: step: KeyError: 7",
        ),
        (
            Servers(Guess),
            {"reward__routes": {"mine": "exact"}},
            "reward.routes.mine: no grader sees rows of data_source 'mine'",
        ),
    ],
)
async def test_what_would_fail_every_episode_is_refused_by_name(
    servers: Servers, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        await checked(servers, **changes)
    assert not servers.open_now


async def test_no_two_checks_share_an_episode_which_a_server_would_answer_from_memory() -> None:
    servers = Servers(Guess)
    for _ in range(2):
        await checked(servers)
    assert len(set(servers.ids)) == 4


async def test_a_server_that_fails_beside_one_that_passes_is_put_aside() -> None:
    servers = Servers(Guess, fails=lambda name, call: SluiceError("broken") if name == "env-0" else None)
    check, stage = checking(servers, hosts=2)
    [found] = await check
    assert found.service_id == "env-1"
    assert stage.fleet.members["env-0"].health.counts[0] == 1


async def test_faults_of_the_moment_are_tried_again() -> None:
    errors = [Unavailable("away"), Overloaded("full")]
    check, stage = checking(Servers(Guess, fails=lambda *_: errors.pop() if errors else None))
    task = asyncio.create_task(check)
    for _ in range(2):
        await settle()
        await stage.clock.advance(AGAIN_AFTER_S)
    [found] = await task
    assert found.done


async def test_an_environment_that_no_server_hosts_is_named() -> None:
    absent = EpisodePrompt(prompt_id="p", environment="maze")
    check, stage = checking(Servers(Guess), prompt=absent, launch__ready_timeout_s=4)
    task = asyncio.create_task(check)
    await settle()
    await stage.clock.advance(5)
    stage.fleet.changed.notify()
    with pytest.raises(NotReady, match=r"environments.maze: no server hosts it for 4 s .*; hosted are game"):
        await task


async def test_what_hinders_training_is_noted() -> None:
    found = await checked(Servers(Guess), data__max_prompt_length=8)
    assert "data.max_prompt_length is 8" in found.notes[0]
    found = await checked(
        Servers(Guess), data__max_prompt_length=30, data__max_response_length=2, data__max_episode_tokens=33
    )
    assert "leave no room for another turn: raise data.max_episode_tokens (33)" in " ".join(found.notes)


def test_rows_are_scored_by_a_grader_or_by_their_environment() -> None:
    routes, scoring = {"math/*": 0, "code": 0, "*": 0}, {"game"}
    assert scored_twice([("other", "game"), ("math/a", "calc"), ("code", "")], routes=routes, scoring=scoring) == []
    assert scored_twice([("code", "game"), ("code", "")], routes=routes, scoring=scoring) == [], (
        "others need the grader"
    )
    [line] = scored_twice([("math/a", "game"), ("math/a", "game")], routes=routes, scoring=scoring)
    assert line.startswith(
        "reward.routes.math/*: no grader sees rows of data_source 'math/a', because their environment 'game'"
    )
