"""Small hand-written fakes of the coordinator's ports."""

import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from services.coordinator.groups.admitter import Admitter
from services.coordinator.groups.conductor import Conductor
from services.coordinator.groups.grading import Grading
from services.coordinator.state.acceptance import Acceptance
from services.coordinator.state.board import Board
from services.coordinator.state.events import Events
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import Group, GroupFailed, PromptLike, QueuedGroup, Reward, Sample, Span
from services.coordinator.state.ledger import count
from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.places import Places
from services.coordinator.state.ports import Sampling
from services.coordinator.state.progress import Progress, RunState
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from sluice.config.schema import Config
from sluice.environments import Message
from sluice.errors import Fenced
from sluice.policy_version import PolicyVersion
from sluice.telemetry.traces.tracer import OFF, Tracer
from sluice.testing import ManualClock


@dataclass(frozen=True, kw_only=True)
class FakePrompt:
    prompt_id: str
    data_source: str = "fake"
    text: str = "1+1="
    ground_truth: str = "2"
    extra_info_json: str = ""
    environment: str = ""
    environment_args_json: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def token_ids(self) -> np.ndarray:
        return np.array([1, 2, 3], dtype=np.int32)


class FakePrompts:
    """Prompt i is `p<i>`."""

    def next(self, cursor: str) -> tuple[PromptLike, str]:
        position = int(cursor or 0)
        return FakePrompt(prompt_id=f"p{position}"), str(position + 1)

    def again(self, cursor: str, *, submitted: bool) -> PromptLike:
        return self.next(cursor)[0]

    def origin(self, cursor: str, after: str) -> tuple[int, int]:
        return 0, int(after) - 1


@dataclass
class FakeRollouts:
    """Answers when `release` allows it; `script` may raise for a request."""

    gate: asyncio.Semaphore | None = None
    failures: dict[str, Exception] = field(default_factory=dict)
    """request id -> raised after the first sample."""
    requests: list[str] = field(default_factory=list)
    tokens: int = 4
    lie: int = 0
    """Added to the stamped version."""
    short: bool = False
    """Ends every answer without an error before the last sample."""
    aborts: set[str] = field(default_factory=set)
    """request ids whose last sample comes back aborted."""

    async def generate(
        self,
        member: Member,
        *,
        request_id: str,
        prompt: PromptLike,
        seeds: Mapping[int, int],
        sampling: Sampling,
        timeout_s: float,
        required_version: PolicyVersion | None = None,
    ) -> AsyncIterator[Sample]:
        self.requests.append(request_id)
        version = member.version
        assert version is not None
        if self.gate is not None:
            await self.gate.acquire()
        for number, (index, seed) in enumerate(seeds.items()):
            if number == 1 and request_id in self.failures:
                raise self.failures[request_id]
            if self.short and number == len(seeds) - 1:
                return
            sample = make_sample(index, version=version.number + self.lie, tokens=self.tokens, seed=seed)
            last = number == len(seeds) - 1
            yield dataclasses.replace(sample, finish_reason="abort") if last and request_id in self.aborts else sample


@dataclass
class FakeRewards:
    """Accuracies by prompt id; default: the first sample of each group is right."""

    acc: dict[str, list[float]] = field(default_factory=dict)
    status: str = "ok"

    async def score(
        self, member: Member, *, group_id: str, prompt: PromptLike, samples: Sequence[Sample], timeout_s: float
    ) -> list[Reward]:
        accs = self.acc.get(prompt.prompt_id, [1.0] + [0.0] * (len(samples) - 1))
        return [make_reward(acc, status=self.status) for acc in accs]


