"""python -m benchmarks.simulated.relay: the least that carries the coordinator's messages; the peer of coordinator_relay.

The same Generate, Score, OpenTransfer, ReceiveWeights and ApplyWeights calls, one round trip to Redis a group on its way
in, two a batch on its way out, and the batch streamed to the learner. No rule is kept: no age, no verdict, no ledger, no
transition, no fence, no retry, no file, nothing survives.
"""

import argparse
import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import redis.asyncio as aioredis
import uvloop

from sluice.limits import SERVER_OPTIONS
from sluice.rpc.arrays import pack_ids
from sluice.rpc.channel import open_channel
from sluice.testing.fakes import digest
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import (
    coordinator_pb2_grpc,
    learner_pb2,
    learner_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)

PROMPT, GOLD = "123+456=", "579"
TIMEOUT_S = 60.0


class Relay(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """Carries `in_flight` groups at once, and keeps at most `live` groups in flight and in Redis."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        limits = {"timeout": TIMEOUT_S, "socket_timeout": TIMEOUT_S}
        pool = aioredis.BlockingConnectionPool.from_url(args.redis_url, max_connections=16, **limits)
        self._redis = aioredis.Redis(connection_pool=pool)
        self._rollouts: list[Any] = []
        self._ids: list[str] = []
        self._rewards: list[Any] = []
        self._learner: Any = None
        self._everybody, self._all_hold = asyncio.Event(), asyncio.Event()
        self._holding: set[str] = set()
        self._number = 0
        self._newer = asyncio.Event()
        self._queued = 0
        self._ready = asyncio.Event()
        self._room = asyncio.Semaphore(args.live)
        self._admissions = itertools.count()
        self._turn = itertools.count()

    async def run(self) -> None:
        """Until cancelled."""
        await self._everybody.wait()
        async with asyncio.TaskGroup() as tasks:
            for service_id, rollout in zip(self._ids, self._rollouts, strict=True):
                tasks.create_task(self._push(service_id, rollout))
            await self._all_hold.wait()
            for _ in range(self._args.in_flight):
                tasks.create_task(self._carry())

    async def _carry(self) -> None:
        while True:
            await self._room.acquire()
            number = next(self._admissions)
            rollout = self._rollouts[next(self._turn) % len(self._rollouts)]
            request = rollout_pb2.GenerateRequest(
                request_id=str(number),
                prompt_token_ids=pack_ids([4, 5, 6, 13, 7, 8, 9, 17]),
                samples=[
                    rollout_pb2.SampleSpec(index=index, seed=number * 64 + index) for index in range(self._args.n)
                ],
                sampling=common.SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=self._args.max_tokens),
            )
            samples = [part.sample async for part in rollout.Generate(request, timeout=TIMEOUT_S)]
            items = [
                reward_pb2.ScoreItem(
                    index=sample.index,
                    text=sample.text,
                    response_tokens=len(sample.token_ids) // 4,
                    finish_reason=sample.finish_reason,
                )
                for sample in samples
            ]
            score = reward_pb2.ScoreRequest(
                group_id=str(number), data_source="mixadd3", prompt_text=PROMPT, ground_truth=GOLD, items=items
            )
            scored = await self._rewards[0].Score(score, timeout=TIMEOUT_S)
            prompt = common.Prompt(
                prompt_id=str(number),
                data_source="mixadd3",
                token_ids=request.prompt_token_ids,
                text=PROMPT,
                ground_truth=GOLD,
            )
            group = common.Group(
                group_id=str(number),
                admission=number,
                attempt=1,
                prompt=prompt,
                samples=samples,
                rewards=scored.results,
            )
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd("groups", {"payload": group.SerializeToString()})
                pipe.hset("state", str(number), "queued")
                await pipe.execute()
            self._queued += 1
            self._ready.set()

    async def _push(self, service_id: str, rollout: Any) -> None:
        """Every version to one rollout, the newest there is."""
        held = -1
        while True:
            if held == self._number:
                await self._newer.wait()
                continue
            request = learner_pb2.OpenTransferRequest(rollout_id=service_id, epoch=service_id, timeout_s=TIMEOUT_S)
            opened = await self._learner.OpenTransfer(request, timeout=TIMEOUT_S)
            receive = rollout_pb2.ReceiveWeightsRequest(
                epoch=service_id, manifest=opened.manifest, payload=opened.payload, file_path=opened.file_path
            )
            await rollout.ReceiveWeights(receive, timeout=TIMEOUT_S)
            apply = rollout_pb2.ApplyWeightsRequest(version=opened.manifest.version, timeout_s=TIMEOUT_S)
            applied = await rollout.ApplyWeights(apply, timeout=TIMEOUT_S)
            held = applied.version.number
            self._holding.add(service_id)
            if len(self._holding) == len(self._ids):
                self._all_hold.set()

    async def Register(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        channel = open_channel(request.address)
        match request.role:
            case pb.SERVICE_ROLE_ROLLOUT:
                self._rollouts.append(rollout_pb2_grpc.RolloutServiceStub(channel))
                self._ids.append(request.service_id)
            case pb.SERVICE_ROLE_REWARD:
                self._rewards.append(reward_pb2_grpc.RewardServiceStub(channel))
            case _:
                self._learner = learner_pb2_grpc.LearnerServiceStub(channel)
        if len(self._rollouts) == self._args.rollouts and self._rewards and self._learner is not None:
            self._everybody.set()
        return pb.RegisterResponse(service_id=request.service_id, heartbeat_interval_s=1.0)

    async def Heartbeat(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return pb.HeartbeatResponse(known=True)

    async def GetBatch(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        size = self._args.batch
        while self._queued < size:
            self._ready.clear()
            await self._ready.wait()
        self._queued -= size
        found = await self._redis.xrange("groups", count=size)
        await self._redis.xdel("groups", *(entry for entry, _ in found))
        yield pb.GetBatchResponse(header=pb.BatchHeader(step=request.step, groups=size, digest=digest(request.step)))
        for _, fields in found:
            yield pb.GetBatchResponse(group=common.Group.FromString(fields[b"payload"]))
        for _ in range(size):
            self._room.release()

    async def CommitStep(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self._number = request.version.number
        self._newer.set()
        self._newer = asyncio.Event()
        return pb.CommitStepResponse(recorded_digest=request.weights_digest)


async def _serve(args: argparse.Namespace) -> None:
    relay = Relay(args)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(relay, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with os.fdopen(args.ready_fd, "w") as ready:
        ready.write(str(port))
    await relay.run()


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="groups")
    parser.add_argument("--n", type=int, required=True, help="samples a group")
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--in-flight", type=int, required=True, help="groups")
    parser.add_argument("--live", type=int, required=True, help="groups in flight and queued")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
