"""Agents that bring their own loop: the stock openai client and plain HTTP against a real coordinator."""

import asyncio
import contextlib
import importlib.util
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from services.coordinator.agents import gateway
from services.coordinator.agents.desk import AgentDesk
from services.coordinator.agents.door import Door
from services.coordinator.episodes.wanted_episode import Limits
from sluice.agents.episode import Episode, Outcome
from sluice.agents.gateway import Gateway
from sluice.agents.worker import Tally, Worker
from sluice.rpc.arrays import unpack_floats, unpack_ids
from sluice.rpc.tokens import load as load_tokens
from sluice.rpc.tokens import make_tokens
from sluice.testing import assert_eventually
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.agent_cases import Agents, Remembering, Taking, check_recorded
from tests.integration.coordinator_cases import Cast, Coordinator, Serve
from tests.unit.coordinator.fakes import Stage, make_config

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.integration

SETTINGS = {
    "environments__mine": {"environment": "agent"},
    "data__environment": "mine",
    "data__max_prompt_length": 40,
    "data__max_response_length": 12,
    "data__max_episode_tokens": 100,
    "data__val_files": [],
    "rollout__turn_timeout_s": 8.0,
    "rollout__max_turns": 4,
    "run__total_steps": 2,
    "network__gateway_port": 0,
    "coordinator__max_attempts": 9,
}


@contextlib.asynccontextmanager
async def standing(serve: Serve, model: Path) -> AsyncIterator[tuple[Coordinator, Cast, Agents]]:
    async with Cast(model, rollout=Remembering, reward=Taking).standing() as cast, serve(**SETTINGS) as run:
        await cast.register(run)
        async for event in run.stub.WatchEvents(pb.WatchEventsRequest(), timeout=20):
            if event.kind == "agents_awaited":
                break
        agents = Agents(event.message.rpartition(" ")[2])
        try:
            yield run, cast, agents
        finally:
            await agents.http.aclose()


async def test_agents_play_a_run_and_every_token_is_recorded_as_it_was_sampled(serve: Serve, model: Path) -> None:
    async with standing(serve, model) as (run, cast, agents):
        await what_is_refused(agents, cast)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(agents.work())
            example = threading.Thread(target=example_agent().work, args=(agents.address,), daemon=True)
            example.start()  # no task's: it looks for a coordinator for as long as there is none, also after a failure
            adapter = tasks.create_task(work_as_an_adapter(agents))
            counts: Counter[str] = Counter()
            by_index: Counter[int] = Counter()
            for step in range(2):
                batch = await cast.learner.batch(run, step)
                for part in batch[1:]:
                    counts += check_recorded(part.group, cast.rollout)  # type: ignore[arg-type]
                    by_index += turns_as_told(part.group, agents)
                await cast.learner.commit(run, step, batch)
            status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        await asyncio.to_thread(example.join, 30.0)
        assert not example.is_alive(), "it hears of the run's end, as the adapter does"
        tally = adapter.result()
        assert tally.finished > 0
        assert tally.failed == 0
        assert status.ledger.closed
        assert status.ledger.trained == 8
        assert by_index == {0: 8, 1: 8}
        assert set(agents.ways) == set(Agents.WAYS)
        assert counts["turns"] >= 2 * 16 - tally.finished  # the adapter asks once, everybody else twice or more
        assert counts["own contexts"] > 0


async def work_as_an_adapter(agents: Agents) -> Tally:
    """The worker of `sluice agent`, over a runner that asks once by token ids."""

    class Asking:
        async def play(self, episode: Episode, *, seat: int) -> Outcome:
            assert seat in (0, 1)
            assert (episode.limits.turns, episode.limits.sequence_tokens, episode.env_args) == (4, 100, {})
            body = {"token_ids": [20, 21], "sampling_params": {"temperature": episode.sampling.temperature}}
            answer = await agents.post("/inference/v1/generate", episode.key, body)
            assert answer.status_code == 200, answer.text
            return Outcome(score=1.0, parts={"asked": 1.0})

    gateway = Gateway(agents.address, headers={}, wait_s=1.0)
    try:
        return await Worker(gateway, Asking(), environment="mine", parallel=2, grace_s=1.0).work()
    finally:
        await gateway.aclose()