class FakeStore:
    """The durable transitions, in memory, with the counters Redis would hold."""

    def __init__(self) -> None:
        self.state: dict[str, str] = {}
        self.counters: Counter[str] = Counter()
        self.rows_: list[dict[str, Any]] = []
        self._payloads: dict[str, bytes] = {}
        self.batches: dict[int, dict[str, Any]] = {}
        self.fenced = False
        """Another coordinator has taken over."""
        self.answers = asyncio.Event()
        """Cleared: what is written is done, but the answer does not come."""
        self.answers.set()

    async def admit(self, infos: Mapping[str, Mapping[str, Any]], *, cursor: str, admissions: int) -> None:
        self.state.update(dict.fromkeys(infos, "open"))
        self.counters.update(admitted=len(infos), open=len(infos))

    async def accept(self, group_id: str, *, info: Mapping[str, Any], payload: bytes, tokens: int, lost: int) -> bool:
        assert self.state[group_id] == "open"
        json.dumps(dict(info))
        self.state[group_id], self._payloads[group_id] = "queued", payload
        self.counters.update(open=-1, queued=1, generated_tokens=tokens + lost, lost_tokens=lost)
        self.counters["tokens:queued"] += tokens
        await self.answers.wait()
        return True

    async def end(
        self, group_id: str, *, was: str, term: str, row: Mapping[str, Any], tokens: int, lost: int = 0
    ) -> bool:
        assert self.state.pop(group_id) == was
        self.rows_.append(dict(row))
        self.counters.update({was: -1, term: 1, f"tokens:{term}": tokens})
        if was == "open":
            self.counters.update(generated_tokens=tokens + lost, lost_tokens=lost)
        else:
            self.counters[f"tokens:{was}"] -= tokens
        await self.answers.wait()
        return True

    async def payloads(self, group_ids: Sequence[str]) -> list[bytes | None]:
        return [self._payloads[name] if self.state.get(name) == "queued" else None for name in group_ids]

    async def record(self, kind: str, step: int) -> dict[str, Any] | None:
        return self.batches.get(step)

    async def assign(
        self, step: int, *, record: Mapping[str, Any], group_ids: Sequence[str], tokens: int
    ) -> dict[str, Any]:
        if self.fenced:
            raise Fenced("taken over")
        assert all(self.state[group_id] == "queued" for group_id in group_ids)
        self.state.update(dict.fromkeys(group_ids, "assigned"))
        self.batches[step] = dict(record)
        self.counters.update(queued=-len(group_ids), assigned=len(group_ids))
        self.counters.update({"tokens:queued": -tokens, "tokens:assigned": tokens})
        await self.answers.wait()
        return dict(record)

    async def set_aside(
        self, step: int, *, digest: str, term: str, tokens: int, rows: Mapping[str, Mapping[str, Any]]
    ) -> bool:
        if self.batches.get(step, {}).get("digest") != digest:
            return False
        for group_id, row in rows.items():
            assert self.state.pop(group_id) == "assigned"
            self.rows_.append(dict(row))
        del self.batches[step]
        self.counters.update({"assigned": -len(rows), term: len(rows)})
        self.counters.update({"tokens:assigned": -tokens, f"tokens:{term}": tokens})
        return True

    async def commit(
        self, step: int, *, record: Mapping[str, Any], tokens: int, rows: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        for group_id, row in rows.items():
            assert self.state.pop(group_id) == "assigned"
            self.rows_.append(dict(row))
        self.counters.update({"assigned": -len(rows), "trained": len(rows)})
        self.counters.update({"tokens:assigned": -tokens, "tokens:trained": tokens})
        return dict(record)


class FakeCodec:
    too_large = ""
    """A group that does not fit."""
    padding = 0
    """Least bytes of a payload."""

    def encode(self, group: Group) -> bytes:
        if group.group_id == self.too_large:
            raise GroupFailed(reason="too_large", fault="too large")
        return group.group_id.encode().ljust(self.padding)


def make_accepted(admission: int, *, oldest: int = 0) -> QueuedGroup:
    return QueuedGroup(
        group_id=f"g{admission}",
        admission=admission,
        oldest_version=oldest,
        tokens=1,
        payload_bytes=1,
        prompt_id="p",
        attempt=1,
        shaped_mean=0.0,
    )


def make_sample(index: int, *, version: int = 0, tokens: int = 4, seed: int = 0) -> Sample:
    return Sample(
        index=index,
        token_ids=np.full(tokens, index, dtype=np.int32),
        logprobs=np.zeros(tokens, dtype=np.float32),
        spans=(Span(version=PolicyVersion(lineage="a", number=version), start=0, end=tokens),),
        finish_reason="stop",
        text="x",
        rollout_id="rollout-0",
        seed=seed,
    )


def make_reward(acc: float, *, status: str = "ok") -> Reward:
    return Reward(
        status=status,
        raw_score=acc,
        acc=acc,
        extracted="",
        shaped_reward=acc,
        overlong_penalty=0.0,
        grader="fake",
        grader_version="1",
    )


def make_config(**changes: Any) -> Config:
    """train_batch_size 4, n 2, max_staleness 1, unless changed by dotted names with __."""
    tree: dict[str, Any] = {
        "model": {"path": "unused"},
        "data": {"train_files": ["unused"], "train_batch_size": 4, "max_response_length": 8},
        "rollout": {"n": 2},
        "learner": {"mini_batch_size": 4},
        "coordinator": {"max_staleness": 1},
        "run": {"total_steps": 1000},
    }
    for name, value in changes.items():
        section, key = name.split("__", 1)
        tree.setdefault(section, {})[key] = value
    return Config(**tree)


@dataclass
class Stage:
    """A conductor with fakes around it."""

    config: Config
    rollouts: FakeRollouts = field(default_factory=FakeRollouts)
    rewards: FakeRewards = field(default_factory=FakeRewards)
    tracer: Tracer = OFF

    def __post_init__(self) -> None:
        self.clock, self.fleet, self.store = ManualClock(), Fleet(), FakeStore()
        self.codec = FakeCodec()
        self.board = Board(
            train_batch_size=self.config.data.train_batch_size,
            gen_batch_size=self.config.gen_batch_size,
            max_staleness=self.config.coordinator.max_staleness,
            partial_after=self.config.partial_after,
            acceptance=Acceptance.of(self.config),
            changed=self.fleet.changed,
        )
        self.progress, self.events = Progress(state=RunState.RUNNING), Events()
        self.run = RunContext(
            run_id="r",
            config=self.config,
            clock=self.clock,
            fleet=self.fleet,
            board=self.board,
            progress=self.progress,
            events=self.events,
            places=Places(clock=self.clock),
            tracer=self.tracer,
        )
        self.conductor = Conductor(
            self.run,
            self.records(),
            admitter=Admitter(self.run, self.records(), prompts=FakePrompts(), cursor="", admissions=0),
            rollouts=self.rollouts,
            grading=Grading(config=self.config, fleet=self.fleet, rewards=self.rewards, clock=self.clock),
        )
        self.add_member(Role.REWARD, "reward-0")

    def add_member(self, role: Role, name: str, *, version: int | None = None, capacity: int = 1000) -> Member:
        member = Member(
            service_id=name, role=role, address="-", incarnation=name, capacity=capacity, last_beat_s=self.clock.now()
        )
        self.fleet.register(member)
        if version is not None:
            member.version, member.granted = PolicyVersion(lineage="a", number=version), version
            self.fleet.set_state(member, State.READY)
        return member

    def records(self, files: Any = None) -> Records:
        """The books, with the files of a run directory where a test needs them."""
        return Records(store=self.store, files=files, ledger=None, codec=self.codec)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[Stage]:
    """A stage whose conductor runs; the ledger is closed in the end."""
    task = asyncio.create_task(stage.conductor.run())
    try:
        yield stage
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert count(stage.store.counters, stage.board).closed


async def settle() -> None:
    """Lets all that can run without time run."""
    for _ in range(50):
        await asyncio.sleep(0)
