"""Rollouts and graders that are lost, wrong or replaced, and evaluations. Real gRPC and a real Redis."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest

from sluice.testing.fakes import FakeLearner, FakeRollout, serving
from sluice.v1 import common_pb2
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, Coordinator, Serve, code_of, state_is

pytestmark = pytest.mark.integration


async def test_a_rollout_that_was_lost_for_a_moment_gets_weights_again(serve: Serve, cast: Cast) -> None:
    """It registers again as the same process: it must be served like a new one."""
    async with serve(coordinator__heartbeat_timeout_s=2.0, coordinator__heartbeat_interval_s=0.1) as run:
        await cast.register(run)
        await run.until(lambda status: any(member.state == pb.SERVICE_STATE_LOST for member in status.services))
        applied = len(cast.rollout.applied)
        await cast.register(run)
        beating = asyncio.create_task(beats(run, cast.learner, cast.rollout))  # without, both are lost again in 2 s
        try:
            await run.until(lambda _: len(cast.rollout.applied) > applied)
        finally:
            beating.cancel()


async def beats(run: Coordinator, *services: Any) -> None:
    """Heartbeats of fake services, until cancelled."""
    while True:
        for service in services:
            who = {"service_id": service.service_id, "incarnation": service.incarnation}
            await run.stub.Heartbeat(pb.HeartbeatRequest(**who), timeout=5)
        await asyncio.sleep(0.2)


async def test_a_learner_that_is_replaced_in_the_middle_of_a_push_does_not_cost_the_rollout_its_weights(
    serve: Serve, cast: Cast, model: Path
) -> None:
    """The call to the hanging learner is cancelled with its channel: that must not end the task that serves the rollout."""
    cast.learner.may_open.clear()
    second = FakeLearner(model=model)
    second.incarnation = "learner-b"
    async with serving(second), serve() as run:
        await cast.register(run)
        await run.until(lambda _: cast.learner.transfers == 1)
        await second.register(run)
        await run.until(lambda _: cast.rollout.applied == [0])
    assert second.receiver_devices == {"cpu"}  # what the rollout has said of itself


async def test_an_evaluation_is_repeated_on_another_rollout_when_its_rollout_dies(
    serve: Serve, cast: Cast, model: Path
) -> None:
    second = FakeRollout(service_id="rollout-1", model=model)
    cast.rollout.die_on = "eval"
    async with serving(second), serve() as run:
        await cast.register(run)
        await run.until(lambda _: bool(cast.rollout.generated))
        await second.register(run)
        status = await run.until(lambda status: len(status.evaluations) == 1)
        assert status.evaluations[0].avg_at_n == 0.5
        assert status.evaluations[0].prompts == 3


async def test_a_last_evaluation_that_fails_leaves_a_trained_run_finished_and_says_why(
    serve: Serve, cast: Cast
) -> None:
    async with serve(stay=True, eval__timeout_s=1.0) as run:
        await cast.register(run)
        await run.until(lambda status: len(status.evaluations) == 1)
        cast.rollout.die_on = "eval"
        await cast.learner.train(run, range(3))
        status = await run.until(lambda status: status.state in (pb.RUN_STATE_FINISHED, pb.RUN_STATE_FAILED))
        assert (status.state, status.step, len(status.evaluations)) == (pb.RUN_STATE_FINISHED, 3, 1)
        assert status.reason.startswith("every step is trained; the last evaluation failed: ")
        assert status.ledger.closed


async def test_a_rollout_whose_engine_computes_something_else_gets_no_work_until_it_is_cured(
    serve: Serve, cast: Cast, model: Path
) -> None:
    def is_in(state: "pb.ServiceState.ValueType") -> Callable[[pb.GetStatusResponse], bool]:
        return lambda status: any(
            member.service_id == "rollout-1" and member.state == state for member in status.services
        )

    odd = FakeRollout(service_id="rollout-1", model=model)
    odd.logprobs = [-0.1, -2.0, -0.3]
    async with serving(odd), serve() as run:
        await cast.register(run)
        await run.until(lambda status: len(status.evaluations) == 1)
        await odd.register(run)
        await run.until(is_in(pb.SERVICE_STATE_QUARANTINED))
        assert odd.applied == [0]
        assert all(request_id.startswith("probe-a0-") for request_id in odd.generated)
        odd.logprobs = cast.rollout.logprobs
        await run.until(is_in(pb.SERVICE_STATE_READY))
        assert len(odd.applied) > 1


async def test_a_grader_that_answers_nan_fails_the_group_and_not_the_coordinator(serve: Serve, cast: Cast) -> None:
    cast.reward.nan_of = "run-0000001"
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(3))
        await cast.learner.batch(run, 3)
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert dict(status.ledger.failed) == {"reward_wrong_answer": 1}
        assert status.ledger.closed


async def test_evaluation_sets_are_evaluated_apart_from_the_default_one(
    serve: Serve, cast: Cast, tmp_path: Path
) -> None:
    trained = tmp_path / "trained.jsonl"
    row = {"data_source": "s", "prompt": "1+1=", "reward_model": {"ground_truth": "2"}}
    rows = [row | {"prompt": f"{number}+1="} for number in range(1, 4)]
    trained.write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(one | {"data_source": "t"}) + "\n" for one in rows[2:]))
    own = {"files": [str(tmp_path / "set.jsonl")], "n": 3, "top_p": 0.7, "every_steps": 1, "greedy": False}
    async with serve(stay=True, data__train_files=[str(trained)], eval__sets={"own": own}) as run:
        await cast.register(run)
        status = await run.until(lambda status: len(status.evaluations) == 2)
        assert list(status.evaluation_sets) == ["", "own"]
        assert [(made.set, made.n, made.prompts, made.HasField("avg_interval")) for made in status.evaluations] == [
            ("", 2, 3, True),
            ("own", 3, 1, False),
        ]
        await cast.learner.train(run, range(1))
        status = await run.until(lambda status: len(status.evaluations) == 3)
        assert (status.evaluations[2].set, status.evaluations[2].version.number) == ("own", 1)
        assert status.metrics["eval/set/own/avg_at_n"] == pytest.approx(1 / 3)
        again = await run.stub.Evaluate(pb.EvaluateRequest(set="own", n=1), timeout=15)
        assert (again.evaluation.set, again.evaluation.n, again.evaluation.avg_at_n) == ("own", 1, 1.0)
        unknown = run.stub.Evaluate(pb.EvaluateRequest(set="gone"), timeout=15)
        assert await code_of(unknown) is grpc.StatusCode.INVALID_ARGUMENT
        await cast.learner.train(run, range(1, 3))
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        warned = [event.message async for event in run.stub.WatchEvents(pb.WatchEventsRequest(process="?"), timeout=5)]
        assert any(
            "1 of the 1 prompts of the evaluation set own are in data.train_files too" in text for text in warned
        )
    names = sorted(path.name for path in (tmp_path / "run" / "evaluations").iterdir())
    assert names[:2] == ["a-000000-own.parquet", "a-000000.parquet"]
    assert pq.read_table(tmp_path / "run" / "evaluations" / names[1]).num_rows == 3
    ids = [request for request in cast.rollout.generated if request.startswith("eval-")]
    assert not any("own" in request and "greedy" in request for request in ids)


async def test_an_evaluation_without_a_learner_takes_rollouts_that_serve_their_own_weights(
    serve: Serve, cast: Cast
) -> None:
    async with serve(evaluate_only=True, stay=True) as run:
        await cast.reward.register(run)
        assert await code_of(cast.rollout.register(run)) is grpc.StatusCode.FAILED_PRECONDITION
        base = common_pb2.PolicyVersion(lineage="a")
        cast.rollout.held = common_pb2.WeightManifest(version=base)
        cast.rollout.engine.apply(base)
        await cast.rollout.register(run, own_weights=True)
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert [(made.version.number, made.avg_at_n, made.prompts) for made in status.evaluations] == [(0, 0.5, 3)]
        assert status.ledger.admitted == 0
