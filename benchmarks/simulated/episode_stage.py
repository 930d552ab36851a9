"""A real rollout with vLLM, tools as a process, and the coordinator's parts that make samples: groups and episodes are played
here, in the event loop of a benchmark, by the code that plays them in a run.

Waits: for the processes to register, READY_S at most; afterwards as services/coordinator/episodes does.
"""

import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.simulated.counting_model import VOCABULARY, starts, word, write_model
from benchmarks.vs_trl.cpu_time import tree_cpu_seconds
from services.coordinator.episodes.chat import chat_of
from services.coordinator.episodes.group_episodes import GroupEpisodes
from services.coordinator.episodes.group_turns import Reports
from services.coordinator.episodes.player import Player
from services.coordinator.groups.generation import Generation
from services.coordinator.prompts.render import Prompt, load_tokenizer
from services.coordinator.state.board import Board
from services.coordinator.state.events import Events
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import Group
from services.coordinator.state.member import EnvironmentInfo, Member, Role
from services.coordinator.state.places import Places
from services.coordinator.state.progress import Progress
from services.coordinator.state.run_context import RunContext
from services.coordinator.wire.clients import Clients
from services.coordinator.wire.episode_clients import EpisodeClients
from sluice.clock import SystemClock
from sluice.config.schema import Config
from sluice.environments import Message
from sluice.launch.commands import Command
from sluice.launch.processes import Child, start
from sluice.policy_version import OWN_WEIGHTS
from sluice.testing.fakes import FakeCoordinator
from sluice.testing.fakes.service import serving
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import rollout_pb2

READY_S = 400.0
"""vLLM takes a minute on two idle cores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What is played."""

    at_once: int
    """Samples or episodes in flight."""
    slots: int
    """Samples that the engine runs at once."""
    samples: int
    """Of a group."""
    prompt: int
    """Tokens of a row, of one of two turns, and of a tool's answer."""
    turn: int
    answer: int
    hidden: int
    layers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What is seen of the engine at once."""

    at_s: float
    tokens: int
    """Generated since the engine's start."""
    samples: int
    """Running or waiting in the engine."""
    engine_cpu_s: float
    own_cpu_s: float
    """Of this process, which plays."""


class EpisodeStage:
    """One rollout, and tools by name."""

    def __init__(
        self, config: Config, shape: Shape, registrations: Sequence[pb.RegisterRequest], *, engine: Child
    ) -> None:
        clock, fleet = SystemClock(), Fleet()
        self._shape, self._engine, self._made = shape, engine, 0
        self._board = Board(train_batch_size=1 << 20, gen_batch_size=1 << 20, max_staleness=1, changed=fleet.changed)
        run = RunContext(
            run_id="benchmark",
            config=config,
            clock=clock,
            fleet=fleet,
            board=self._board,
            progress=Progress(),
            events=Events(),
            places=Places(clock=clock),
        )
        for request in registrations:
            fleet.register(_member(request, clock.now()))
        [self._rollout] = fleet.of(Role.ROLLOUT)
        self._tokenizer = load_tokenizer(config.model.path)
        self._clients = Clients(vocabulary=VOCABULARY)
        self._player = Player(
            config=config,
            fleet=fleet,
            clock=clock,
            environments=EpisodeClients(self._clients),
            chat=chat_of(self._tokenizer, template="none"),
        )
        self._generation = Generation(run, rollouts=self._clients, report_tokens=lambda tokens: None)
        reports = Reports(tokens=lambda tokens: None, began_again=lambda: None)
        self._episodes = GroupEpisodes(run, player=self._player, rollouts=self._clients, reports=reports)

    async def feed(self, tool: str) -> None:
        """One group after the other, until cancelled; without a tool, of single answers of as many tokens as two turns."""
        while True:
            group = self._group(tool)
            self._board.add(group)
            try:
                if tool:
                    await self._episodes.fill(group)
                else:
                    await self._generation.fill(group, None)
            finally:
                self._board.remove(group)
            wanted = self._shape.samples * 2 * self._shape.turn
            assert group.response_tokens == wanted, f"{group.response_tokens} sampled tokens, not {wanted}"

    async def look(self) -> Look:
        """Now."""
        request = rollout_pb2.RolloutServiceGetInfoRequest()
        info = await self._clients.rollout(self._rollout).GetInfo(request, timeout=60)
        return Look(
            at_s=time.perf_counter(),
            tokens=info.generated_tokens,
            samples=info.running_samples,
            engine_cpu_s=tree_cpu_seconds(self._engine.process.pid),
            own_cpu_s=time.process_time(),
        )

    def _group(self, tool: str) -> Group:
        self._made += 1
        shape = self._shape
        numbers = np.random.default_rng(self._made).integers(0, 1 << 20, shape.prompt - 1)
        text = " ".join([*map(word, numbers), starts(shape.turn if tool else 2 * shape.turn)])
        prompt = Prompt(
            prompt_id=f"p{self._made}",
            data_source="counts",
            token_ids=np.asarray(self._tokenizer(text)["input_ids"], np.int32),
            text=text,
            ground_truth="",
            extra_info_json="",
            environment=tool,
            messages=(Message(role="user", content=text),) if tool else (),
        )
        assert len(prompt.token_ids) == shape.prompt
        return Group(group_id=f"g{self._made}", admission=self._made, prompt=prompt, cursor="")

    async def close(self) -> None:
        """Ends what is under way."""
        await self._player.close()
        await self._clients.close()


