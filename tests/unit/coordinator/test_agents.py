"""Agents' conversations over real templates, and the desk at which agents take episodes."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.coordinator.agents.asking import CONTEXT_LENGTH, Ask, Ended, Refused
from services.coordinator.agents.conversation import Conversation, Placed
from services.coordinator.agents.desk import AgentDesk
from services.coordinator.agents.door import Door
from services.coordinator.agents.forms import chat_ask, read_json
from services.coordinator.agents.playing import AgentPlayer
from services.coordinator.agents.session import AgentSession, Pending
from services.coordinator.episodes.chat import chat_of
from services.coordinator.episodes.chat_calls import ChatCalls
from services.coordinator.episodes.episode import EnvironmentFailed
from services.coordinator.episodes.wanted_episode import Limits, Wanted
from services.coordinator.state.member import State
from services.coordinator.state.progress import RunState
from sluice.environments import Message, Tool, ToolCall
from sluice.errors import NotFound, Overloaded
from sluice.rpc.access import Role
from sluice.rpc.tokens import load, make_tokens
from tests.unit.coordinator.chat_templates import FAMILIES, tokenizer_of
from tests.unit.coordinator.fake_episodes import EpisodePrompt
from tests.unit.coordinator.fakes import Stage, make_config, settle

USER = Message(role="user", content="What is 1 + 1?")
ADD = Tool(name="add", parameters={"type": "object", "properties": {}})
CALL = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'


class Talk:
    """A conversation in one template, and what the policy writes in it."""

    def __init__(self, family: str) -> None:
        template, self.end, _ = FAMILIES[family]
        self.tokenizer = tokenizer_of(template, self.end)
        self.chat: Any = chat_of(self.tokenizer, template="model")
        self.calls = ChatCalls(self.chat)
        self.conversation = Conversation(self.calls)

    def ids(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    async def place(self, *messages: Message, tools: tuple[Tool, ...] = (ADD,)) -> Placed:
        return await self.conversation.place(Ask(fingerprint=b"", messages=messages, tools=tools))

    async def say(self, placed: Placed, text: str) -> Message:
        return await self.conversation.said(placed, self.ids(text + self.end))


async def test_a_conversation_goes_on_forks_and_is_repeated_without_rendering_a_turn_again() -> None:
    talk = Talk("chatml")
    first = await talk.place(USER)
    assert first.follows.rewritten
    assert first.text.startswith("<|im_start|>system")
    said = await talk.say(first, f"Let me see. {CALL}")
    (call,) = said.tool_calls
    assert (call.id, call.name) == ("call_0_0", "add")
    answer = Message(role="tool", content="2", tool_call_id=call.id)

    going_on = await talk.place(USER, said, answer)
    stream = np.concatenate([first.context, talk.ids(f"Let me see. {CALL}<|im_end|>")])
    assert not going_on.follows.rewritten
    assert np.array_equal(going_on.context[: len(stream)], stream)
    assert [one.name for one in going_on.new] == ["add"], "the id was given here, so the tool's name stands for it"
    assert "call_0" not in talk.tokenizer.decode(going_on.context)
    later = await talk.say(going_on, "2.")

    again = await talk.place(USER, said, answer)
    assert again.follows.rewritten
    assert np.array_equal(again.context, going_on.context), "a repeated request reads what the first one read"
    await talk.say(again, "3.")

    back = await talk.place(USER, said, answer, later, Message(role="user", content="Sure?"))
    assert back.follows.rewritten, "the repeated request came between"
    assert np.array_equal(back.context[: len(going_on.context)], going_on.context)
    assert np.array_equal(back.context[len(going_on.context) :][:3], talk.ids("2.<|im_end|>"))
    edited = await talk.place(USER, Message(role="assistant", content="Two."), Message(role="user", content="Sure?"))
    assert edited.follows.rewritten
    assert "Two.<|im_end|>" in talk.tokenizer.decode(edited.context)
    other_tools = await talk.place(USER, said, answer, tools=())
    assert other_tools.follows.rewritten, "the policy reads other tools"


async def test_a_thought_that_the_agent_leaves_out_stays_where_the_template_keeps_it() -> None:
    talk = Talk("chatml-thinking")
    said = await talk.say(await talk.place(USER), f"<think>\nhm\n</think>\n\n{CALL}")
    assert said.reasoning == "hm"
    echo = Message(role="assistant", content=said.content, tool_calls=said.tool_calls)
    placed = await talk.place(USER, echo, Message(role="tool", content="2", tool_call_id="call_0_0"))
    assert not placed.follows.rewritten
    assert "<think>\nhm" in talk.tokenizer.decode(placed.context)
    other = Message(role="assistant", content="", tool_calls=(ToolCall(name="add", arguments_json='{"a": 1}'),))
    assert (await talk.place(USER, other, Message(role="user", content="?"))).follows.rewritten


async def test_what_is_long_leaves_the_event_loop() -> None:
    talk = Talk("chatml")
    places: list[str] = []
    render = talk.chat.open

    def told(*chat: Any) -> Any:
        places.append(threading.current_thread().name)
        return render(*chat)

    talk.chat.open = told
    thought = Message(role="assistant", content="", reasoning="x" * 9_000)
    wide = Tool(name="add", parameters={"type": "object", "properties": {}, "description": "x" * 9_000})
    for messages, tools in (([USER], (ADD,)), ([USER, thought, USER], (ADD,)), ([USER], (ADD, wide))):
        await talk.calls.open(messages, tools)
    assert [place.startswith("chat") for place in places] == [False, True, True]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"a": "\xed\xa0\x80"}', "can't decode byte 0xed"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"a": "\\ud800"}'.encode("utf-16"), "can't decode byte 0xff"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": ' + b"[" * 9_000, "recursion"),
        (b"[]", "must be a JSON object, got list"),
    ],
    ids=["half", "escaped", "utf-16", "nan", "deep", "list"],
)
def test_a_body_is_json_in_utf8(body: bytes, says: str) -> None:
    with pytest.raises(Refused, match=says):
        read_json(body)


def test_a_tool_without_bounds_is_refused() -> None:
    function = {"name": "f", "parameters": {"type": "object", "description": "x" * (1 << 16)}}
    tree = {"messages": [{"role": "user", "content": "?"}], "tools": [{"type": "function", "function": function}]}
    with pytest.raises(Refused, match="tools: 'f' has over 65536 characters"):
        chat_ask(tree, temperature=1.0, body=b"")


def desk_of(**changes: Any) -> tuple[Stage, AgentDesk]:
    stage = Stage(make_config(environments__game={"environment": "agent", "episodes": 2}, **changes))
    return stage, AgentDesk(stage.run)


WANTED = Wanted(name="g.0", index=0, prompt=EpisodePrompt(prompt_id="p"), seed=7)


async def test_agents_that_wait_are_the_places_and_a_run_without_agents_lacks_the_server() -> None:
    stage, desk = desk_of()
    staying = asyncio.create_task(desk.stay())
    with pytest.raises(Overloaded):
        desk.hand_over(WANTED, episode_id="e0")
    takes = [asyncio.create_task(desk.take("", wait_s=60)) for _ in range(2)]
    await settle()
    member = stage.fleet.members["agents-game"]
    assert (member.state, member.capacity) == (State.READY, 2)
    with pytest.raises(Refused, match="2 agents are here already"):
        await desk.take("game", wait_s=0)
    session = desk.hand_over(WANTED, episode_id="e1")
    assert await takes[0] is session
    assert member.capacity == 2
    takes[1].cancel()
    await settle()
    assert member.capacity == 1
    assert desk.session(session.key) is session
    desk.close(session, "the rollout died")
    assert member.capacity == 0
    with pytest.raises(Refused, match="over: the rollout died"):
        desk.session(session.key)
    with pytest.raises(Refused, match="no episode is open under this key"):
        desk.session("x" * 43)
    for _ in range(int(stage.config.coordinator.heartbeat_timeout_s) + 3):
        await stage.clock.advance(1.0)
    assert member.state is State.LOST
    assert await desk.take("game", wait_s=0) is None
    assert stage.fleet.members["agents-game"].state is State.READY, "an agent is here again"
    stage.progress.state = RunState.FINISHED
    await stage.clock.advance(1.0)
    assert stage.fleet.members["agents-game"].state is State.DRAINING
    with pytest.raises(Refused, match="the run has ended: finished"):
        await desk.take("game", wait_s=0)
    staying.cancel()


async def test_people_are_told_where_agents_take_episodes_once_there_is_such_a_place() -> None:
    stage, desk = desk_of()
    staying = asyncio.create_task(desk.stay())

    def told() -> list[str]:
        return [event.message for event in stage.run.events._kept if event.kind == "agents_awaited"]

    await settle()
    await stage.clock.advance(1.0)
    assert told() == []
    desk.address = "http://127.0.0.1:1/v1"
    for _ in range(3):
        await stage.clock.advance(1.0)
    assert told() == ["game: no agent is here; they take episodes at http://127.0.0.1:1/v1"]
    staying.cancel()


async def test_a_silent_agent_and_one_that_left_before_it_heard_end_the_episode() -> None:
    session = AgentSession(episode_id="e", wanted=WANTED, scores=True, key="k")
    assert "'k'" not in repr(session)
    with pytest.raises(NotFound, match="asked for no turn that could be sampled in 0"):
        await session.next(0.01)
    asking = asyncio.create_task(session.ask(Ask(fingerprint=b"1", messages=[USER])))
    pending = await session.next(5)
    assert isinstance(pending, Pending)
    with pytest.raises(Refused, match="finish after its answer"):
        session.end(Ended(error="tired"))
    with pytest.raises(Refused, match="asks for one at a time"):
        await session.ask(Ask(fingerprint=b"1", messages=[USER]))
    asking.cancel()
    await settle()
    asking = asyncio.create_task(session.ask(Ask(fingerprint=b"1", messages=[USER])))
    await settle()
    assert session._came.empty(), "the same request, whose connection had ended, waits for the answer to the first"
    session.close("the group failed")
    with pytest.raises(Refused, match="over: the group failed"):
        await asking
    left = AgentSession(episode_id="e", wanted=WANTED, scores=True, key="k")
    left.leave()
    with pytest.raises(Overloaded, match="has gone"):
        await left.next(5)


async def test_requests_that_are_refused_for_ever_end_the_episode() -> None:
    stage, desk = desk_of()
    talk = Talk("chatml")
    limits = Limits(
        turns=2, prompt_tokens=4, sampled_tokens=4, episode_tokens=8, answer_s=0.2, lease_s=60.0, push_back_s=60.0
    )
    agents = AgentPlayer(desk, limits=limits, chat=talk.calls, text_of=str)
    taking = asyncio.create_task(desk.take("game", wait_s=60))
    await settle()
    policy: Any = SimpleNamespace(begin=lambda: None, lost=lambda tokens: None)
    playing = asyncio.create_task(agents.play(stage.fleet.members["agents-game"], WANTED, policy, episode_id="e1"))
    session = await taking
    assert session is not None

    async def insists() -> str:
        while True:
            with pytest.raises(Refused) as caught:
                await session.ask(Ask(fingerprint=b"", messages=[USER]))
            if caught.value.code != CONTEXT_LENGTH:
                return str(caught.value)

    async with asyncio.timeout(20):
        said = await insists()
    assert "over: the agent of e1 asked for no turn that could be sampled in 0.2 s" in said
    with pytest.raises(EnvironmentFailed):
        await playing


async def test_with_tokens_only_the_role_environment_takes_episodes(tmp_path: Any) -> None:
    make_tokens(tmp_path, private_network=False)
    stage, desk = desk_of()
    door = Door(load(tmp_path / "coordinator"), desk, clock=stage.clock)

    class Request:
        def __init__(self, **headers: str) -> None:
            from multidict import CIMultiDict

            self.headers = CIMultiDict(headers)

        def get_extra_info(self, name: str) -> None:
            return None

    def shown_by(role: Role) -> Any:
        token = load(tmp_path / role).speaks[Role.COORDINATOR]
        return Request(Authorization=f"Bearer {token}")

    door.check_may_take(shown_by(Role.ENVIRONMENT))
    for request, status in ((shown_by(Role.OPERATOR), 403), (Request(), 401), (Request(Authorization="Bearer x"), 401)):
        with pytest.raises(Refused) as caught:
            door.check_may_take(request)  # type: ignore[arg-type]
        assert caught.value.status == status
