"""sluice.Client, sluice.AsyncClient and the verbs over them, against a real coordinator; retries against one that fails."""

import argparse
import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import yaml

import sluice.cli.main
from sluice import AsyncClient, Client
from sluice.cli import queued
from sluice.cli.submissions import Submitted, remember
from sluice.client import Event, Prompt, RunState
from sluice.config.load import parse_config
from sluice.errors import ConfigError, DataError, Expired, InvalidRequest, NotFound, NotReady, Unavailable
from sluice.rpc.server import make_server
from sluice.testing import assert_eventually
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc
from tests.integration.coordinator_cases import Cast, Serve, small_config

pytestmark = pytest.mark.integration


async def test_a_script_starts_looks_at_and_commands_a_run(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        await run.until(lambda status: len(status.evaluations) == 1)
        await cast.learner.train(run, range(1))
        await asyncio.to_thread(_script, run.address)


def _script(address: str) -> None:
    with Client(address) as client:
        assert client.status().step == 1
        assert client.status().state == RunState.RUNNING
        assert (client.weights_version().number, client.weights_version().lineage) == (1, "a")
        assert client.pause() is RunState.PAUSED
        assert client.drain(timeout_s=20) is RunState.DRAINING
        assert str(client.resume()) == "running"
        evaluation = client.evaluate(prompts=2, n=1)
        assert (evaluation.prompts, evaluation.avg_at_n) == (2, 1.0)
        assert client.save_checkpoint().path == "step-1"
        chat = [{"role": "user", "content": "1+1="}]
        kept = client.submit(
            [Prompt(data_source="mine", prompt=text, extra_info={"level": 3}) for text in ("2+2=", chat)]
        )
        assert len(set(kept)) == 2
        with pytest.raises(DataError, match="16 tokens, got 99"):
            client.submit([Prompt(data_source="mine", prompt="1" * 99)])
        trained = client.groups(state="trained")
        assert [group.step for group in trained] == [0] * 4
        assert len(client.groups(limit=2)) == 2
        assert json.loads(client.group(trained[0].group_id).row_json)["term"] == "trained"
        assert client.group(0).summary.admission == 0
        assert client.ledger().trained == 4
        assert parse_config(client.config(), where="the client").data.train_batch_size == 4
        assert client.stop(reason="seen enough") in (RunState.RUNNING, RunState.STOPPED)


async def test_errors_have_a_status_a_reason_and_a_fix(serve: Serve, cast: Cast) -> None:
    async with serve() as run, AsyncClient(run.address) as client:
        with pytest.raises(NotReady) as no_launcher:
            await client.scale("rollout", 2)
        with pytest.raises(NotFound) as no_group:
            await client.group("nothing")
        with pytest.raises(InvalidRequest) as no_role:
            await client.scale("learner", 2)
        with pytest.raises(NotReady) as no_child:
            await client.wait()
    for caught, status, reason, fix in (
        (no_launcher, "FAILED_PRECONDITION", "scale: no launcher is attached", "docker compose up"),
        (no_group, "NOT_FOUND", "group 'nothing': must be one of", "`sluice groups`"),
        (no_role, "INVALID_ARGUMENT", "got 2 of 'learner'", '"rollout" or "reward"'),
        (no_child, "FAILED_PRECONDITION", "did not start the run", "watch()"),
    ):
        error = caught.value
        assert error.status == status
        assert reason in error.reason
        assert fix in error.fix
        assert fix not in error.reason
        assert str(error) == f"{error.reason}; {error.fix}"


async def test_the_handshake_refuses_what_does_not_fit_by_name(serve: Serve, cast: Cast) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"protocol_version": 999}, "rollout-0 speaks protocol 999, this coordinator 1", "one version of sluice"),
        ({"model_hash": "other"}, "rollout-0 has another model (hash other)", "the same model.path"),
        ({"tokenizer_hash": "other"}, "rollout-0 has another tokenizer (hash other)", "the same model.path"),
        ({"max_model_len": 23}, "the context of rollout-0 is 23 tokens", "a model with a longer context"),
    ]
    async with serve() as run:
        for change, reason, fix in cases:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cast.rollout.register(run, **change)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert reason in (caught.value.details() or "")
            assert fix in (caught.value.details() or "")


async def test_an_error_with_a_very_long_message_still_arrives_as_itself(serve: Serve) -> None:
    async with serve() as run, AsyncClient(run.address) as client:
        with pytest.raises(NotFound, match=r"üüü.*…"):
            await client.group("ü" * 50_000)


