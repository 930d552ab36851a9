"""What a user calls, over real gRPC and a real Redis: pause, status, groups, prompts, events, health."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.coordinator.storage import ledger_files
from sluice.config.load import parse_config
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, Serve, code_of, state_is

pytestmark = pytest.mark.integration


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


async def test_a_status_says_where_services_are_and_which_waits_for_a_place(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        places = [
            pb.Place(service_id="rollout-0", node="n2"),
            pb.Place(service_id="rollout-1", waits_for="no node has 2 free GPUs", since_s=40.0),
        ]
        await run.stub.ReportPlaces(pb.ReportPlacesRequest(places=places), timeout=5)
        status = await run.status()
        assert {member.service_id: member.node for member in status.services if member.node} == {"rollout-0": "n2"}
        (wait,) = [wait for wait in status.waits if wait.who == "rollout-1"]
        assert wait.why == "waits for a place: no node has 2 free GPUs (launch.place_timeout_s is 1800)"
        assert 40.0 <= wait.since_s < 50.0
        for wrong in ({"service_id": ""}, {"node": "a\nb"}, {"waits_for": "x" * 201}, {"since_s": float("nan")}):
            bad = pb.ReportPlacesRequest(places=[pb.Place(**{"service_id": "rollout-1"} | wrong)])
            assert await code_of(run.stub.ReportPlaces(bad, timeout=5)) is grpc.StatusCode.INVALID_ARGUMENT
        assert [wait.who for wait in (await run.status()).waits].count("rollout-1") == 1


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
        written = (tmp_path / "run" / "ledger").glob
        status = await run.until(lambda _: len(list(written("*.parquet"))) >= 3)
        assert (status.ledger.assigned, status.ledger.trained) == (0, 0)


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


async def test_submitted_prompts_keep_their_places_over_a_restart_whatever_lines_they_hold(
    serve: Serve, cast: Cast
) -> None:
    texts = [f"1{separator}+1=" for separator in "\u2028\u2029\x85\x0b\x0c\x1c\r\n"]
    prompts = [pb.UserPrompt(data_source="mine", prompt=text, ground_truth="2") for text in texts]
    async with serve() as run:
        answer = await run.stub.SubmitPrompts(pb.SubmitPromptsRequest(prompts=prompts), timeout=5)
    cast.reward.wrong = lambda _: False
    async with serve() as run:
        await cast.register(run)
        found: dict[str, str] = {}
        for step in range(2):
            batch = await cast.learner.batch(run, step)
            found |= {part.group.prompt.prompt_id: part.group.prompt.text for part in batch[1:]}
            await cast.learner.commit(run, step, batch)
        assert found == dict(zip(answer.prompt_ids, texts, strict=True))


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
        outcome = pb.ScaleOutcome()

        async def watch() -> None:
            async for event in run.stub.WatchEvents(pb.WatchEventsRequest(launcher=True)):
                events.append(event)
                if event.kind == "scale" and outcome.replicas:
                    outcome.order = event.labels["order"]
                    placed = [pb.Place(service_id="rollout-0", node="n1")]
                    await run.stub.ReportPlaces(pb.ReportPlacesRequest(places=placed, scaled=outcome))
                    waits = pb.Place(service_id="rollout-1", waits_for="no node has 1 free GPU")
                    await run.stub.ReportPlaces(pb.ReportPlacesRequest(places=[*placed, waits]))

        watching = asyncio.create_task(watch())
        await cast.register(run)
        await run.until(lambda _: any(event.kind == "weights_pushed" for event in events))
        assert (await run.stub.Scale(scale, timeout=0.4)).replicas == 2, "the launcher does not say what becomes of it"
        outcome.replicas = 2
        assert (await run.stub.Scale(scale, timeout=60)).replicas == 2
        status = await run.status()
        assert [wait.why[:45] for wait in status.waits if wait.who == "rollout-1"] == [
            "waits for a place: no node has 1 free GPU (la"
        ], "who asks after the answer sees what waits"
        outcome.replicas, outcome.refused = 1, "rollout-1 is not started: no GPU is free"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await run.stub.Scale(scale, timeout=60)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "scale: 1 of 2 rollout replicas: rollout-1 is not started: no GPU is free" in str(
            refused.value.details()
        )
        assert (await run.status()).scale == {"rollout": 1}
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
