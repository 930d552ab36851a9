"""The coordinator's whole API over real gRPC and a real Redis, with services that speak the protocol and do no work."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.coordinator.storage import ledger_files
from sluice.config.load import parse_config
from sluice.rpc.channel import open_channel
from sluice.rpc.credentials import load_credentials
from sluice.rpc.tokens import make_tokens
from sluice.run_dir.batch_file import batch_path
from sluice.testing.fakes import FakeLearner, FakeRollout, FakeService, digest, serving
from sluice.v1 import common_pb2, coordinator_pb2_grpc
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, Coordinator, Serve

pytestmark = pytest.mark.integration


def state_is(state: "pb.RunState.ValueType") -> Callable[[pb.GetStatusResponse], bool]:
    return lambda status: status.state == state


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_three_steps_from_registration_to_a_closed_ledger(serve: Serve, cast: Cast, tmp_path: Path) -> None:
    async with serve() as run:
        await cast.register(run)
        await run.until(lambda status: len(status.evaluations) == 1)
        await cast.learner.train(run, range(3))
        last = await cast.learner.batch(run, 3)
        assert [part.WhichOneof("part") for part in last] == ["not_ready"]
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert (status.step, status.version.number, len(status.evaluations)) == (3, 3, 2)
        assert status.evaluations[1].avg_at_n == 0.5
        ended = await cast.learner.batch(run, 3)
        assert ended[0].not_ready.ended
        ledger = status.ledger
        assert ledger.closed
        assert ledger.trained == 12
        assert ledger.filtered_all_wrong >= 2
        assert ledger.trained_tokens == ledger.tokens["trained"] == 12 * 2 * 3
        assert sum(ledger.tokens.values()) == ledger.generated_tokens == 6 * ledger.admitted
        assert status.metrics["ledger/closed"] == 1
        assert status.metrics["ledger/received_tokens"] == ledger.generated_tokens
        assert ledger.pending == ledger.in_flight == ledger.queued == ledger.assigned == 0
    rows = pq.read_table(tmp_path / "run" / "ledger").to_pylist()
    assert len({row["group_id"] for row in rows}) == len(rows) == ledger.admitted
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [0, 1, 2]
    assert [line["ledger/closed"] for line in lines if line["kind"] == "step"] == [1, 1, 1]
    assert [line["weights_digest"] for line in lines if line["kind"] == "step"] == [digest(1), digest(2), digest(3)]
    for line in (line for line in lines if line["kind"] == "step"):
        body = batch_path(tmp_path / "run", line["step"]).read_bytes()
        assert line["batch_digest"] == blake3(body).hexdigest()
    assert cast.rollout.applied[0] == 0
    assert cast.rollout.applied[-1] == 3


async def test_a_batch_is_the_same_however_often_it_is_asked_for_and_committed_once(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        first = await cast.learner.batch(run, 0)
        assert await cast.learner.batch(run, 0) == first
        cast.learner.as_stored = False
        assert await cast.learner.batch(run, 0) == first, "plain groups are the same ones"
        assert first[0].header.groups == len(first) - 1 == 4
        for _ in range(2):
            assert (await cast.learner.commit(run, 0, first)).recorded_digest == digest(1)
        status = await run.until(lambda status: status.step == 1)
        assert status.ledger.trained == 4


async def test_calls_of_learners_with_another_fence_or_batch_are_refused(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        batch = await cast.learner.batch(run, 0)
        cast.learner.fence += 1
        assert await code_of(cast.learner.batch(run, 0)) is grpc.StatusCode.ABORTED
        assert await code_of(cast.learner.commit(run, 0, batch)) is grpc.StatusCode.ABORTED
        cast.learner.fence -= 1
        batch[0].header.digest = "of another run"
        assert await code_of(cast.learner.commit(run, 0, batch)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_new_learner_shuts_out_the_former_one_for_good(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        old = cast.learner.fence
        cast.learner.incarnation = "learner-b"
        await cast.learner.register(run)
        assert cast.learner.fence > old
        await cast.learner.register(run)
        assert cast.learner.fence == old + 1, "the same process keeps its fence"
        refused = cast.learner.register(run, incarnation="learner-a")
        assert await code_of(refused) is grpc.StatusCode.ABORTED


@pytest.mark.parametrize(
    "change",
    [
        {"model_hash": "other"},
        {"tokenizer_hash": "other"},
        {"protocol_version": 999},
        {"max_model_len": 23},
    ],
)
async def test_a_rollout_that_does_not_fit_the_run_is_refused(serve: Serve, cast: Cast, change: Any) -> None:
    async with serve() as run:
        assert await code_of(cast.rollout.register(run, **change)) is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_learner_that_is_ahead_of_redis_is_refused(serve: Serve, cast: Cast) -> None:
    cast.learner.version = 2
    async with serve() as run:
        assert await code_of(cast.learner.register(run)) is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_coordinator_that_is_started_again_goes_on_where_it_was(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(1))
        handed_out = await cast.learner.batch(run, 1)
        fence = cast.learner.fence
    async with serve() as run:
        await cast.register(run)
        assert cast.learner.fence == fence
        assert await cast.learner.batch(run, 1) == handed_out
        await cast.learner.train(run, range(3))
        await cast.learner.batch(run, 3)
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert status.ledger.closed
        assert status.ledger.trained == 12


async def test_a_stopped_run_goes_on_when_it_is_opened_again_and_a_finished_one_does_not(
    serve: Serve, cast: Cast, tmp_path: Path
) -> None:
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(1))
        batch = await cast.learner.batch(run, 1)
        await run.stub.Stop(pb.StopRequest(reason="enough"), timeout=5)
        await cast.learner.commit(run, 1, batch)
        status = await run.until(state_is(pb.RUN_STATE_STOPPED))
        assert (status.reason, status.step, status.ledger.closed) == ("enough", 2, True)
        assert status.ledger.pending == status.ledger.in_flight == status.ledger.assigned == 0
        assert (await cast.learner.batch(run, 2))[0].not_ready.ended
    async with serve() as run:
        assert (await run.status()).state == pb.RUN_STATE_STOPPED, "only started again, not opened again"
    async with serve(reopen=True) as run:
        assert (await run.status()).state == pb.RUN_STATE_RUNNING
        await cast.register(run)
        await cast.learner.train(run, range(2, 3))
        await cast.learner.batch(run, 3)
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert (status.ledger.closed, status.ledger.trained) == (True, 12)
    async with serve(reopen=True) as run:
        assert (await run.status()).state == pb.RUN_STATE_FINISHED
    async with serve(reopen=True, run__total_steps=4) as run:
        await cast.register(run)
        await cast.learner.train(run, range(3, 4))
        await cast.learner.batch(run, 4)
        assert (await run.until(state_is(pb.RUN_STATE_FINISHED))).ledger.trained == 16
    rows = pq.read_table(tmp_path / "run" / "ledger").to_pylist()
    assert len({row["group_id"] for row in rows}) == len(rows)


async def test_a_batch_that_was_not_trained_when_the_run_was_stopped_is_trained_after_it_is_opened_again(
    serve: Serve, cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.run.lifecycle.STOP_GRACE_S", 0.1)
    async with serve() as run:
        await cast.register(run)
        batch = await cast.learner.batch(run, 0)
        await run.stub.Stop(pb.StopRequest(), timeout=5)
        status = await run.until(state_is(pb.RUN_STATE_STOPPED))
        assert (status.ledger.assigned, status.ledger.closed) == (4, True)
    async with serve(reopen=True) as run:
        await cast.register(run)
        assert await cast.learner.batch(run, 0) == batch
        await cast.learner.train(run, range(3))
        await cast.learner.batch(run, 3)
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert (status.ledger.closed, status.ledger.trained) == (True, 12)


async def test_a_finished_run_hands_a_learner_that_fell_behind_its_batches_before_it_may_leave(
    serve: Serve, cast: Cast
) -> None:
    async with serve() as run:
        await end_of_a_run(run, cast)
        cast.learner.incarnation, cast.learner.version = "learner-b", 2
        await cast.learner.register(run)
        await cast.learner.train(run, range(2, 3))
        assert (await cast.learner.batch(run, 3))[0].not_ready.ended


async def beat(run: Coordinator, service: FakeService, *, draining: bool) -> bool:
    """Says that a service is alive, or leaves; returns whether it is told that the run has ended."""
    request = pb.HeartbeatRequest(service_id=service.service_id, incarnation=service.incarnation, draining=draining)
    return (await run.stub.Heartbeat(request, timeout=5)).run_ended


async def test_services_are_told_of_the_end_and_the_coordinator_ends_when_they_have_left(
    serve: Serve, cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.1)
    async with serve() as run:
        await cast.register(run)
        assert not await beat(run, cast.rollout, draining=False)
        assert parse_config((tmp_path / "run" / "config.yaml").read_text(), where="run").run.total_steps == 3
        await cast.learner.train(run, range(3))
        await cast.learner.batch(run, 3)
        await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert await beat(run, cast.rollout, draining=False)
        for service in (cast.rollout, cast.reward, cast.learner):
            await beat(run, service, draining=True)
        async with asyncio.timeout(10):
            assert await run.task == 0


async def test_a_coordinator_that_a_launcher_started_stays_until_the_launcher_ends_it(
    serve: Serve, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.01)
    async with serve(stay=True) as run:
        await end_of_a_run(run, cast)
        for service in (cast.rollout, cast.reward, cast.learner):
            await beat(run, service, draining=True)
        assert not (await asyncio.wait([run.task], timeout=0.5))[0]
        assert state_is(pb.RUN_STATE_FINISHED)(await run.status())


async def test_a_coordinator_waits_for_a_learner_that_exports_and_for_a_silent_rollout_only_a_while(
    serve: Serve, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LINGER_S", 0.1)
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.1)
    async with serve() as run:
        await end_of_a_run(run, cast)
        await beat(run, cast.reward, draining=True)
        assert not (await asyncio.wait([run.task], timeout=0.5))[0], "the learner has not said farewell"
        await beat(run, cast.learner, draining=True)
        async with asyncio.timeout(10):
            assert await run.task == 0


async def end_of_a_run(run: Coordinator, cast: Cast) -> None:
    """Three steps, and its end, which the learner hears of."""
    await cast.register(run)
    await cast.learner.train(run, range(3))
    await cast.learner.batch(run, 3)
    await run.until(state_is(pb.RUN_STATE_FINISHED))


async def test_a_finished_coordinator_waits_for_a_service_that_still_loads_its_model(
    serve: Serve, cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.1)
    make_tokens(tmp_path / "tokens", private_network=False)
    async with (
        serve(credentials=tmp_path / "tokens", launch__ready_timeout_s=0.2) as run,
        calling_as(run, tmp_path / "tokens" / "reward") as as_reward,
        calling_as(run, tmp_path / "tokens" / "rollout") as as_rollout,
    ):
        await as_rollout.stub.GetConfig(pb.GetConfigRequest(), timeout=5)
        await cast.reward.register(as_reward)
        await run.until(state_is(pb.RUN_STATE_FAILED))
        await beat(as_reward, cast.reward, draining=True)
        assert not (await asyncio.wait({run.task}, timeout=1.0))[0]
        await cast.rollout.register(as_rollout)
        assert await beat(as_rollout, cast.rollout, draining=True)
        async with asyncio.timeout(10):
            await run.task


@contextlib.asynccontextmanager
async def calling_as(run: Coordinator, folder: Path) -> AsyncIterator[Coordinator]:
    """The same coordinator, called with the credentials of a role."""
    channel = open_channel(run.address, credentials=load_credentials(folder))
    try:
        yield dataclasses.replace(run, stub=coordinator_pb2_grpc.CoordinatorServiceStub(channel))
    finally:
        await channel.close()


async def test_a_coordinator_that_finds_a_failed_run_has_not_failed_itself(
    serve: Serve, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.1)
    codes = []
    for changes in ({"launch__ready_timeout_s": 0.2}, {}):
        async with serve(**changes) as run:
            await cast.reward.register(run)
            await run.until(state_is(pb.RUN_STATE_FAILED))
            await beat(run, cast.reward, draining=True)
            async with asyncio.timeout(10):
                codes.append(await run.task)
    assert codes == [1, 0]


async def test_a_rollout_that_was_lost_for_a_moment_gets_weights_again(serve: Serve, cast: Cast) -> None:
    """It registers again as the same process: it must be served like a new one."""
    async with serve(coordinator__heartbeat_timeout_s=2.0, coordinator__heartbeat_interval_s=0.1) as run:
        await cast.register(run)
        await run.until(lambda status: any(member.state == pb.SERVICE_STATE_LOST for member in status.services))
        applied = len(cast.rollout.applied)
        await cast.register(run)
        await run.until(lambda _: len(cast.rollout.applied) > applied, within_s=1.9)  # then it is lost again


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


async def test_pause_outlives_the_coordinator_and_resume_ends_it(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        await run.until(lambda status: status.ledger.queued == 8)
        assert (await run.stub.Pause(pb.PauseRequest(), timeout=5)).state == pb.RUN_STATE_PAUSED
        await run.stub.Drain(pb.DrainRequest(timeout_s=10), timeout=11)
        await run.stub.Pause(pb.PauseRequest(), timeout=5)
    async with serve() as run:
        await cast.register(run)
        assert (await run.status()).state == pb.RUN_STATE_PAUSED
        admitted = (await run.status()).ledger.admitted
        await cast.learner.commit(run, 0, await cast.learner.batch(run, 0))
        await run.until(lambda status: status.step == 1)
        assert (await run.status()).ledger.admitted == admitted
        assert (await run.stub.Resume(pb.ResumeRequest(), timeout=5)).state == pb.RUN_STATE_RUNNING
        await run.until(lambda status: status.ledger.admitted > admitted)


async def test_a_status_says_who_waits_for_whom_and_a_stall_is_told_as_an_event(serve: Serve, cast: Cast) -> None:
    async with serve(coordinator__stall_warning_s=0.5) as run:
        await cast.reward.register(run)
        status = await run.until(lambda status: len(status.waits) > 0)
        assert [wait.who for wait in status.waits] == ["run"]
        assert status.waits[0].why.startswith("waits for a rollout and a learner")
        await cast.rollout.register(run)
        await cast.learner.register(run)
        await cast.learner.batch(run, 0)
        status = await run.until(lambda status: any(wait.since_s > 1 for wait in status.waits))
        assert "trains step 0 (learner.step_timeout_s is 1800)" in {wait.why for wait in status.waits}
        async for event in run.stub.WatchEvents(pb.WatchEventsRequest(after_sequence=1), timeout=20):
            if event.kind == "stalled":
                break
        assert "learner trains step 0" in event.message
        assert event.values["idle_s"] >= 0.5


async def test_a_run_without_signal_is_warned_of_and_ends_as_starved_unless_it_is_to_wait(
    serve: Serve, cast: Cast
) -> None:
    cast.reward.wrong = lambda _: True
    filters = {"max_num_gen_batches": 4, "on_starvation": "wait"}
    async with serve(algorithm__filter_groups=filters) as run:
        await cast.register(run)
        status = await run.until(lambda status: status.ledger.filtered_all_wrong > 4 * 4)
        assert status.state == pb.RUN_STATE_RUNNING
    filters["on_starvation"] = "stop"
    async with serve(algorithm__filter_groups=filters) as run:
        await cast.register(run)
        status = await run.until(state_is(pb.RUN_STATE_STARVED))
        assert "without a full batch: all_wrong" in status.reason
        async for event in run.stub.WatchEvents(pb.WatchEventsRequest(after_sequence=1), timeout=20):
            if event.kind == "starving":
                break
        # Half of the batches that it may take, or some groups more: several may be judged between two looks.
        assert 2 <= event.values["gen_batches"] <= 4
        assert f"all_wrong {4 * event.values['gen_batches']:.0f} (acceptance 0.00)" in event.message
        assert "the run stops at 4" in event.message


async def test_rows_leave_redis_by_the_file_however_long_a_step_takes(
    serve: Serve, cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_files, "ROWS_A_FILE", 8)
    cast.reward.wrong = lambda _: True
    async with serve() as run:
        await cast.register(run)
        status = await run.until(lambda status: status.ledger.filtered_all_wrong >= 40)
        files = sorted((tmp_path / "run" / "ledger").glob("*.parquet"))
        assert len(files) >= 3
        assert status.ledger.trained == 0


async def test_a_starving_run_may_train_what_it_has(serve: Serve, cast: Cast) -> None:
    cast.reward.wrong = lambda number: number % 5 > 0
    filters = {"max_num_gen_batches": 2, "on_starvation": "train_partial"}
    async with serve(algorithm__filter_groups=filters) as run:
        await cast.register(run)
        await cast.learner.train(run, range(3))
        status = await run.until(lambda status: status.ledger.trained > 0 and not status.ledger.assigned)
        assert 3 <= status.ledger.trained < 12
        assert status.ledger.closed
        async for event in run.stub.WatchEvents(pb.WatchEventsRequest(after_sequence=1), timeout=20):
            if event.kind == "starving" and "goes with" in event.message:
                break
        assert "of 4 groups" in event.message


async def test_groups_live_and_ended_can_be_listed_and_looked_at(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(1))
        trained = await run.stub.ListGroups(pb.ListGroupsRequest(state="trained"), timeout=5)
        assert [group.step for group in trained.groups] == [0] * 4
        dropped = await run.stub.ListGroups(pb.ListGroupsRequest(state="filtered_all_wrong"), timeout=5)
        assert dropped.groups[-1].group_id == "run-0000004"
        found = await run.stub.GetGroup(pb.GetGroupRequest(group_id=trained.groups[0].group_id), timeout=5)
        assert [sample.text for sample in found.group.samples] == ["right", "wrong"]
        assert await code_of(run.stub.GetGroup(pb.GetGroupRequest(group_id="?"))) is grpc.StatusCode.NOT_FOUND


async def test_submitted_prompts_come_first_and_a_bad_one_is_refused_by_name(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        prompt = pb.UserPrompt(data_source="mine", prompt="1+1=", ground_truth="2")
        ids = (await run.stub.SubmitPrompts(pb.SubmitPromptsRequest(prompts=[prompt]), timeout=5)).prompt_ids
        bad = pb.SubmitPromptsRequest(prompts=[prompt, pb.UserPrompt(data_source="mine", prompt="1" * 99)])
        assert await code_of(run.stub.SubmitPrompts(bad)) is grpc.StatusCode.INVALID_ARGUMENT
    async with serve() as run:
        await cast.register(run)
        await cast.learner.batch(run, 0)
        groups = (await run.stub.ListGroups(pb.ListGroupsRequest(state="assigned"), timeout=5)).groups
        assert ids[0] in [group.prompt_id for group in groups]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n"])
async def test_submitted_prompts_keep_their_places_over_a_restart_whatever_lines_they_hold(
    serve: Serve, cast: Cast, separator: str
) -> None:
    texts = [f"{number}{separator}+1=" for number in range(4)]
    prompts = [pb.UserPrompt(data_source="mine", prompt=text, ground_truth="2") for text in texts]
    async with serve() as run:
        answer = await run.stub.SubmitPrompts(pb.SubmitPromptsRequest(prompts=prompts), timeout=5)
    async with serve() as run:
        await cast.register(run)
        batch = await cast.learner.batch(run, 0)
        found = {part.group.prompt.prompt_id: part.group.prompt.text for part in batch[1:]}
        assert found.items() <= dict(zip(answer.prompt_ids, texts, strict=True)).items()
        assert found


async def test_a_prompt_of_megabytes_is_refused_unread(serve: Serve) -> None:
    async with serve() as run:
        huge = pb.UserPrompt(data_source="mine", prompt="1+" * 15_000_000)
        refused = await code_of(run.stub.SubmitPrompts(pb.SubmitPromptsRequest(prompts=[huge]), timeout=20))
        assert refused is grpc.StatusCode.INVALID_ARGUMENT
        await run.status()


async def test_events_are_streamed_and_config_scale_evaluate_and_checkpoint_answer(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        scale = pb.ScaleRequest(role=pb.SERVICE_ROLE_ROLLOUT, replicas=2)
        assert await code_of(run.stub.Scale(scale)) is grpc.StatusCode.FAILED_PRECONDITION
        assert await code_of(run.stub.SaveCheckpoint(pb.SaveCheckpointRequest())) is grpc.StatusCode.FAILED_PRECONDITION
        events: list[pb.WatchEventsResponse] = []

        async def watch() -> None:
            async for event in run.stub.WatchEvents(pb.WatchEventsRequest(launcher=True)):
                events.append(event)  # noqa: PERF401 - the list is read while the stream goes on

        watching = asyncio.create_task(watch())
        await cast.register(run)
        await run.until(lambda _: any(event.kind == "weights_pushed" for event in events))
        assert (await run.stub.Scale(scale, timeout=5)).replicas == 2
        evaluated = await run.stub.Evaluate(pb.EvaluateRequest(prompts=2, n=1), timeout=15)
        assert (evaluated.evaluation.prompts, evaluated.evaluation.avg_at_n) == (2, 1.0)
        saved = await run.stub.SaveCheckpoint(pb.SaveCheckpointRequest(), timeout=5)
        assert saved.path == "step-0"
        config = (await run.stub.GetConfig(pb.GetConfigRequest(), timeout=5)).yaml
        assert parse_config(config, where="GetConfig").data.train_batch_size == 4
        await cast.learner.train(run, range(1))
        await run.until(lambda _: any(event.kind == "step_trained" for event in events))
        assert [event.sequence for event in events] == sorted({event.sequence for event in events})
        watching.cancel()


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


async def test_health_and_reflection_answer(serve: Serve) -> None:
    async with serve() as run, grpc.aio.insecure_channel(run.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[arg-type]
        answer = await health.Check(health_pb2.HealthCheckRequest(service="sluice.v1.CoordinatorService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        stream = reflection.ServerReflectionInfo(iter([asked]))
        names = [service.name async for part in stream for service in part.list_services_response.service]
        assert "sluice.v1.CoordinatorService" in names