async def test_a_watch_goes_on_over_a_restart_of_the_coordinator_without_gaps(
    serve: Serve, cast: Cast, unused_tcp_port: int
) -> None:
    seen: list[Event] = []

    async def watch(client: AsyncClient) -> None:
        async for event in client.watch():
            seen.append(event)  # noqa: PERF401 - the list is read while the stream goes on

    def kinds(process: int) -> list[str]:
        names = list(dict.fromkeys(event.process for event in seen))
        return [event.kind for event in seen if len(names) > process and event.process == names[process]]

    async with AsyncClient(f"127.0.0.1:{unused_tcp_port}") as client:
        async with serve(port=unused_tcp_port) as run:
            watching = asyncio.create_task(watch(client))
            await cast.register(run)
            await cast.learner.train(run, range(1))
            await assert_eventually(lambda: "step_trained" in kinds(0), what="the first step is seen")
        async with serve(port=unused_tcp_port) as run:
            assert (await client.status()).step == 1
            await cast.register(run)
            await cast.learner.train(run, range(1, 3))
            await assert_eventually(lambda: "finished" in [event.labels.get("state") for event in seen], what=str(seen))
            await asyncio.wait([watching], timeout=20)
            assert watching.done(), "the watch ends with the run"
            await watching
            later = client.watch(after_sequence=seen[0].sequence, process=seen[0].process)
            assert (await anext(later)).sequence == 1, "a number of the former process is none of this one's"
    sequences = [[event.sequence for event in seen if event.process == name] for name in {e.process for e in seen}]
    assert len(sequences) == 2
    assert all(numbers == list(range(numbers[0], numbers[-1] + 1)) for numbers in sequences)
    assert next(event.sequence for event in seen if event.process == seen[-1].process) == 1


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_a_watch_that_has_seen_nothing_yet_goes_on_with_the_next_coordinator(
    serve: Serve, cast: Cast, unused_tcp_port: int, kind: type[AsyncClient] | type[Client]
) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"

    async def first() -> Event:
        if kind is Client:
            return await asyncio.to_thread(_first_event, address)
        async with AsyncClient(address) as client:
            return await anext(client.watch())

    async with serve(port=unused_tcp_port) as run:
        stream = run.stub.WatchEvents(pb.WatchEventsRequest(), timeout=10)
        begin = dict(await stream.initial_metadata())
        stream.cancel()
        assert (begin["sluice-sequence"], len(begin["sluice-process"])) == ("0", 16)
        watching = asyncio.create_task(first())
        await asyncio.sleep(1.0)  # the stream begins; nothing shows that from outside
        assert not watching.done()
    async with serve(port=unused_tcp_port) as run, AsyncClient(address) as client, asyncio.timeout(20):
        await client.status()  # retried until it can be reached again
        await cast.reward.register(run)
        event = await watching
    assert event.sequence == 1


def _first_event(address: str) -> Event:
    with Client(address) as client:
        return next(client.watch())


async def test_a_watch_of_a_run_that_has_ended_ends(serve: Serve) -> None:
    async with serve() as run, AsyncClient(run.address) as client:
        await client.stop()
        await run.until(lambda status: status.state == pb.RUN_STATE_STOPPED)
        async with asyncio.timeout(20):
            assert [event.kind async for event in client.watch()] == []


