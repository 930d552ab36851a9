"""python -m benchmarks.simulated.fleet: a process with many simulated rollouts, each on a port of its own, and a reward.

Waits: for the coordinator to answer registrations and heartbeats (sluice.rpc.registration bounds it); for SIGTERM.
"""

import argparse
import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

from benchmarks.simulated.engine import Lengths, TimedEngine
from benchmarks.simulated.names import END_TOKEN, TOKENS, registration
from sluice.rpc.arrays import pack_floats, pack_ids, unpack_ids
from sluice.rpc.registration import Registration
from sluice.rpc.server import RpcServer, make_server, stop_on_signals
from sluice.telemetry.logs import configure_logs
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import reward_pb2, reward_pb2_grpc, rollout_pb2, rollout_pb2_grpc

VOCABULARY = 150_000


class Canned:
    """Tokens to cut completions from, so that making one costs next to nothing. They compress about as real ones do: ids
    spread log-uniformly over a vocabulary of 150,000, log-probabilities with random mantissas."""

    def __init__(self, longest: int) -> None:
        self._starts = 1 << 23 if longest > 1000 else 1 << 16  # far enough apart that no compressor finds two alike
        random = np.random.default_rng(0)
        many = self._starts + longest
        self._ids = pack_ids((VOCABULARY ** random.random(many, np.float32)).astype(np.int32))
        self._logprobs = pack_floats(-random.standard_exponential(many, np.float32) * np.float32(0.3))

    def cut(self, seed: int, tokens: int) -> tuple[bytes, bytes]:
        """int32[tokens] ids with the end token, float32[tokens] log-probabilities."""
        first = 4 * (seed % self._starts)
        last = first + 4 * tokens
        return self._ids[first : last - 4] + pack_ids([END_TOKEN]), self._logprobs[first:last]


class SimulatedRollout(rollout_pb2_grpc.RolloutServiceServicer):
    """Answers with made-up tokens in the engine's time. The share of right answers is a property of the prompt."""

    def __init__(self, service_id: str, engine: TimedEngine, *, signal: float, canned: Canned) -> None:
        self._service_id, self._engine, self._signal, self._canned = service_id, engine, signal, canned
        self._manifests: dict[str, common.WeightManifest] = {}

    async def Generate(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        rights = self._rights(request)
        if self._engine.token_s == 0.0:
            for spec in request.samples:
                yield await self._sample(spec, rights)
            return
        for finished in asyncio.as_completed([self._sample(spec, rights) for spec in request.samples]):
            yield await finished

    async def _sample(self, spec: rollout_pb2.SampleSpec, rights: tuple[str, str, int]) -> Any:
        tokens, spans = await self._engine.generate(spec.seed)
        right, wrong, rightly = rights
        token_ids, logprobs = self._canned.cut(spec.seed, tokens)
        sample = common.Sample(
            index=spec.index,
            token_ids=token_ids,
            logprobs=logprobs,
            spans=spans,
            finish_reason=common.FINISH_REASON_STOP,
            text=right if rightly > spec.index else wrong,
            rollout_id=self._service_id,
            seed=spec.seed,
        )
        return rollout_pb2.GenerateResponse(sample=sample)

    def _rights(self, request: Any) -> tuple[str, str, int]:
        """A right answer, a wrong one, and how many of the first samples are right: one, none, or all."""
        text = "".join(TOKENS[token] for token in unpack_ids(request.prompt_token_ids))
        right = f"#{sum(int(part) for part in text.rstrip('=').split('+'))}"
        place = zlib.crc32(request.prompt_token_ids) / (1 << 32)
        if place < self._signal:
            return right, "#0", 1
        return right, "#0", len(request.samples) if place < (1.0 + self._signal) / 2 else 0

    async def JoinEpoch(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return rollout_pb2.JoinEpochResponse()

    async def ReceiveWeights(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self._manifests[request.epoch] = request.manifest
        return rollout_pb2.ReceiveWeightsResponse()

    async def ApplyWeights(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        manifest = next(m for m in self._manifests.values() if m.version == request.version)
        self._manifests.clear()
        self._engine.apply(request.version.number)
        return rollout_pb2.ApplyWeightsResponse(version=request.version, digest=manifest.digest)


class SimulatedReward(reward_pb2_grpc.RewardServiceServicer):
    """Right is what states the gold answer."""

    async def Score(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        results = []
        for item in request.items:
            acc = float(request.ground_truth in item.text)
            results.append(
                common.SampleReward(
                    status=common.REWARD_STATUS_OK, raw_score=acc, acc=acc, shaped_reward=acc, grader="simulated"
                )
            )
        return reward_pb2.ScoreResponse(results=results)


async def _serve(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    lengths = Lengths(median=args.median_tokens, sigma=args.sigma, most=args.most_tokens)
    canned = Canned(args.most_tokens if args.sigma else args.median_tokens)
    servers: list[RpcServer] = []
    async with asyncio.TaskGroup() as tasks:
        keeping: list[asyncio.Task[None]] = []

        async def attach(server: RpcServer, role: "pb.ServiceRole.ValueType", service_id: str, capacity: int) -> None:
            port = await server.start(bind="127.0.0.1", port=0)
            servers.append(server)
            request = registration(
                role, service_id=service_id, address=f"127.0.0.1:{port}", model=args.model, capacity=capacity
            )
            standing = Registration(
                coordinator=args.coordinator,
                describe=lambda: request,
                beat=lambda: pb.HeartbeatRequest(service_id=service_id, incarnation=request.incarnation),
            )
            await standing.register()
            keeping.append(tasks.create_task(standing.keep_alive()))

        if args.reward:
            reward = make_server(
                lambda grpc_server: reward_pb2_grpc.add_RewardServiceServicer_to_server(SimulatedReward(), grpc_server),
                services=[],
            )
            await attach(reward, pb.SERVICE_ROLE_REWARD, "reward", 1 << 20)
        for index in range(args.first, args.first + args.rollouts):
            engine = TimedEngine(lengths=lengths, token_s=args.token_s, slots=args.slots)
            rollout = SimulatedRollout(f"rollout-{index}", engine, signal=args.signal, canned=canned)
            server = make_server(
                lambda grpc_server, it=rollout: rollout_pb2_grpc.add_RolloutServiceServicer_to_server(it, grpc_server),
                services=[],
            )
            await attach(server, pb.SERVICE_ROLE_ROLLOUT, f"rollout-{index}", args.slots)
        await stop.wait()
        for task in keeping:
            task.cancel()
    await asyncio.gather(*(server.stop(grace_s=0.0) for server in servers))


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="number of the first rollout")
    parser.add_argument("--reward", action="store_true", help="also a simulated reward")
    parser.add_argument("--median-tokens", type=int, required=True)
    parser.add_argument("--sigma", type=float, default=0.0)
    parser.add_argument("--most-tokens", type=int, default=1 << 20)
    parser.add_argument("--token-s", type=float, default=0.0, help="0: no time at all")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--signal", type=float, default=1.0, help="share of prompts whose answers differ")
    args = parser.parse_args()
    configure_logs(service="simulated", level="warning")
    uvloop.run(_serve(args))


if __name__ == "__main__":
    main()
