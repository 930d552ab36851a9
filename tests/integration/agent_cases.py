"""Agents, and services around a run that they play: a rollout that remembers what it sampled, a reward that takes scores."""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import openai

from sluice.rpc.arrays import pack_floats, pack_ids, unpack_floats, unpack_ids
from sluice.testing.fakes import FakeReward, FakeRollout
from sluice.v1 import common_pb2 as common
from sluice.v1 import reward_pb2, rollout_pb2


class Remembering(FakeRollout):
    """Samples other ids each time; keeps what it sampled by what it read. While `gate` is cleared it samples nothing."""

    def __init__(self, **standing: Any) -> None:
        super().__init__(**standing)
        self.sampled: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self._count = 0

    def write(
        self, request: rollout_pb2.GenerateRequest, spec: rollout_pb2.SampleSpec, tokens: int
    ) -> tuple[bytes, bytes, str]:
        self._count += 1
        ids = [5 + self._count % 40, 5 + self._count // 40 % 40, 2][-tokens:]
        packed = pack_ids(ids), pack_floats(np.linspace(-0.1, -0.1 - self._count / 1000, len(ids), dtype=np.float32))
        self.sampled.setdefault(request.prompt_token_ids, []).append(packed)
        return (*packed, "said")

    async def sample(self, *request: Any) -> common.Sample:
        await self.gate.wait()
        return await super().sample(*request)


class Taking(FakeReward):
    """Takes the scores that the agents gave."""

    def grade(self, request: reward_pb2.ScoreRequest, item: reward_pb2.ScoreItem) -> common.SampleReward:
        result = super().grade(request, item)
        result.raw_score = result.shaped_reward = item.given.score
        result.acc = item.given.acc
        return result


@dataclass(kw_only=True)
class Told:
    """What an agent was answered in one episode: ids and log-probabilities of each turn."""

    index: int
    way: str
    turns: list[tuple[list[int], list[float]]] = field(default_factory=list)

    def completion(self, answer: Any) -> Any:
        """Notes a chat completion, and returns its message."""
        choice = answer.choices[0]
        self.turns.append((choice.token_ids, [token.logprob for token in choice.logprobs.content]))
        assert len(answer.prompt_token_ids) == answer.usage.prompt_tokens
        return choice.message


class Over(Exception):
    """The episode is over, by no fault of the agent."""


class Agents:
    """Agents of one run; each episode is played in another way, the ways in turn."""

    WAYS = ("plain", "tokens", "fork", "retry", "other", "plain", "dies", "gives-up")

    def __init__(self, address: str) -> None:
        self.address = address
        self.http = httpx.AsyncClient(base_url=address.removesuffix("/v1"), timeout=30)
        self.told: dict[str, Told] = {}
        """By episode, of those that were finished."""
        self.ways: Counter[str] = Counter()

    def client(self, key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.address, api_key=key, max_retries=0)

    async def take(self, **asked: Any) -> Any:
        answer = await self.http.post("/v1/episodes", json={"wait_s": 5, **asked})
        return answer.json() if answer.status_code == 200 else answer.status_code

    async def post(self, path: str, key: str, body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        return await self.http.post(path, headers=headers, content=json.dumps(body))

    async def until_free(self, path: str, key: str, body: Any) -> httpx.Response:
        """As `post`; tries again while another request is under way, as the openai client does."""
        while True:
            answer = await self.post(path, key, body)
            if answer.status_code != 409:
                return answer
            await asyncio.sleep(0.01)

    async def ask(self, client: openai.AsyncOpenAI, messages: list[Any], **more: Any) -> Any:
        extra = {"return_token_ids": True}
        try:
            return await client.chat.completions.create(
                model="any", messages=messages, logprobs=True, extra_body=extra, **more
            )
        except openai.APIStatusError as error:
            raise Over if error.status_code == 410 else error from error

    async def work(self) -> None:
        """Plays episodes until the run is over."""
        while (episode := await self.take()) != 410:
            if isinstance(episode, int):
                assert episode == 204
                continue
            way = self.WAYS[sum(self.ways.values()) % len(self.WAYS)]
            self.ways[way] += 1
            with contextlib.suppress(Over):
                await self.play(episode, way)

    async def play(self, episode: Any, way: str) -> None:
        told = Told(index=int(episode["episode"].split(".")[1]), way=way)
        chat = list(episode["messages"])
        async with self.client(episode["key"]) as client:
            if way == "other":
                chat = [{"role": "system", "content": f"be {len(self.told)}"}, *chat]
            if way == "tokens":
                await self.by_tokens(episode, told)
            else:
                first = await self.ask(client, chat)
                said = told.completion(first)
                if way == "dies" and self.ways[way] == 1:
                    return
                more = [*chat, said.model_dump(exclude_none=True), {"role": "user", "content": "and then?"}]
                told.completion(await self.ask(client, more, max_tokens=3))
            if way == "fork":  # another question after the first turn, then on with the first conversation
                told.completion(await self.ask(client, [*more[:-1], {"role": "user", "content": "or else?"}]))
            if way == "retry":
                told.completion(await self.ask(client, more, max_tokens=3))
        last = (
            {"error": "no  idea"} if way == "gives-up" else {"score": told.index, "parts": {"turns": len(told.turns)}}
        )
        answer = await self.post("/v1/episodes/finish", episode["key"], last)
        assert answer.status_code == 200, answer.text
        if way != "gives-up":
            self.told[episode["episode"]] = told

    async def by_tokens(self, episode: Any, told: Told) -> None:
        """Token ids in and out, as vLLM has them: a turn, and one more behind it."""
        ids = [20, 21, 22]
        for _ in range(2):
            sampling = {"max_tokens": 9, "logprobs": 1, "stop_token_ids": [2], "skip_special_tokens": False}
            body = {"model": "any", "token_ids": ids, "sampling_params": sampling}
            answer = (await self.post("/inference/v1/generate", episode["key"], body)).json()
            choice = answer["choices"][0]
            content = choice["logprobs"]["content"]
            assert [one["token"] for one in content] == [f"token_id:{token}" for token in choice["token_ids"]]
            told.turns.append((choice["token_ids"], [one["logprob"] for one in content]))
            ids = [*ids, *choice["token_ids"], 30, 31]


def check_recorded(group: common.Group, rollout: Remembering) -> Counter[str]:
    """Every turn of a group is what the rollout sampled after what the turn's sequence has before it. Counts sequences."""
    seen: Counter[str] = Counter()
    for sample in group.samples:
        ids, logprobs = unpack_ids(sample.token_ids), unpack_floats(sample.logprobs)
        base, begins = unpack_ids(group.prompt.token_ids), 0
        for turn in sample.turns:
            if turn.context_token_ids:
                base, begins = unpack_ids(turn.context_token_ids), turn.start_token
            context = pack_ids(np.concatenate([base, ids[begins : turn.start_token]]))
            part = slice(turn.start_token, turn.end_token)
            assert (pack_ids(ids[part]), pack_floats(logprobs[part])) in rollout.sampled[context]
            seen["turns"] += 1
            seen["own contexts"] += bool(turn.context_token_ids)
    return seen