@asynccontextmanager
async def episode_stage(folder: Path, shape: Shape, tools: Mapping[str, float]) -> AsyncIterator[EpisodeStage]:
    """The stage once its processes have registered; `tools` has seconds by name. They are gone afterwards."""
    model = write_model(folder / "model", hidden=shape.hidden, layers=shape.layers, positions=1024)
    config = _config(model, shape, tools)
    coordinator = FakeCoordinator(config=config)
    coordinator.heartbeat_interval_s = 1.0
    rollout = "services.rollout --own-weights --port 0 --metrics-port 0"
    hosting = f"benchmarks.simulated.tools --model {model} --words {shape.answer} --turn {shape.turn}"
    hosting += f" --places {shape.at_once} --tools " + " ".join(f"{name}={seconds}" for name, seconds in tools.items())
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(coordinator))
        children = []
        for name, words in (("rollout", rollout), ("tools", hosting)):
            command = Command(
                name=name, argv=[sys.executable, "-m", *words.split(), "--coordinator", address], environ={}
            )
            children.append(await start(command, log_path=folder / f"{name}.log"))
            stack.push_async_callback(children[-1].stop, grace_s=5.0)
        await coordinator.until(lambda: len(coordinator.registrations) == 1 + len(tools), timeout_s=READY_S)
        stage = EpisodeStage(config, shape, coordinator.registrations, engine=children[0])
        stack.push_async_callback(stage.close)
        yield stage


def _member(request: pb.RegisterRequest, now_s: float) -> Member:
    generates = request.role == pb.SERVICE_ROLE_ROLLOUT
    return Member(
        service_id=request.service_id or "rollout-0",
        role=Role.ROLLOUT if generates else Role.ENVIRONMENT,
        address=request.address,
        incarnation=request.incarnation,
        capacity=request.capacity,
        last_beat_s=now_s,
        environments={
            one.name: EnvironmentInfo(version=one.version, scores=one.scores) for one in request.environments
        },
        own_weights=generates,
        version=OWN_WEIGHTS if generates else None,
        granted=OWN_WEIGHTS.number if generates else -1,
        lineages={OWN_WEIGHTS.lineage} if generates else set(),
    )


def _config(model: Path, shape: Shape, tools: Mapping[str, float]) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(model), "dtype": "float32"},
            "data": {
                "train_files": ["mixadd3:train"],
                "max_prompt_length": shape.prompt,
                "max_response_length": 2 * shape.turn + 8,
                "max_episode_tokens": shape.prompt + 2 * shape.turn + shape.answer + 16,
                "template": "none",
            },
            "environments": {name: {"environment": "external"} for name in tools},
            "rollout": {
                "n": shape.samples,
                "max_num_seqs": shape.slots,
                "max_turns": 2,
                "engine": "vllm",
                "kv_cache_bytes": 256 << 20,
            },
        }
    )