class Failing(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """A coordinator that fails the first calls of each method."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, {"GetStatus": 0, "Pause": 0}

    async def _answer(self, method: str, context: grpc.aio.ServicerContext) -> None:
        self.calls[method] += 1
        if self.calls[method] <= self.failures:
            raise Unavailable("the store is being restarted")

    async def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:
        await self._answer("GetStatus", context)
        return pb.GetStatusResponse(step=7)

    async def Pause(self, request: Any, context: Any) -> pb.PauseResponse:
        await self._answer("Pause", context)
        return pb.PauseResponse()


@pytest.fixture
async def failing() -> AsyncIterator[Callable[[int], Any]]:
    servers: list[Any] = []

    async def start(failures: int) -> tuple[Failing, str]:
        servicer = Failing(failures)
        server = make_server(
            lambda made: coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(servicer, made), services=[]
        )
        servers.append(server)
        return servicer, f"127.0.0.1:{await server.start(bind='127.0.0.1', port=0)}"

    yield start
    for server in servers:
        await server.stop(grace_s=0)


async def test_reads_are_retried_and_commands_are_sent_once(failing: Callable[[int], Any]) -> None:
    servicer, address = await failing(2)
    async with AsyncClient(address) as client:
        assert (await client.status()).step == 7
        assert servicer.calls["GetStatus"] == 3
        with pytest.raises(Unavailable, match="the store is being restarted"):
            await client.pause()
        assert servicer.calls["Pause"] == 1


async def test_retries_end_and_the_launcher_makes_none(failing: Callable[[int], Any]) -> None:
    servicer, address = await failing(99)
    async with AsyncClient(address) as client:
        with pytest.raises(Unavailable):
            await client.status()
    assert servicer.calls["GetStatus"] == 5
    async with AsyncClient(address, retry_reads=False) as client:
        with pytest.raises(Unavailable):
            await client.status()
    assert servicer.calls["GetStatus"] == 6


async def test_the_verbs_print_what_the_client_gives(
    serve: Serve, cast: Cast, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sluice_says(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(sluice.cli.main.main, [*words, "--coordinator", run.address])
        said = capsys.readouterr()
        lines = [line for line in said.out.splitlines() if not re.match(r"\d{4}-", line)]  # the coordinator's log
        return code, "\n".join(lines).strip(), said.err.strip()

    async with serve() as run:
        await cast.register(run)
        await run.until(lambda status: len(status.evaluations) == 1)
        assert await sluice_says("pause") == (0, "paused", "")
        assert await sluice_says("drain", "--timeout-s", "20") == (0, "draining", "")
        assert await sluice_says("resume") == (0, "running", "")
        assert (await sluice_says("evaluate", "--prompts", "2", "-n", "1"))[1].startswith("evaluated v0  avg@1 1.0")
        evaluation = tmp_path / "evaluation.json"
        assert (await sluice_says("evaluate", "default", "--prompts", "2", "-n", "1", "--json", str(evaluation)))[
            0
        ] == 0
        [one] = json.loads(evaluation.read_text())["evaluations"]
        assert (one["set"], one["prompts"], one["avg"], one["avg_interval"]) == ("default", 2, 1.0, [1.0, 1.0])
        code, _, error = await sluice_says("evaluate", "gone")
        assert code == 2
        assert "'gone' is no evaluation set of this run; it has default" in error
        assert await sluice_says("checkpoint") == (0, "step-0", "")
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"data_source": "mine", "prompt": "1+1=", "ground_truth": "2"}\n\n')
        code, prompt_id, _ = await sluice_says("prompts", str(prompts))
        assert (code, len(prompt_id.split())) == (0, 1)
        await cast.learner.train(run, range(1))
        code, table, _ = await sluice_says("groups", "--state", "trained")
        assert (code, len(table.splitlines())) == (0, 5)
        assert "step 1/3" in (await sluice_says("status"))[1]
        monkeypatch.setenv("SLUICE_CACHE", str(tmp_path))
        async with AsyncClient(run.address) as client:
            remember(Submitted(on="slurm", job="7", name="sums", run_dir=(await client.status()).run_dir))
        assert "step 1/3" in (await sluice_says("status", "--job", "sums"))[1]
        other = Submitted(on="slurm", job="8", run_dir="/other")
        asked = argparse.Namespace(coordinator=run.address, credentials="")
        reached, why = await asyncio.to_thread(queued._reached, other, asked)
        assert reached is None, "that coordinator conducts another run"
        assert why.startswith(f"{run.address} conducts the run in /")
        assert "trained" in (await sluice_says("ledger"))[1]
        assert "trained" in (await sluice_says("explain", "0"))[1]
        prompts.write_text('{"data_source": "mine"}\n')
        code, _, error = await sluice_says("prompts", str(prompts))
        assert code == 2
        assert "prompts.jsonl, line 1: must be a JSON object" in error
        code, _, error = await sluice_says("scale", "rollout", "2")
        assert code == 1
        assert "docker compose up" in error
        watching = asyncio.create_task(sluice_says("events", "--json"))
        await cast.learner.train(run, range(1, 3))
        code, events, _ = await watching
        assert code == 0
        assert json.loads(events.splitlines()[-1])["labels"]["state"] == "finished"


async def test_a_verb_without_a_run_says_so(unused_tcp_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = await asyncio.to_thread(sluice.cli.main.main, ["pause", "--coordinator", f"127.0.0.1:{unused_tcp_port}"])
    assert code == 1
    assert "is a run up there? --coordinator names another" in capsys.readouterr().err


def recipe_of_nobody(model: Path, folder: Path) -> Path:
    """A run that waits for services which are started elsewhere."""
    tree = small_config(model).model_dump(mode="json", exclude_unset=True)
    tree["launch"] = {"rollout_replicas": 0, "reward_replicas": 0}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.timeout(120)
def test_a_script_starts_a_run_and_leaves_no_process_behind(model: Path, tmp_path: Path, unused_tcp_port: int) -> None:
    recipe, overrides = recipe_of_nobody(model, tmp_path), [f"network.coordinator_port={unused_tcp_port}"]
    before = psutil.Process().children()
    with Client.start(recipe, overrides=overrides, run_dir=tmp_path / "run") as client:
        status = client.status()
        assert status.state == RunState.STARTING
        assert status.run_dir == str(tmp_path / "run")
        (launcher,) = set(psutil.Process().children()) - set(before)
        children = [launcher, *launcher.children(recursive=True)]
        assert len(children) >= 3
        with pytest.raises(Expired, match=r"has not ended after 0\.1 s"):
            client.wait(timeout_s=0.1)
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert client.wait(timeout_s=0) == 130


def test_a_run_that_cannot_start_says_why(model: Path, tmp_path: Path) -> None:
    recipe, before = recipe_of_nobody(model, tmp_path), psutil.Process().children()
    with pytest.raises(ConfigError, match=r"data\.train_batch_size"):
        Client.start(recipe, overrides=["data.train_batch_size=0"])
    with pytest.raises(ConfigError, match=r"sluice up ended with code 2(.|\n)*nowhere"):
        Client.start(recipe, overrides=[f"model.path={tmp_path / 'nowhere'}"], run_dir=tmp_path / "run")
    assert set(psutil.Process().children()) <= set(before)
