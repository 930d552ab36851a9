"""The contract of a rollout server before and during a push of weights, checked without a learner."""

import dataclasses
import socket

import grpc

from sluice.rpc.policy_versions import version_from_proto
from sluice.testing.conformance.rollout_server import RolloutServer
from sluice.testing.conformance.suite import NotApplicable, Suite, require
from sluice.testing.conformance.transport import CALL_TIMEOUT_S, check_health, check_refusal
from sluice.v1 import rollout_pb2
from sluice.weights.manifest import Manifest
from sluice.weights.payload import dense
from sluice.weights.wire import manifest_to_proto, payload_to_proto

SERVICE = "sluice.v1.RolloutService"

_JOIN_LIMIT_S = 1.0
_JOIN_SLACK_S = 5.0
"""How much longer than its limit a join may take to report."""

SUITE: Suite[RolloutServer] = Suite()


@SUITE.check
async def health_says_serving(server: RolloutServer) -> None:
    """grpc.health.v1 says SERVING for "" and for sluice.v1.RolloutService"""
    await check_health(server.channel, SERVICE)


@SUITE.check
async def it_says_what_it_is(server: RolloutServer) -> None:
    """GetInfo has the engine's name, a capacity and a context length"""
    info = await server.info()
    require(bool(info.engine), "no engine")
    require(info.capacity_samples > 0, f"capacity_samples {info.capacity_samples}")
    require(info.max_model_len > 0, f"max_model_len {info.max_model_len}")


@SUITE.check
async def nothing_is_generated_without_weights(server: RolloutServer) -> None:
    """before the first push, Generate is FAILED_PRECONDITION"""
    if (await server.info()).HasField("version"):
        raise NotApplicable("it holds weights already")
    await check_refusal(server.generate(server.request()), grpc.StatusCode.FAILED_PRECONDITION, "Generate")


@SUITE.check
async def an_unknown_backend_is_refused(server: RolloutServer) -> None:
    """JoinEpoch with a backend other than gloo and nccl is INVALID_ARGUMENT"""
    await check_refusal(_join(server, backend="pigeon", port=1), grpc.StatusCode.INVALID_ARGUMENT, "backend pigeon")


@SUITE.check
async def a_join_without_a_learner_ends_in_time(server: RolloutServer) -> None:
    """JoinEpoch where no learner listens is DATA_LOSS, within its timeout_s and 5 s"""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but nobody listens
        join = _join(server, backend="gloo", port=bound.getsockname()[1])
        await check_refusal(join, grpc.StatusCode.DATA_LOSS, "JoinEpoch")


@SUITE.check
async def a_receive_without_a_manifest_is_refused(server: RolloutServer) -> None:
    """ReceiveWeights with an empty manifest is DATA_LOSS or INVALID_ARGUMENT"""
    call = server.stub.ReceiveWeights(rollout_pb2.ReceiveWeightsRequest(epoch="none"), timeout=CALL_TIMEOUT_S)
    await check_refusal(call, grpc.StatusCode.DATA_LOSS, "an empty manifest", grpc.StatusCode.INVALID_ARGUMENT)


@SUITE.check
async def a_receive_in_an_unknown_epoch_is_refused(server: RolloutServer) -> None:
    """ReceiveWeights in an epoch that was not joined is FAILED_PRECONDITION"""
    pushed = server.pushed()
    request = rollout_pb2.ReceiveWeightsRequest(
        epoch="none",
        manifest=manifest_to_proto(pushed.manifest),
        payload=payload_to_proto(dense(pushed.manifest, pushed.buffer)),
    )
    call = server.stub.ReceiveWeights(request, timeout=CALL_TIMEOUT_S)
    await check_refusal(call, grpc.StatusCode.FAILED_PRECONDITION, "an epoch that was not joined")


@SUITE.check
async def applying_nothing_is_refused(server: RolloutServer) -> None:
    """ApplyWeights without a receive is FAILED_PRECONDITION"""
    request = rollout_pb2.ApplyWeightsRequest(timeout_s=_JOIN_LIMIT_S)
    call = server.stub.ApplyWeights(request, timeout=CALL_TIMEOUT_S)
    await check_refusal(call, grpc.StatusCode.FAILED_PRECONDITION, "ApplyWeights")


@SUITE.check
async def pushed_weights_are_applied(server: RolloutServer) -> None:
    """ReceiveWeights from a file, then ApplyWeights: the version and the digest computed over the bytes, in GetInfo too"""
    manifest = server.pushed().manifest
    applied = await _push(server, manifest)
    require(version_from_proto(applied.version) == manifest.version, f"applied {applied.version}")
    require(applied.digest == manifest.digest, f"digest {applied.digest!r}, of the file {manifest.digest!r}")
    info = await server.info()
    require(version_from_proto(info.version) == manifest.version, f"GetInfo has version {info.version}")
    require(info.digest == manifest.digest, f"GetInfo has digest {info.digest!r}")


@SUITE.check
async def bytes_that_do_not_verify_change_nothing(server: RolloutServer) -> None:
    """weights whose digest is not the announced one are DATA_LOSS, and the old version stays"""
    manifest = server.pushed().manifest
    before = await server.info()
    newer = dataclasses.replace(manifest.version, number=manifest.version.number + 1)
    altered = dataclasses.replace(manifest, version=newer, digest="0" * len(manifest.digest))
    await check_refusal(_push(server, altered), grpc.StatusCode.DATA_LOSS, "another digest")
    after = await server.info()
    require((after.version, after.digest) == (before.version, before.digest), f"GetInfo has version {after.version}")


async def _join(server: RolloutServer, *, backend: str, port: int) -> None:
    request = rollout_pb2.JoinEpochRequest(
        epoch="conformance",
        store_host="127.0.0.1",
        store_port=port,
        secret="conformance",
        backend=backend,
        rank=1,
        world_size=2,
        timeout_s=_JOIN_LIMIT_S,
    )
    await server.stub.JoinEpoch(request, timeout=_JOIN_LIMIT_S + _JOIN_SLACK_S)


async def _push(server: RolloutServer, manifest: Manifest) -> rollout_pb2.ApplyWeightsResponse:
    message = manifest_to_proto(manifest)
    receive = rollout_pb2.ReceiveWeightsRequest(manifest=message, file_path=server.file_path)
    await server.stub.ReceiveWeights(receive, timeout=CALL_TIMEOUT_S)
    apply = rollout_pb2.ApplyWeightsRequest(version=message.version, timeout_s=CALL_TIMEOUT_S)
    return await server.stub.ApplyWeights(apply, timeout=2 * CALL_TIMEOUT_S)
