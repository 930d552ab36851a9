"""Environments hosted by the reward process: real worker processes, real gRPC. One server for all faults."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from services.reward.environments.host import EnvironmentHost
from services.reward.environments.servicer import SERVICE_NAME, EnvironmentServicer
from services.reward.environments.starting import open_environments
from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.rpc.channel import open_channel
from sluice.rpc.server import make_server
from sluice.testing.waiting import assert_eventually
from sluice.v1 import common_pb2 as common
from sluice.v1 import environment_pb2 as pb
from sluice.v1 import environment_pb2_grpc as pb_grpc

pytestmark = pytest.mark.integration

CASES = Path(__file__).parent / "environment_cases.py"
STOP = common.FINISH_REASON_STOP


def config_of(environments: dict[str, Any]) -> Config:
    data = {"train_files": ["mixadd3:train"], "train_batch_size": 4, "max_prompt_length": 16, "max_response_length": 8}
    learner = {"mini_batch_size": 4}
    return Config(model={"path": "unused"}, data=data, learner=learner, environments=environments)  # type: ignore[arg-type]


@asynccontextmanager
async def stub_of(
    environments: dict[str, Any], *, turn_timeout_s: float
) -> AsyncIterator[tuple[Any, EnvironmentHost, grpc.aio.Channel]]:
    async with open_environments(config_of(environments)) as host:
        servicer = EnvironmentServicer(host, turn_timeout_s=turn_timeout_s)
        server = make_server(
            lambda server: pb_grpc.add_EnvironmentServiceServicer_to_server(servicer, server), services=[SERVICE_NAME]
        )
        port = await server.start(bind="127.0.0.1", port=0)
        channel = open_channel(f"127.0.0.1:{port}")
        try:
            yield pb_grpc.EnvironmentServiceStub(channel), host, channel
        finally:
            await channel.close()
            await server.stop(grace_s=1.0)


class Player:
    """Episodes over a stub."""

    def __init__(self, stub: Any, environment: str) -> None:
        self.stub, self.environment = stub, environment

    async def open(self, episode: str, *, lease_s: float = 60.0, **of: Any) -> Any:
        request = {"environment": self.environment, "lease_s": lease_s, "max_turns": 3, "seed": 5} | of
        return await self.stub.Open(pb.OpenRequest(episode_id=episode, **request), timeout=30)

    async def step(self, episode: str, turn: int, text: str, *, timeout: float = 30, **of: Any) -> Any:
        message = of.pop("message", None) or common.ChatMessage(role="assistant", content=text)
        request = pb.StepRequest(episode_id=episode, turn=turn, message=message, finish_reason=STOP, **of)
        return await self.stub.Step(request, timeout=timeout)

    async def close(self, episode: str) -> None:
        await self.stub.Close(pb.CloseRequest(episode_id=episode), timeout=30)

    async def refused(self, call: Any, code: grpc.StatusCode, *words: str) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is code, caught.value.details()
        assert all(one in (caught.value.details() or "") for one in words), caught.value.details()


async def test_episodes_go_on_beside_every_fault_of_an_environment(tmp_path: Path) -> None:
    told = tmp_path / "told"
    environments = {
        "counting": {"environment": f"{CASES}:Counting", "workers": 1, "episodes": 4, "settings": {"greeting": "hi"}},
        "waiting": {"environment": f"{CASES}:Waiting", "workers": 1, "settings": {"told": str(told)}},
        "python": {"environment": "python", "workers": 1, "settings": {"wall_s": 60.0, "output_chars": 40}},
        "hasty": {"environment": "python", "workers": 1, "settings": {"wall_s": 0.5}},
    }
    async with stub_of(environments, turn_timeout_s=20.0) as (stub, host, _):
        counting = Player(stub, "counting")
        listed = (await stub.ListEnvironments(pb.ListEnvironmentsRequest(), timeout=5)).environments
        assert [(one.name, one.version, one.scores) for one in listed] == [
            ("counting", "7", True),
            ("waiting", "7", False),
            ("python", "1", False),
            ("hasty", "1", False),
        ]
        await _an_episode_has_one_answer_a_turn(counting)
        await _places_and_bad_requests(counting)
        await _wrong_answers(counting)
        await _slow_ones_hold_nobody(counting, Player(stub, "waiting"))
        await _programs_run_shut_in(Player(stub, "python"), Player(stub, "hasty"))
        await _a_process_that_ends(counting)
        await _a_lease(counting, host)
        assert host.running == 0
    assert await asyncio.to_thread(told.read_text) == "closed\n" * 21, "20 episodes, and the object on trial"


async def _an_episode_has_one_answer_a_turn(player: Player) -> None:
    opened = await player.open("a")
    assert await player.open("a") == opened
    assert (opened.messages[0].content, opened.version, opened.tools[0].name) == ("hi 5", "7", "look")
    first, again = await asyncio.gather(player.step("a", 0, "slow"), player.step("a", 0, "slow"))
    assert first == again
    assert (first.messages[0].role, first.messages[0].content, first.done) == ("user", "slowly", False)
    await player.refused(player.step("a", 2, "x"), grpc.StatusCode.INVALID_ARGUMENT, "turn must be 1, or 0 again")
    call = common.ToolCall(id="c1", name="look", arguments_json="{}")
    answer = await player.step("a", 1, "", message=common.ChatMessage(role="assistant", tool_calls=[call]))
    assert (answer.messages[0].role, answer.messages[0].tool_call_id) == ("tool", "c1")
    end = await player.step("a", 2, "x")
    assert (end.done, end.score.score, end.score.acc, end.score.parts["turns"]) == (True, 3.0, 1.0, 3.0)
    assert await player.step("a", 2, "x") == end
    await player.close("a")
    await player.close("a")
    await player.refused(player.step("a", 2, "x"), grpc.StatusCode.NOT_FOUND, "is not open here")
    await player.open("a")
    cut = await player.step("a", 0, "x", last=True)  # without an end of its own: done, and not solved
    assert (cut.done, cut.score.score, cut.HasField("score")) == (True, 0.0, True)
    await player.close("a")


async def _places_and_bad_requests(player: Player) -> None:
    await asyncio.gather(*(player.open(f"p{place}") for place in range(4)))
    await player.refused(player.open("p4"), grpc.StatusCode.RESOURCE_EXHAUSTED, "all of its 4 places are taken")
    await asyncio.gather(*(player.close(f"p{place}") for place in range(4)))
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    await player.refused(
        player.open("b", environment="no"), invalid, "must be one of counting, waiting, python, hasty, got 'no'"
    )
    await player.refused(player.open("b", arguments_json="[]"), invalid, "arguments_json: must be a JSON object")
    await player.refused(player.open("b", lease_s=float("nan")), invalid, "lease_s")
    user = common.ChatMessage(role="user", content="x")
    await player.refused(player.step("b", 0, "", message=user), invalid, "message.role: must be assistant")


async def _wrong_answers(player: Player) -> None:
    rules = {
        "raise": "step: RuntimeError: StopIteration('no more') (environment_cases.py:",
        "large": "messages[0].content must be at most 1048576 bytes, got 104857600 characters",
        "nonsense": "step must return a Reply or a text, got int",
        "half": "messages[0].content must be text that UTF-8 can encode",
        "silence": "step must return messages unless the episode is done",
        "system": "messages[0].role must be one of tool, user, got 'system'",
        "early": "a score comes with done=True alone",
        "infinite": "score.score must be a finite number",
    }
    for word, rule in rules.items():
        await player.open(word)
        await player.refused(player.step(word, 0, word), grpc.StatusCode.INTERNAL, "environment counting: ", rule)
        await player.refused(player.step(word, 0, word), grpc.StatusCode.NOT_FOUND, "is not open")
    schema = '{"schema": {"type": "array"}}'
    wrong = player.open("schema", arguments_json=schema)
    with capture_logs() as logs:
        await player.refused(
            wrong, grpc.StatusCode.INTERNAL, "tool look: parameters.type must be 'object', got 'array'"
        )
    [said] = [line for line in logs if line["event"] == "rpc_failed"]
    assert "tool look" in said["reason"]
    assert "exc_info" not in said, "the fault of a user's code has no traceback, which would show what the policy wrote"


async def _slow_ones_hold_nobody(counting: Player, waiting: Player) -> None:
    """Each waits for all the others in its process, so that one after another they would come to no end."""
    names = [f"w{place}" for place in range(20)]
    await asyncio.gather(*map(waiting.open, names))
    ends = await asyncio.gather(*(waiting.step(name, 0, "x") for name in names))
    await asyncio.gather(*(counting.open(f"s{place}") for place in range(3)))
    met = await asyncio.gather(*(counting.step(f"s{place}", 0, "meet") for place in range(3)))
    assert all(end.done and not end.messages and not end.HasField("score") for end in ends)
    assert [one.messages[0].content for one in met] == ["all three"] * 3
    await asyncio.gather(*map(waiting.close, names), *(counting.close(f"s{place}") for place in range(3)))


async def _programs_run_shut_in(player: Player, hasty: Player) -> None:
    assert [tool.name for tool in (await player.open("py")).tools] == ["run_python"]
    programs = {"print(6 * 7)": "42", "1 / 0": "by zero", "print('x' * 100)": "[60 characters left out]"}
    answers = await _run(player, "py", *programs)
    assert [answer.tool_call_id for answer in answers] == ["0", "1", "2"]
    for answer, said in zip(answers, programs.values(), strict=True):
        assert said in answer.content
    assert (await player.step("py", 1, "42")).done
    await player.close("py")
    await hasty.open("late")
    [late] = await _run(hasty, "late", "import time\ntime.sleep(9)")
    assert "did not end within 0.5 s" in late.content
    await hasty.close("late")


async def _run(player: Player, episode: str, *programs: str) -> list[common.ChatMessage]:
    calls = [
        common.ToolCall(name="run_python", id=str(place), arguments_json=json.dumps({"code": program}))
        for place, program in enumerate(programs)
    ]
    return (await player.step(episode, 0, "", message=common.ChatMessage(role="assistant", tool_calls=calls))).messages


async def _a_process_that_ends(player: Player) -> None:
    for word, limit_s, code in (
        ("hang", 1.2, grpc.StatusCode.DEADLINE_EXCEEDED),
        ("exit", 30.0, grpc.StatusCode.NOT_FOUND),
    ):
        await player.open("one")
        await player.open("other")
        first = await player.step("other", 0, "x")
        assert first.messages[0].content == "1: x"
        await player.refused(player.step("one", 0, word, timeout=limit_s), code)
        for name in ("one", "other"):
            await player.refused(player.step(name, 1, "x"), grpc.StatusCode.NOT_FOUND, "its process has ended")
    died = player.open("dies", arguments_json='{"die": true}')
    await player.refused(died, grpc.StatusCode.INTERNAL, "open: the process of the environment ended")
    assert (await player.open("one")).messages[0].content == "hi 5"
    await player.close("one")


async def _a_lease(player: Player, host: EnvironmentHost) -> None:
    await player.open("leased", lease_s=0.3)
    await assert_eventually(lambda: host.running == 0, within_s=10)
    await player.refused(player.step("leased", 0, "x"), grpc.StatusCode.NOT_FOUND, "its lease")


async def test_an_environment_that_cannot_be_hosted_is_refused_by_name_at_the_start(tmp_path: Path) -> None:
    half = "class Half:\n    def open(self, row): pass\n"
    (tmp_path / "half.py").write_text(half)
    (tmp_path / "odd.py").write_text(f"{half}    def step(self, message): pass\n    VERSION = '1 beta'\n")
    wrong = {
        "gone": {"environment": str(tmp_path / "gone.py:Class")},
        "none": {"environment": f"{CASES}:Nobody"},
        "half": {"environment": str(tmp_path / "half.py:Half")},
        "version": {"environment": str(tmp_path / "odd.py:Half")},
        "keyword": {"environment": f"{CASES}:Counting", "settings": {"greet": "x"}},
        "unknown": {"environment": "calculus"},
        "folder": {"environment": "search", "settings": {"folder": str(tmp_path / "no")}},
    }
    with pytest.raises(ConfigError) as caught:
        async with open_environments(config_of({name: one | {"workers": 1} for name, one in wrong.items()})):
            pass
    lines = dict(line.split(": ", 1) for line in str(caught.value).splitlines())
    assert "is not a file" in lines["environments.gone"]
    assert "has no class 'Nobody'" in lines["environments.none"]
    assert "the class has no method `step`" in lines["environments.half"]
    assert "takes no 'greet', which the environment's settings name" in lines["environments.keyword"]
    assert "must be one of calculator, gymnasium, openenv, python, search, second-try" in lines["environments.unknown"]
    assert "VERSION: must be 1 to 200 ASCII characters without blanks, got '1 beta'" in lines["environments.version"]
    assert "is not a folder" in lines["environments.folder"]