def example_agent() -> Any:
    """The module of the example."""
    spec = importlib.util.spec_from_file_location("agent", ROOT / "examples" / "agent-openai" / "agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def turns_as_told(group: common.Group, agents: Agents) -> Counter[int]:
    """The samples of a trained group have the scores and the turns that the agents were told."""
    for sample, reward in zip(group.samples, group.rewards, strict=True):
        name = f"{group.group_id}.{sample.index}."
        told = next((one for episode, one in agents.told.items() if episode.startswith(name)), None)
        if told is None:  # the example's, which asks again once, or the adapter's
            assert (reward.raw_score, len(sample.turns)) in ((1.0, 1), (0.5, 2), (0.0, 2))
            continue
        ids, logprobs = unpack_ids(sample.token_ids).tolist(), unpack_floats(sample.logprobs).tolist()
        recorded = [
            (ids[turn.start_token : turn.end_token], logprobs[turn.start_token : turn.end_token])
            for turn in sample.turns
        ]
        assert recorded == told.turns, told.way
        assert reward.raw_score == sample.index
        assert sample.score.parts["turns"] == len(sample.turns)
        own = {"plain": 0, "tokens": 0, "fork": 1, "retry": 1}.get(told.way, 0)
        assert sum(bool(turn.context_token_ids) for turn in sample.turns[1:]) == own, told.way
    return Counter(sample.index for sample in group.samples)


async def what_is_refused(agents: Agents, cast: Cast) -> None:
    """Requests that are no good, and an episode that goes on after them."""
    rollout: Any = cast.rollout
    episode = await agents.take(environment="mine")
    key, chat = episode["key"], episode["messages"]
    assert episode["ground_truth"]
    assert episode["scores"] is True
    assert (episode["limits"]["turns"], episode["limits"]["sampled_tokens"]) == (4, 12)

    async def refused(body: Any, *, path: str = "/v1/chat/completions", with_key: str = key) -> tuple[int, str]:
        answer = await agents.post(path, with_key, body)
        return answer.status_code, f"{answer.json()['error']['code']}: {answer.json()['error']['message']}"

    good = {"model": "m", "messages": chat}
    for change, rule in (
        ({"stream": True}, "stream: must be false or left out; got True"),
        ({"temperature": 0.3}, "temperature: must be 1.0 or left out, because the run decides"),
        ({"stop": ["\n"]}, "stop: must be"),
        ({"tool_choice": "required"}, 'tool_choice: must be "auto" or "none" or left out'),
        ({"messages": []}, "messages: List should have at least 1 item"),
        (
            {"messages": [{"role": "user", "content": "\ud83d"}]},
            "invalid_json: the body must be a JSON object: 'utf-8' codec",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 90}]},
            "context_length_exceeded: the chat has 90 tokens, data.max_",
        ),
        ({"messages": [*chat, {"role": "assistant", "content": "2"}]}, "the last one must not be the assistant's"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "data.template: none knows no tools"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    ):
        status, said = await refused(good | change)
        assert status == 400, said
        assert rule in said
    ids = {"token_ids": [64], "sampling_params": {}}
    assert "ids of the model, got 64" in (await refused(ids, path="/inference/v1/generate"))[1]
    ids = {"token_ids": [6], "sampling_params": {"top_p": 0.5}}
    assert "top_p: must be 1" in (await refused(ids, path="/inference/v1/generate"))[1]
    assert (await refused(good, with_key="guessed"))[0] == 401
    assert (await refused({}, with_key="-", path="/v1/episodes/finish"))[0] == 401
    assert (await refused({"score": 1}, path="/v1/episodes/finish"))[1].startswith("no_turn:")
    assert (await refused({"environment": "other"}, path="/v1/episodes"))[0] == 400
    assert (await refused({}, path="/v1/nothing"))[0] == 404
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    large = await agents.http.post("/v1/chat/completions", headers=headers, content=b" " * (9 << 20))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    page = await agents.http.post("/v1/episodes", headers={"Content-Type": "text/plain"}, content=b"{}")
    assert page.status_code == 415
    models = await agents.http.get("/v1/models", headers=headers)
    assert models.json()["data"][0]["max_model_len"] == 100

    rollout.gate.clear()
    first = asyncio.create_task(agents.post("/v1/chat/completions", key, good))
    await assert_eventually(lambda: bool(rollout.running))
    assert await refused(good) == (
        409,
        "request_under_way: a turn of this episode is being sampled: an agent asks for one at a time",
    )
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    rollout.gate.set()
    again = await agents.until_free("/v1/chat/completions", key, good)
    turns = [int(again.json()["id"].rpartition(".")[2])]
    client = agents.client(key)
    while turns[-1] < 3:  # the same request after its answer: each a sequence of its own
        turns.append(int((await agents.ask(client, chat)).id.rpartition(".")[2]))
    assert turns == [*range(turns[0], 4)]
    with pytest.raises(openai.BadRequestError, match="has had its 4 turns") as caught:
        await client.chat.completions.create(model="m", messages=chat)
    assert caught.value.code == "context_length_exceeded"
    await client.close()
    assert (await refused({"score": float("1e30")}, path="/v1/episodes/finish"))[0] == 400
    assert (await agents.post("/v1/episodes/finish", key, {"error": "was a test"})).status_code == 200
    await asyncio.sleep(0.05)
    assert (await refused(good))[1].startswith("episode_over: the episode is over: the agent of")


async def test_callers_that_send_no_request_lose_their_connection_and_write_no_tracebacks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(gateway, "HEAD_S", 0.5)
    make_tokens(tmp_path, private_network=False)
    stage = Stage(make_config(environments__mine={"environment": "agent"}))
    desk = AgentDesk(stage.run)
    door = Door(load_tokens(tmp_path / "coordinator"), desk, clock=stage.clock)
    facts = gateway.Facts(
        model="m", limits=Limits.of(stage.config), temperature=1.0, vocabulary=64, text_of=lambda ids: ""
    )
    head = b"POST /v1/episodes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

    async def answer(sent: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(sent)
            async with asyncio.timeout(20):
                return (await reader.read(200)).partition(b"\r\n")[0]
        finally:
            writer.close()

    async with gateway.Gateway(desk, door, facts).serving(bind="127.0.0.1", port=0, tls=None) as address:
        host, _, port = address.removeprefix("http://").removesuffix("/v1").partition(":")
        assert await answer(head + b"Authorization: Bearer \xff\xfe\r\nContent-Length: 2\r\n\r\n{}") == (
            b"HTTP/1.1 401 Unauthorized"
        )
        assert await answer(head + b"X-Long: " + b"y" * 9_000 + b"\r\n\r\n") == b"HTTP/1.0 400 Bad Request"
        assert await asyncio.gather(answer(b""), answer(head)) == [b"", b""], "nothing came, or half of a head"
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.exc_info]
