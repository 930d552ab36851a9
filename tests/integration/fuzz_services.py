"""One real server of each service in one event loop, and coordinators' runs with a cast, all to be fuzzed."""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from services.learner.control.publisher_state import PublisherState
from services.learner.control.servicer import LearnerServicer
from services.reward.app import make_reward_server
from services.reward.environments.starting import open_environments
from services.reward.routing import Router
from services.reward.sandbox.grader_handle import Limits
from services.reward.sandbox.pool import GraderPool
from sluice import PROTOCOL_VERSION
from sluice.config.schema import Config
from sluice.launch.embedded_redis import start_redis
from sluice.model_identity import model_identity
from sluice.rpc.arrays import pack_ids
from sluice.rpc.server import make_server
from sluice.telemetry.prometheus import Exporter
from sluice.testing.fakes import digest, version
from sluice.v1 import common_pb2, environment_pb2, learner_pb2, learner_pb2_grpc, reward_pb2, rollout_pb2
from sluice.v1 import coordinator_pb2 as pb
from sluice.weights.sender import WeightSender
from sluice.weights.streams import WeightStreams
from sluice.weights.wire import manifest_to_proto
from tests.integration.coordinator_cases import Cast, coordinator, small_config
from tests.integration.fuzz_messages import Known
from tests.integration.real_rollout import serving_rollout
from tests.tiny_model import load, snapshot, write_tiny_model

T = TypeVar("T")

AT_ONCE = 40
SHORT_S, LONG_S = 0.3, 30.0
"""Limits of calls that may wait for something that never comes, and of all others."""

MAY_WAIT = {"WatchEvents", "GetBatch", "Drain", "SaveCheckpoint", "Evaluate", "JoinEpoch", "ApplyWeights", "Generate"}
ENDING = {
    *("/sluice.v1.CoordinatorService/Stop", "/sluice.v1.CoordinatorService/Rollback"),
    "/sluice.v1.RolloutService/Drain",
}
"""After these a server does little else: they go to one of their own."""


