"""RolloutService over real gRPC with a real engine (transformers), fed by a real WeightSender over gloo."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from transformers import PreTrainedModel

from services.rollout.engine_loop import EngineLoop
from sluice.rpc.arrays import pack_ids, unpack_floats, unpack_ids
from sluice.rpc.channel import open_channel
from sluice.rpc.policy_versions import version_to_proto
from sluice.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc
from sluice.weights.payload import dense
from sluice.weights.sender import WeightSender
from sluice.weights.snapshot import Snapshot
from sluice.weights.wire import manifest_to_proto, payload_to_proto
from tests.integration.real_rollout import serving_rollout
from tests.tiny_model import BOS, EOS, PAD, TOKENS, load, logprobs, perturbed, snapshot

pytestmark = pytest.mark.integration

PROMPT = [5, 6, 7, 8]
TIMEOUT_S = 20.0
LIMIT_S = 3.0
"""Of one transfer operation."""


@pytest.fixture
def loaded(model: Path) -> PreTrainedModel:
    return load(model)


@dataclasses.dataclass(kw_only=True, slots=True)
class Rollout:
    """A served rollout, the learner's end, and the coordinator's part of a push."""

    stub: Any
    loop: EngineLoop
    sender: WeightSender

    async def push(self, weights: Snapshot, *, epoch: str = "e") -> rollout_pb2.ApplyWeightsResponse:
        self.sender.publish(weights)
        opened = self.sender.open(rollout_id="r", epoch=epoch, timeout_s=LIMIT_S)
        if opened.new_epoch:
            join = rollout_pb2.JoinEpochRequest(
                epoch=epoch,
                store_host=opened.store_host,
                store_port=opened.store_port,
                secret=opened.secret,
                backend=opened.backend,
                rank=1,
                world_size=2,
                timeout_s=LIMIT_S,
            )
            await self.stub.JoinEpoch(join, timeout=TIMEOUT_S)
        manifest = manifest_to_proto(weights.manifest)
        payload = payload_to_proto(dense(weights.manifest, weights.buffer))
        receive = rollout_pb2.ReceiveWeightsRequest(epoch=epoch, manifest=manifest, payload=payload)
        await self.stub.ReceiveWeights(receive, timeout=TIMEOUT_S)
        apply = rollout_pb2.ApplyWeightsRequest(version=manifest.version, timeout_s=LIMIT_S)
        return await self.stub.ApplyWeights(apply, timeout=TIMEOUT_S)

    async def generate(self, request: rollout_pb2.GenerateRequest) -> list[common_pb2.Sample]:
        events = self.stub.Generate(request, timeout=TIMEOUT_S)
        return [event.sample async for event in events if event.HasField("sample")]

    async def info(self) -> rollout_pb2.RolloutServiceGetInfoResponse:
        return await self.stub.GetInfo(rollout_pb2.RolloutServiceGetInfoRequest(), timeout=TIMEOUT_S)


@pytest.fixture
async def rollout(model: Path, sender: WeightSender) -> AsyncIterator[Rollout]:
    async with serving_rollout(model) as (address, loop):
        channel = open_channel(address)
        yield Rollout(stub=rollout_pb2_grpc.RolloutServiceStub(channel), loop=loop, sender=sender)
        await channel.close()


def wanted(request_id: str = "g", *, n: int = 8, max_tokens: int = 24, **changes: Any) -> rollout_pb2.GenerateRequest:
    return rollout_pb2.GenerateRequest(
        request_id=request_id,
        prompt_token_ids=pack_ids(PROMPT),
        samples=[rollout_pb2.SampleSpec(index=index, seed=index) for index in range(n)],
        sampling=common_pb2.SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=max_tokens),
        **changes,
    )


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_samples_carry_ids_logprobs_spans_and_text_of_the_pushed_version(
    rollout: Rollout, loaded: PreTrainedModel
) -> None:
    weights = snapshot(perturbed(loaded, seed=3), 4)
    applied = await rollout.push(weights)
    assert applied.digest == weights.manifest.digest
    assert applied.receive_ms > 0
    samples = await rollout.generate(wanted())
    assert sorted(sample.index for sample in samples) == list(range(8))
    for sample in samples:
        ids = unpack_ids(sample.token_ids)
        expected = logprobs(loaded, PROMPT, ids.tolist())
        np.testing.assert_allclose(unpack_floats(sample.logprobs), expected, atol=1e-4)
        [span] = sample.spans
        assert (span.version.lineage, span.version.number, span.start_token, span.end_token) == ("a", 4, 0, len(ids))
        assert (sample.rollout_id, sample.seed) == ("rollout-0", sample.index)
        assert sample.text == "".join(TOKENS[token] for token in ids if token not in (PAD, BOS, EOS))
    info = await rollout.info()
    assert (info.version.number, info.digest) == (4, weights.manifest.digest)
    assert info.generated_tokens == sum(len(sample.token_ids) // 4 for sample in samples)
    assert info.running_samples == 0


async def test_nothing_is_generated_before_the_first_push(rollout: Rollout) -> None:
    assert not (await rollout.info()).HasField("version")
    code, details = await refusal(rollout.generate(wanted()))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "no weights of the run" in details


async def test_a_push_lands_while_samples_are_being_drawn(rollout: Rollout, loaded: PreTrainedModel) -> None:
    await rollout.push(snapshot(loaded, 0))
    stream = rollout.stub.Generate(wanted(n=16, max_tokens=120), timeout=TIMEOUT_S)
    drawing = asyncio.ensure_future(_samples(stream))
    numbers: set[int] = set()
    for number in range(1, 4):
        await rollout.push(snapshot(perturbed(loaded, seed=number, scale=0.01), number))
    for sample in await drawing:
        ends = [span.end_token for span in sample.spans]
        assert [span.start_token for span in sample.spans] == [0, *ends[:-1]]
        assert ends[-1] * 4 == len(sample.token_ids)
        numbers |= {span.version.number for span in sample.spans}
    assert len(numbers) > 1


async def test_a_wrong_byte_keeps_the_old_version_and_the_next_epoch_heals(
    rollout: Rollout, loaded: PreTrainedModel
) -> None:
    await rollout.push(snapshot(loaded, 0))
    good = snapshot(perturbed(loaded, seed=1), 1)
    buffer = good.buffer.copy()
    buffer[5] ^= 1
    code, details = await refusal(rollout.push(dataclasses.replace(good, buffer=buffer)))
    assert code is grpc.StatusCode.DATA_LOSS
    assert "the old weights stay" in details
    assert (await rollout.info()).version.number == 0
    assert await rollout.generate(wanted())
    await rollout.push(good, epoch="healed")
    assert (await rollout.info()).version.number == 1


async def test_a_transfer_that_never_starts_expires_and_the_next_epoch_heals(
    rollout: Rollout, loaded: PreTrainedModel
) -> None:
    weights = snapshot(loaded, 1)
    rollout.sender.publish(weights)
    opened = rollout.sender.open(rollout_id="r", epoch="e", timeout_s=LIMIT_S)
    join = rollout_pb2.JoinEpochRequest(
        epoch="e",
        store_host=opened.store_host,
        store_port=opened.store_port,
        secret=opened.secret,
        backend="gloo",
        rank=1,
        world_size=2,
        timeout_s=0.5,
    )
    await rollout.stub.JoinEpoch(join, timeout=TIMEOUT_S)
    receive = rollout_pb2.ReceiveWeightsRequest(
        epoch="e",
        manifest=manifest_to_proto(weights.manifest),
        payload=payload_to_proto(dense(weights.manifest, weights.buffer)),
    )
    apply = rollout_pb2.ApplyWeightsRequest(version=version_to_proto(weights.manifest.version), timeout_s=LIMIT_S)
    await rollout.stub.ReceiveWeights(receive, timeout=TIMEOUT_S)
    await rollout.stub.ApplyWeights(apply, timeout=TIMEOUT_S)
    await rollout.stub.ReceiveWeights(receive, timeout=TIMEOUT_S)  # the learner sends nothing more
    code, _ = await refusal(rollout.stub.ApplyWeights(apply, timeout=TIMEOUT_S))
    assert code is grpc.StatusCode.DATA_LOSS
    await rollout.push(weights, epoch="healed")


async def test_other_models_and_older_numbers_are_refused_before_a_byte_is_sent(
    rollout: Rollout, loaded: PreTrainedModel
) -> None:
    await rollout.push(snapshot(loaded, 5))
    code, details = await refusal(rollout.push(snapshot(loaded, 4), epoch="back"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "numbers never go back" in details
    await rollout.push(snapshot(loaded, 2, lineage="b"), epoch="rollback")
    foreign = snapshot(loaded, 6)
    message = manifest_to_proto(foreign.manifest)
    message.tensors[0].name = "a.stranger"
    receive = rollout_pb2.ReceiveWeightsRequest(
        epoch="rollback", manifest=message, payload=payload_to_proto(dense(foreign.manifest, foreign.buffer))
    )
    code, details = await refusal(rollout.stub.ReceiveWeights(receive, timeout=TIMEOUT_S))
    assert code is grpc.StatusCode.DATA_LOSS
    assert "same model" in details


async def test_a_required_version_is_exact(rollout: Rollout, loaded: PreTrainedModel) -> None:
    await rollout.push(snapshot(loaded, 1))
    held, other = (common_pb2.PolicyVersion(lineage="a", number=number) for number in (1, 2))
    assert await rollout.generate(wanted(required_version=held))
    code, details = await refusal(rollout.generate(wanted(required_version=other)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "a2 is required" in details


async def test_abort_ends_the_stream_with_what_there_is(rollout: Rollout, loaded: PreTrainedModel) -> None:
    await rollout.push(snapshot(loaded, 0))
    drawing = asyncio.ensure_future(_samples(rollout.stub.Generate(wanted(n=16, max_tokens=120), timeout=TIMEOUT_S)))
    async with asyncio.timeout(TIMEOUT_S):
        while not (await rollout.info()).generated_tokens:  # each call is a round trip, not a poll of a timer
            pass
    response = await rollout.stub.Abort(rollout_pb2.AbortRequest(request_ids=["g", "unknown"]), timeout=TIMEOUT_S)
    assert response.aborted == 1
    samples = await drawing
    assert len(samples) == 16
    assert common_pb2.FINISH_REASON_ABORT in {sample.finish_reason for sample in samples}
    assert (await rollout.info()).running_samples == 0


async def test_a_caller_that_leaves_frees_the_engine(rollout: Rollout, loaded: PreTrainedModel) -> None:
    await rollout.push(snapshot(loaded, 0))
    for index in range(20):
        stream = rollout.stub.Generate(wanted(f"g{index}", n=16, max_tokens=120), timeout=TIMEOUT_S)
        await stream.read()
        stream.cancel()
    assert await rollout.loop.drain(timeout_s=TIMEOUT_S) == []
    assert not rollout.loop.engine.running


async def test_too_much_at_once_is_refused_and_bad_fields_are_named(rollout: Rollout, loaded: PreTrainedModel) -> None:
    await rollout.push(snapshot(loaded, 0))
    code, details = await refusal(rollout.generate(wanted(n=65)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 64" in details
    code, details = await refusal(rollout.generate(wanted(max_tokens=125)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "exceed the context of 128" in details


async def test_drain_lets_samples_end_and_refuses_new_ones(rollout: Rollout, loaded: PreTrainedModel) -> None:
    await rollout.push(snapshot(loaded, 0))
    stream = aiter(rollout.stub.Generate(wanted(n=4), timeout=TIMEOUT_S))
    first = await anext(stream)
    drained = await rollout.stub.Drain(rollout_pb2.RolloutServiceDrainRequest(timeout_s=TIMEOUT_S), timeout=TIMEOUT_S)
    assert drained.aborted == 0
    assert first.HasField("sample")
    assert len(await _samples(stream)) == 3
    code, details = await refusal(rollout.generate(wanted("late")))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "draining" in details


async def _samples(stream: Any) -> list[common_pb2.Sample]:
    return [event.sample async for event in stream if event.HasField("sample")]
