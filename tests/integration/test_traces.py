"""Traces through real gRPC servers, to a collector that takes OTLP over gRPC, and to one that is not there."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, rpc_attributes

from sluice.config.schema import Config
from sluice.errors import NotReady
from sluice.rpc.channel import open_channel, traced
from sluice.rpc.server import make_server
from sluice.rpc.traced import moment, note
from sluice.telemetry.prometheus import Exporter
from sluice.telemetry.traces.context import TRACEPARENT, new_trace, within
from sluice.telemetry.traces.process_tracer import open_tracer
from sluice.telemetry.traces.tracer import OFF, Tracer
from sluice.testing import assert_eventually
from sluice.v1 import reward_pb2, reward_pb2_grpc, rollout_pb2, rollout_pb2_grpc
from tests.free_port import free_port

pytestmark = pytest.mark.integration

SCORE, GENERATE = "sluice.v1.RewardService/Score", "sluice.v1.RolloutService/Generate"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def Export(self, request: Any, context: Any) -> Any:
        self.requests.append(MessageToDict(request, use_integers_for_enums=True))
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[dict[str, Any]]:
        return [
            span
            for request in self.requests
            for of_process in request["resourceSpans"]
            for in_scope in of_process["scopeSpans"]
            for span in in_scope["spans"]
        ]


class Traced(reward_pb2_grpc.RewardServiceServicer, rollout_pb2_grpc.RolloutServiceServicer):
    """Notes and fails as it is asked to."""

    async def Score(self, request: Any, context: Any) -> Any:
        note(gen_ai__evaluation__name="exact")
        if request.group_id == "not-ready":
            raise NotReady("later")
        return reward_pb2.ScoreResponse()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(2):
            moment("sluice.sample", gen_ai__usage__output_tokens=3)
            yield rollout_pb2.GenerateResponse()


@asynccontextmanager
async def serving(tracer: Tracer) -> AsyncIterator[tuple[Any, Any]]:
    """The stubs of a traced server, over a channel that carries places."""

    def register(server: grpc.aio.Server) -> None:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(Traced(), server)
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(Traced(), server)

    server = make_server(register, services=["sluice.v1.RewardService"], tracer=tracer)
    port = await server.start(bind="127.0.0.1", port=0)
    channel = traced(open_channel(f"127.0.0.1:{port}"))
    try:
        yield reward_pb2_grpc.RewardServiceStub(channel), rollout_pb2_grpc.RolloutServiceStub(channel)
    finally:
        await channel.close()
        await server.stop(grace_s=0)


def opened(traces: str, exporter: Exporter | None = None) -> Tracer:
    tree = {"model": {"path": "a/model"}, "data": {"train_files": ["mixadd3:train"]}, "telemetry": {"traces": traces}}
    return open_tracer(
        Config(**tree), service="reward", instance="reward-0", run="run-1", run_dir="", exporter=exporter
    )


async def test_calls_within_a_trace_are_spans_at_a_collector() -> None:
    collector = Collector()
    receiver = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    tracer, above = opened(f"otlp://127.0.0.1:{port}"), new_trace()
    async with serving(tracer) as (reward, rollout):
        await reward.Score(reward_pb2.ScoreRequest(), timeout=5)
        hostile = ((TRACEPARENT, "00-" + "z" * 32 + "-1-01"), ("tracestate", "x" * 400))
        await reward.Score(reward_pb2.ScoreRequest(), timeout=5, metadata=hostile)
        with within(above):
            await reward.Score(reward_pb2.ScoreRequest(), timeout=5)
            with pytest.raises(grpc.aio.AioRpcError):
                await reward.Score(reward_pb2.ScoreRequest(group_id="not-ready"), timeout=5)
            assert len([one async for one in rollout.Generate(rollout_pb2.GenerateRequest(), timeout=5)]) == 2
    await asyncio.to_thread(tracer.close, within_s=5.0)
    await asyncio.to_thread(receiver.stop(0).wait)
    assert tracer.dropped == 0
    first, failed, stream = collector.spans
    assert [span["name"] for span in collector.spans] == [SCORE, SCORE, GENERATE], (
        "no call outside of a trace is a span"
    )
    assert (
        len({span["traceId"] for span in collector.spans})
        == len({span["parentSpanId"] for span in collector.spans})
        == 1
    )
    assert failed["status"] == {"message": "FAILED_PRECONDITION: later", "code": 2}
    assert "status" not in first or first["status"] == {}
    assert [event["name"] for event in stream["events"]] == ["sluice.sample", "sluice.sample"]
    resource = {one["key"] for one in collector.requests[0]["resourceSpans"][0]["resource"]["attributes"]}
    assert {
        "service.name",
        "service.instance.id",
        "rl.system",
        "rl.run.id",
        "rl.algorithm",
        "rl.model.name",
    } <= resource
    attributes = {one["key"] for span in collector.spans for one in span["attributes"]}
    attributes |= {one["key"] for event in stream["events"] for one in event["attributes"]}
    known = {
        value
        for module in (gen_ai_attributes, rpc_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    assert {name for name in attributes if not name.startswith("sluice.")} <= known, "OpenTelemetry's own names"


async def test_a_collector_that_is_not_there_costs_spans_and_nothing_else() -> None:
    exporter = Exporter(service="reward")
    tracer = opened(f"otlp://127.0.0.1:{free_port()}", exporter)
    async with serving(tracer) as (reward, _):
        with within(new_trace()):
            await reward.Score(reward_pb2.ScoreRequest(), timeout=5)
        closing = asyncio.create_task(asyncio.to_thread(tracer.close, within_s=0.2))
        await assert_eventually(lambda: tracer.dropped > 0, within_s=20.0, what="the call's span is counted as lost")
        await closing
    shown = {sample.name: sample.value for family in exporter.registry.collect() for sample in family.samples}
    assert shown["sluice_traces_dropped_records"] >= 1
    exporter.close()


async def test_without_traces_a_server_makes_no_span_of_a_call_that_carries_a_place() -> None:
    async with serving(OFF) as (reward, _):
        with within(new_trace()):
            await reward.Score(reward_pb2.ScoreRequest(), timeout=5)
    assert not OFF.on
