"""Episodes against a real server of an environment, over gRPC: turns, and a server that is slow, lies, answers 20 MB, dies."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from services.coordinator.episodes.player import Player
from services.coordinator.state.member import EnvironmentInfo, Member, Role, State
from services.coordinator.wire.clients import Clients
from services.coordinator.wire.episode_clients import EpisodeClients
from sluice.limits import SERVER_OPTIONS
from sluice.testing import assert_eventually
from sluice.v1 import common_pb2 as pb
from sluice.v1 import environment_pb2, environment_pb2_grpc
from tests.unit.coordinator.fake_episodes import EpisodeStage, FakeChat
from tests.unit.coordinator.fakes import running

pytestmark = pytest.mark.integration


class Game(environment_pb2_grpc.EnvironmentServiceServicer):
    """Two turns, then a score; `odd` names what the next answer to a turn is instead."""

    def __init__(self) -> None:
        self.open: dict[str, environment_pb2.OpenRequest] = {}
        self.steps: list[environment_pb2.StepRequest] = []
        self.odd = ""

    async def ListEnvironments(self, request: Any, context: Any) -> environment_pb2.ListEnvironmentsResponse:
        return environment_pb2.ListEnvironmentsResponse()

    async def Open(self, request: environment_pb2.OpenRequest, context: Any) -> environment_pb2.OpenResponse:
        self.open[request.episode_id] = request
        tool = environment_pb2.Tool(name="look", parameters_json='{"type": "object", "properties": {}}')
        return environment_pb2.OpenResponse(messages=[pb.ChatMessage(role="user", content="go")], tools=[tool])

    async def Step(self, request: environment_pb2.StepRequest, context: Any) -> environment_pb2.StepResponse:
        self.steps.append(request)
        odd, self.odd = self.odd, ""
        if odd == "hangs":
            await asyncio.sleep(60)
        if odd == "20 MB":
            return environment_pb2.StepResponse(messages=[pb.ChatMessage(role="user", content="x" * 20_000_000)])
        if odd == "lies":
            return environment_pb2.StepResponse(messages=[pb.ChatMessage(role="system", content="x")])
        if odd == "forgets":
            del self.open[request.episode_id]
        if request.episode_id not in self.open:
            await context.abort(grpc.StatusCode.NOT_FOUND, "not open")
        if request.turn == 1 or request.last:
            score = pb.EpisodeScore(score=float(request.episode_id.split(".")[1] == "1"))
            return environment_pb2.StepResponse(done=True, score=score)
        return environment_pb2.StepResponse(messages=[pb.ChatMessage(role="tool", name="look", content="a tree")])

    async def Close(self, request: environment_pb2.CloseRequest, context: Any) -> environment_pb2.CloseResponse:
        self.open.pop(request.episode_id, None)
        return environment_pb2.CloseResponse()


class ToolChat(FakeChat):
    """As FakeChat, for an environment that answers as a tool."""

    def extend(self, **keywords: Any) -> Any:
        assert [message.role for message in keywords["new"]] == ["tool"]
        keywords["new"] = [keywords["history"][0]]
        return super().extend(**keywords)


@contextlib.asynccontextmanager
async def hosted(stage: EpisodeStage, name: str) -> AsyncIterator[tuple[Game, grpc.aio.Server]]:
    """A server in this event loop, in the stage's fleet."""
    game, server = Game(), grpc.aio.server(options=SERVER_OPTIONS)
    environment_pb2_grpc.add_EnvironmentServiceServicer_to_server(game, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    member = Member(
        service_id=name,
        role=Role.ENVIRONMENT,
        address=f"127.0.0.1:{port}",
        incarnation=name,
        capacity=4,
        last_beat_s=stage.clock.now(),
        environments={"game": EnvironmentInfo(version="1", scores=True)},
    )
    stage.fleet.register(member)
    try:
        yield game, server
    finally:
        await server.stop(None)


async def test_episodes_over_grpc_survive_what_a_server_can_do() -> None:
    stage = EpisodeStage(hosts=0, rollout__turn_timeout_s=1.5, data__train_batch_size=2, learner__mini_batch_size=2)
    clients = Clients(vocabulary=1 << 16)
    player = Player(
        config=stage.config, fleet=stage.fleet, clock=stage.clock, environments=EpisodeClients(clients), chat=ToolChat()
    )
    stage.conductor._episodes._player = player  # type: ignore[union-attr]
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)

    async def further_batch() -> None:
        """Empties the queue once it is full, so that the next four groups are admitted."""
        await assert_eventually(lambda: len(stage.board.queued) == 4)  # a group is encoded before it is queued
        seen = len(stage.groups)
        for group in list(stage.board.queued.values()):
            stage.board.remove(group)
            stage.store.state.pop(group.group_id)
            stage.store.counters.update({"queued": -1, "abandoned": 1, "tokens:queued": -16, "tokens:abandoned": 16})
        stage.board.changed.notify()
        await assert_eventually(lambda: len(stage.groups) >= seen + 4)

    async with contextlib.AsyncExitStack() as stack:
        game, server = await stack.enter_async_context(hosted(stage, "env-0"))
        await stack.enter_async_context(running(stage))
        await assert_eventually(lambda: len(stage.groups) == 4)
        sample = stage.groups[0].samples[1]
        assert (len(sample.turns), sample.score.score, sample.turns[0].answers[0].name) == (2, 1.0, "look")
        assert {(step.turn, step.last, step.message.role) for step in game.steps} >= {(0, False, "assistant")}
        for odd, fault in (
            ("hangs", "1.5 s|Deadline"),
            ("20 MB", "larger than max"),
            ("lies", "role 'system'"),
            ("forgets", "not open"),
        ):
            game.odd = odd
            await further_batch()
            faults = " ".join(attempt.fault for group in stage.groups for attempt in group.attempts)
            assert any(part in faults for part in fault.split("|")), (odd, faults)
        await stack.enter_async_context(hosted(stage, "env-1"))
        await server.stop(None)
        await further_batch()
        assert stage.fleet.members["env-0"].state is State.LOST
        assert not stage.store.counters["failed:environment"]
        await assert_eventually(lambda: stage.fleet.members["env-1"].outstanding == 0)
    await player.close()
    await clients.close()
