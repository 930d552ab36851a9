"""The learner as a process against a coordinator over gRPC: trains, publishes, saves, stops, resumes, exports."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sluice.policy_version import PolicyVersion
from sluice.rpc.channel import open_channel
from sluice.telemetry.catalogue import NAMES
from sluice.testing.fakes import FakeCoordinator
from sluice.v1 import common_pb2, coordinator_pb2, learner_pb2_grpc
from sluice.v1 import learner_pb2 as pb
from tests.integration.service_process import exit_code, learner, learner_under_torchrun
from tests.integration.tiny_run import serving_a_tiny_run
from tests.promql import metrics_in, rules

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[tuple[FakeCoordinator, str]]:
    async with serving_a_tiny_run(tmp_path, checkpoint_every_steps=2) as served:
        yield served


async def test_two_ranks_train_three_steps_commit_each_and_export_a_model_that_transformers_loads(
    coordinator: tuple[FakeCoordinator, str],
) -> None:
    fake, address = coordinator
    fake.ready, fake.end = 3, 3
    async with learner(address, ranks=2) as process:
        await fake.until(lambda: len(fake.commits) == 3)
        assert await exit_code(process) == 0
    assert [(commit.step, commit.version.lineage, commit.version.number) for commit in fake.commits] == [
        (0, "a", 1),
        (1, "a", 2),
        (2, "a", 3),
    ]
    assert set(fake.commits[0].metrics) <= NAMES
    warned_of = set().union(*(metrics_in(rule["expr"]) for rule in rules()))
    assert {metric.name for metric in warned_of if metric.source == "learner"} <= set(fake.commits[0].metrics)
    assert fake.commits[0].metrics["learner/updates"] == 2
    for commit in fake.commits:  # a rank that has loaded torch and a model, and hardly more
        assert 100e6 < commit.metrics["learner/peak_memory_bytes"] < 5e9
        assert "learner/mfu" not in commit.metrics  # a CPU has no peak in the table
    assert [Path(commit.path).name for commit in fake.checkpoints] == ["step-2", "step-3"]
    assert fake.registrations[0].version == common_pb2.PolicyVersion(lineage="a", number=0)
    exported = AutoModelForCausalLM.from_pretrained(fake.run_dir / "model")
    base = AutoModelForCausalLM.from_pretrained(fake.config.model.path)
    assert exported.dtype == torch.float32
    assert not torch.equal(exported.get_input_embeddings().weight, base.get_input_embeddings().weight)


async def test_a_stopped_learner_leaves_a_checkpoint_and_the_next_one_goes_on_in_a_new_lineage_when_it_differs(
    coordinator: tuple[FakeCoordinator, str],
) -> None:
    fake, address = coordinator
    await fake.allow(ready=1)
    async with learner(address) as process:
        await fake.until(lambda: len(fake.commits) == 1)
        stub, channel = _stub(fake)
        info = await stub.GetInfo(pb.LearnerServiceGetInfoRequest(), timeout=10)
        assert (info.version.number, info.digest) == (1, fake.commits[0].weights_digest)
        opened = await stub.OpenTransfer(pb.OpenTransferRequest(rollout_id="r", epoch="e", timeout_s=0.5), timeout=10)
        assert (opened.new_epoch, opened.manifest.digest) == (True, info.digest)
        saved = await stub.SaveCheckpoint(pb.LearnerServiceSaveCheckpointRequest(), timeout=20)
        assert (Path(saved.path).name, saved.version.number) == ("step-1", 1)
        again = await stub.SaveCheckpoint(pb.LearnerServiceSaveCheckpointRequest(), timeout=20)
        assert again.path == saved.path
        exported = await stub.Export(pb.ExportRequest(), timeout=20)
        assert exported.path == str(fake.run_dir / "model")
        await channel.close()
        await fake.allow(ready=2)
        await fake.until(lambda: len(fake.commits) == 2)
        process.send_signal(signal.SIGTERM)
        assert await exit_code(process) == 0
    assert [Path(commit.path).name for commit in fake.checkpoints] == ["step-1", "step-2"]
    fake.recorded[2] = "what another GPU computed"
    await fake.allow(ready=4, end=4)
    async with learner(address) as process:
        await fake.until(lambda: len(fake.commits) == 5)
        assert await exit_code(process) == 0
    assert fake.registrations[1].version == common_pb2.PolicyVersion(lineage="a", number=2)
    (stated,) = fake.registrations[1].trained
    assert (stated.step, stated.version.lineage, stated.committed) == (1, "a", True)
    assert (stated.batch_digest, stated.weights_digest) == (
        fake.commits[1].batch_digest,
        fake.commits[1].weights_digest,
    )
    assert len(stated.group_ids) == 6
    versions = [PolicyVersion(lineage=c.version.lineage, number=c.version.number) for c in fake.commits[2:]]
    assert [str(version) for version in versions] == ["a3", "b3", "b4"]
    assert np.isfinite(fake.commits[-1].metrics["loss/grad_norm"])


async def test_after_a_rollback_the_learner_goes_on_from_what_is_left_under_the_new_lineage(
    coordinator: tuple[FakeCoordinator, str],
) -> None:
    fake, address = coordinator
    await fake.allow(ready=4, end=4)
    async with learner(address) as process:
        assert await exit_code(process) == 0
    assert [Path(commit.path).name for commit in fake.checkpoints] == ["step-2", "step-4"]
    fake.rollbacks = [coordinator_pb2.RolledBack(to=2, lineage="b", reached=4)]
    fake.recorded.clear()
    async with learner(address) as process:
        assert await exit_code(process) == 0
    assert fake.registrations[1].version == common_pb2.PolicyVersion(lineage="b", number=2)
    assert [step.step for step in fake.registrations[1].trained] == [0, 1]
    again = fake.commits[4:]
    assert [(commit.version.lineage, commit.version.number) for commit in again] == [("b", 3), ("b", 4)]
    same = [(commit.weights_digest, commit.batch_digest) for commit in fake.commits[2:4]]
    assert [(commit.weights_digest, commit.batch_digest) for commit in again] == same, (
        "it started from version 2, not 4"
    )
    async with learner(address) as process:
        assert await exit_code(process) == 0
    assert fake.registrations[2].version == common_pb2.PolicyVersion(lineage="b", number=4)


async def test_two_ranks_that_are_told_to_stop_leave_a_checkpoint_within_the_grace_time(
    coordinator: tuple[FakeCoordinator, str],
) -> None:
    fake, address = coordinator
    fake.ready = 1
    async with learner_under_torchrun(address) as process:
        await fake.until(lambda: len(fake.commits) == 1)
        process.send_signal(signal.SIGTERM)
        await fake.until(lambda: len(fake.checkpoints) == 1, timeout_s=15)
        await exit_code(process)  # torchrun's own: it calls any signal a failure, whatever the ranks returned
    assert Path(fake.checkpoints[0].path).name == "step-1"


async def test_a_learner_that_is_told_to_stop_says_that_it_leaves_and_does_not_count_as_dead(
    coordinator: tuple[FakeCoordinator, str],
) -> None:
    fake, address = coordinator
    fake.ready, fake.heartbeat_interval_s = 1, 3600.0  # no other heartbeat than the one that says so
    async with learner(address) as process:
        await fake.until(lambda: len(fake.commits) == 1)
        process.send_signal(signal.SIGTERM)
        assert await exit_code(process) == 0
    assert {beat.draining for beat in fake.beats} == {True}
    assert {beat.incarnation for beat in fake.beats} == {fake.registrations[0].incarnation}


async def test_a_learner_that_the_coordinator_has_forgotten_registers_again_and_keeps_training(
    coordinator: tuple[FakeCoordinator, str],
) -> None:
    fake, address = coordinator
    async with learner(address) as process:
        await fake.until(lambda: len(fake.registrations) == 1)
        fake.registrations.clear()  # the next heartbeat is answered `known = false`
        await fake.until(lambda: len(fake.registrations) == 1)
        await fake.allow(ready=1, end=1)
        await fake.until(lambda: len(fake.commits) == 1)
        assert await exit_code(process) == 0


def _stub(fake: FakeCoordinator) -> "tuple[learner_pb2_grpc.LearnerServiceAsyncStub, object]":
    channel = open_channel(fake.registrations[-1].address)
    return learner_pb2_grpc.LearnerServiceStub(channel), channel  # type: ignore[return-value]
