"""A rollout service as its app builds it, with the transformers engine, in this event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from transformers import AutoTokenizer

from services.rollout.adapters.transformers_engine import TransformersEngine
from services.rollout.engine_loop import EngineLoop
from services.rollout.model_files import read_model
from services.rollout.servicer import RolloutServicer
from services.rollout.weight_intake import WeightIntake
from sluice.rpc.server import make_server
from sluice.v1 import rollout_pb2_grpc
from sluice.weights.receiver import WeightReceiver


@asynccontextmanager
async def serving_rollout(path: Path) -> AsyncIterator[tuple[str, EngineLoop]]:
    """Its address and its engine's loop; it holds no weights."""
    facts = read_model(path)
    loop = EngineLoop(TransformersEngine(facts, dtype="float32", max_model_len=128, max_num_seqs=16), max_samples=64)
    loop.start()
    intake = WeightIntake(loop=loop, receiver=WeightReceiver(), model=facts, inflight="keep")
    tokenizer = AutoTokenizer.from_pretrained(path)
    servicer = RolloutServicer(
        loop=loop,
        weights=intake,
        model=facts,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        rollout_id=lambda: "rollout-0",
    )

    def register(server: grpc.aio.Server) -> None:
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(servicer, server)

    server = make_server(register, services=["sluice.v1.RolloutService"])
    try:
        yield f"127.0.0.1:{await server.start(bind='127.0.0.1', port=0)}", loop
    finally:
        await server.stop(grace_s=0.5)
        intake.close()
        loop.close()