class Services:
    """Everything under test. `known` are values that mean something to it; `folder` is where it may write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.known: Known = {}
        self.good: dict[str, Message] = {}
        """By path: a request that can be served."""
        self._started, self._closing = asyncio.Event(), asyncio.Event()
        self._living = self._loop.create_task(self._live())
        self._run(self._first(self._started.wait(), self._living))

    def send(self, path: str, requests: Sequence[bytes], *, streams: bool) -> list[tuple[grpc.StatusCode, str]]:
        """The status and its text of each call. Between two of these the services stand still."""
        return self._run(self._send(path, requests, streams))

    def close(self) -> None:
        """Ends everything."""
        self._closing.set()
        self._run(self._living)
        self._loop.close()

    def _run(self, work: Awaitable[T]) -> T:
        return self._loop.run_until_complete(work)

    async def _first(self, *works: Awaitable[Any]) -> None:
        done, _ = await asyncio.wait([asyncio.ensure_future(w) for w in works], return_when=asyncio.FIRST_COMPLETED)
        for work in done:
            work.result()

    async def _live(self) -> None:
        """One task enters and leaves everything."""
        async with self._stack:
            await self._start()
            self._started.set()
            await self._closing.wait()

    async def _send(self, path: str, requests: Sequence[bytes], streams: bool) -> list[tuple[grpc.StatusCode, str]]:
        _, service, method = path.split("/")
        channel = self._channels[f"{service}-ending" if path in ENDING else service]
        limit_s = SHORT_S if method in MAY_WAIT else LONG_S
        make = channel.unary_stream if streams else channel.unary_unary
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(request: bytes) -> tuple[grpc.StatusCode, str]:
            async with turns:
                return await _status_of(make(path)(request, timeout=limit_s), streams)

        return list(await asyncio.gather(*(one(request) for request in requests)))

    async def _start(self) -> None:
        model = await asyncio.to_thread(write_tiny_model, self._folder / "model")
        self.known = await self._serve_coordinators(model)
        await self._serve_rollout("sluice.v1.RolloutService", model)
        await self._serve_rollout("sluice.v1.RolloutService-ending", model)
        await self._serve_reward()
        await self._serve_learner(model)

    async def _serve_coordinators(self, model: Path) -> Known:
        """Two runs that train: one for all calls, one for those that end it. Returns what the first one knows."""
        redis = await start_redis(self._folder / "redis", log_path=self._folder / "redis.log")
        self._stack.push_async_callback(redis.stop)
        fence, config = 0, small_config(model, run__total_steps=100, weights__probe=False, launch__check_reward=False)
        for name in ("sluice.v1.CoordinatorService-ending", "sluice.v1.CoordinatorService"):
            run = await self._stack.enter_async_context(coordinator(config, self._folder / name, redis.url))
            cast = await self._stack.enter_async_context(Cast(model).standing())
            await cast.register(run)
            await cast.learner.train(run, range(2))
            fence = cast.learner.fence
            self._channel(name, run.address)
        identity = model_identity(model)
        self.good = good_requests(model, fence=fence)
        return {
            "fence": (fence, fence, 0, -1),
            "step": (0, 1, 2, 3, -1, 2**62),
            "lineage": ("a", "", "b"),
            "role": (1, 2, 3, 1, 2, 3, 0, 9),
            "incarnation": ("a", "b", "learner-a", ""),
            "max_model_len": (128, 128, 0, -1),
            "capacity": (1, 64, 0, -1, 2**31 - 1),
            "protocol_version": (1, 1, 0),
            "model_hash": (identity.model_hash, identity.model_hash, "x"),
            "tokenizer_hash": (identity.tokenizer_hash, identity.tokenizer_hash, "x"),
            "address": ("127.0.0.1:1", "", "nowhere", "[::1"),
            "service_id": ("", "rollout-0", "reward-0", "new", "newer"),
            "store_host": ("127.0.0.1", "", "\x00"),
            "store_port": (1, 0, -1, 65_536),
            "secret": ("s", ""),
            "path": ("", "relative", str(self._folder / "export")),
            "file_path": ("", "/nonexistent", str(self._folder), str(model / "config.json")),
            "timeout_s": (0.05, 0.0, -1.0, float("nan")),
            "wait_s": (0.0, 0.05, -1.0, float("nan"), 1e308),
            "max_tokens": (1, 3, 0, -1, 2**31 - 1),
            "to": (7, -1, 2**62, 1, 0),
            "preview": (True,),
            "epoch": ("e", "f", ""),
            "request_id": ("h", "i", "j", "k", ""),
            "finish_reason": (1, 2, 1, 2, 0, 9),
            "response_tokens": (1, 72, 0, -1, 2**31 - 1),
            "environment": ("again", "again", "", "nowhere"),
            "episode_id": ("e", "f", "g", ""),
            "turn": (0, 0, 1, -1),
            "data_source": ("mixadd3", "aime2024", "gsm8k", "code", "nowhere", ""),
            "backend": ("gloo", "grpc", "nccl", "x"),
            "source_role": ("", "rollout", "x"),
            "first_bucket": (0, 1, -1, 2**62),
            "rank": (1, 0, -1, 2**31 - 1),
            "world_size": (2, 1, 0, -1, 2**31 - 1),
        }

    async def _serve_rollout(self, name: str, path: Path) -> None:
        address, loop = await self._stack.enter_async_context(serving_rollout(path))
        weights = await asyncio.to_thread(lambda: snapshot(load(path), 0))
        await loop.load_weights(weights.manifest, weights.buffer, inflight="keep", finish_s=1.0)
        self._channel(name, address)

    async def _serve_reward(self) -> None:
        config = Config.model_validate(
            {
                "model": {"path": "unused"},
                "data": {"train_files": ["mixadd3:train"]},
                "reward": {"workers": 1},
                "environments": {"again": {"environment": "second-try", "workers": 1, "episodes": 2000}},
            }
        )
        limits = Limits(timeout_s=2.0, memory_bytes=2 << 30, recycle_after=1000, file_bytes=1 << 28, max_processes=256)
        pool = await self._stack.enter_async_context(GraderPool.open(workers=1, limits=limits))
        host = await self._stack.enter_async_context(open_environments(config))
        server = await make_reward_server(
            config, Router(config.reward.routes), pool, Exporter(service="reward"), environments=host
        )
        port = await server.start(bind="127.0.0.1", port=0)
        for name in server.services:
            self._channel(name, f"127.0.0.1:{port}")
        self._stack.push_async_callback(server.stop, grace_s=0)

    async def _serve_learner(self, model: Path) -> None:
        sender = WeightSender(backend="grpc", host="127.0.0.1")
        publisher = PublisherState(sender, world_size=1, backend="gloo")
        publisher.publish(await asyncio.to_thread(lambda: snapshot(load(model), 0)))
        self._stack.callback(sender.close)
        servicer = LearnerServicer(publisher, config=small_config(model), run_dir=self._folder, wake=lambda: None)
        assert sender.links is not None
        streams = WeightStreams(sender.links.offered)
        self._stack.callback(streams.close)

        def register(server: grpc.aio.Server) -> None:
            learner_pb2_grpc.add_LearnerServiceServicer_to_server(servicer, server)
            streams.add_to(server)

        server = make_server(register, services=["sluice.v1.LearnerService", streams.name])
        sender.links.rpc_port = await server.start(bind="127.0.0.1", port=0)
        for name in server.services:
            self._channel(name, f"127.0.0.1:{server.port}")
        self._stack.push_async_callback(server.stop, grace_s=0)

    def _channel(self, name: str, address: str) -> None:
        # Not open_channel: a caller of ours refuses by itself to send what is too large, a stranger does not.
        self._channels[name] = grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self._stack.push_async_callback(self._channels[name].close)


def good_requests(model: Path, *, fence: int) -> dict[str, Message]:
    """One of each method whose empty request cannot be served."""
    identity, prompt = model_identity(model), pack_ids([5, 6, 7])
    manifest = manifest_to_proto(snapshot(load(model), 0).manifest)
    coordinator_, rollout = "/sluice.v1.CoordinatorService/", "/sluice.v1.RolloutService/"
    environments = "/sluice.v1.EnvironmentService/"
    return {
        environments + "Open": environment_pb2.OpenRequest(
            episode_id="e",
            environment="again",
            ground_truth="2",
            messages=[common_pb2.ChatMessage(role="user", content="1+1?")],
            lease_s=30.0,
            max_turns=2,
        ),
        environments + "Step": environment_pb2.StepRequest(
            episode_id="e",
            message=common_pb2.ChatMessage(role="assistant", content="2"),
            finish_reason=common_pb2.FINISH_REASON_STOP,
        ),
        coordinator_ + "Register": pb.RegisterRequest(
            role=pb.SERVICE_ROLE_ROLLOUT,
            service_id="new",
            address="127.0.0.1:1",
            protocol_version=PROTOCOL_VERSION,
            model_hash=identity.model_hash,
            tokenizer_hash=identity.tokenizer_hash,
            engine="fake",
            capacity=1,
            max_model_len=128,
            incarnation="a",
        ),
        coordinator_ + "Heartbeat": pb.HeartbeatRequest(service_id="rollout-0", incarnation="rollout-0-a"),
        coordinator_ + "GetBatch": pb.GetBatchRequest(step=2, wait_s=0.05, fence=fence),
        coordinator_ + "CommitStep": pb.CommitStepRequest(
            step=1, version=version(2), weights_digest=digest(2), metrics={"loss/entropy_nats": 1.0}, fence=fence
        ),
        coordinator_ + "CommitCheckpoint": pb.CommitCheckpointRequest(version=version(1), path="step-1", fence=fence),
        coordinator_ + "MeetLearner": pb.MeetLearnerRequest(round="r", endpoint="10.0.0.1:29400"),
        coordinator_ + "Scale": pb.ScaleRequest(role=pb.SERVICE_ROLE_ROLLOUT, replicas=1),
        coordinator_ + "Rollback": pb.RollbackRequest(to=0, preview=True),
        coordinator_ + "Evaluate": pb.EvaluateRequest(prompts=1, n=1),
        coordinator_ + "GetGroup": pb.GetGroupRequest(group_id="0"),
        coordinator_ + "SubmitPrompts": pb.SubmitPromptsRequest(
            prompts=[{"data_source": "mixadd3", "prompt": "12+3=", "ground_truth": "15"}]
        ),
        rollout + "Generate": rollout_pb2.GenerateRequest(
            request_id="g",
            prompt_token_ids=prompt,
            samples=[rollout_pb2.SampleSpec(index=0, seed=1)],
            sampling=common_pb2.SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=3),
        ),
        rollout + "JoinEpoch": rollout_pb2.JoinEpochRequest(
            epoch="e",
            store_host="127.0.0.1",
            store_port=1,
            secret="s",
            backend="gloo",
            rank=1,
            world_size=2,
            timeout_s=0.05,
        ),
        rollout + "ReceiveWeights": rollout_pb2.ReceiveWeightsRequest(epoch="e", manifest=manifest),
        rollout + "OpenTransfer": rollout_pb2.RolloutServiceOpenTransferRequest(
            receiver_id="r", epoch="e", timeout_s=0.05, payload_id="p"
        ),
        rollout + "ApplyWeights": rollout_pb2.ApplyWeightsRequest(version=version(0), timeout_s=0.05),
        "/sluice.v1.RewardService/Score": reward_pb2.ScoreRequest(
            group_id="g",
            data_source="mixadd3",
            ground_truth="125",
            items=[reward_pb2.ScoreItem(index=0, text="#125", response_tokens=3, finish_reason="FINISH_REASON_STOP")],
        ),
        "/sluice.v1.LearnerService/OpenTransfer": learner_pb2.OpenTransferRequest(
            rollout_id="r", epoch="e", timeout_s=0.05
        ),
    }


async def _status_of(call: Any, streams: bool) -> tuple[grpc.StatusCode, str]:
    try:
        if streams:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""
