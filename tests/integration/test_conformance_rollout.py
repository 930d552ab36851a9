"""The conformance checks of rollout servers: ours passes with a real engine, and every check can fail."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sluice.clock import SystemClock
from sluice.errors import ConfigError
from sluice.policy_version import PolicyVersion
from sluice.testing import assert_eventually
from sluice.testing.conformance import check_rollout, generate_checks, rollout_server, transport, weight_checks
from sluice.testing.conformance.model_snapshot import read_model_snapshot
from sluice.testing.conformance.suite import Suite
from sluice.testing.fakes import serving
from sluice.v1 import rollout_pb2_grpc
from sluice.weights.snapshot_files import write_snapshot
from tests.integration.broken_rollout import BrokenRollout
from tests.integration.real_rollout import serving_rollout

pytestmark = pytest.mark.integration

CHECKS = [*weight_checks.SUITE.checks, *generate_checks.SUITE.checks]


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """Enough of a model folder to be pushed."""
    folder = tmp_path / "small"
    folder.mkdir()
    save_file(
        {"weight": np.ones((2, 3), np.float32), "lm_head.weight": np.ones(2, np.float32)}, folder / "m.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    return folder


async def test_our_rollout_service_keeps_the_contract(model: Path) -> None:
    async with serving_rollout(model) as (address, _):
        verdicts = await check_rollout(address, model=model, drain=True)
    assert [(verdict.check, verdict.seen) for verdict in verdicts if verdict.outcome != "PASS"] == []
    # A join that was given up keeps a thread of torch's for its last try, which must not outlive the interpreter.
    await assert_eventually(lambda: all(t.name != "weights-join" for t in threading.enumerate()), within_s=20.0)


async def test_the_fake_keeps_the_contract_too_and_checks_without_occasion_are_left_out(small_model: Path) -> None:
    async with serving(BrokenRollout()) as address:
        pushed = await check_rollout(address, model=small_model)
        drained = await check_rollout(address, drain=True)
    assert {verdict.outcome for verdict in [*pushed, *drained]} == {"PASS", "SKIP"}
    assert len(pushed) == len(drained) == len(CHECKS) > 20
    assert [verdict.check for verdict in pushed if verdict.outcome == "SKIP"] == ["a drained server takes no work"]
    assert [verdict.check for verdict in drained if verdict.outcome == "SKIP"] == [
        "nothing is generated without weights",
        "a receive in an unknown epoch is refused",
        "pushed weights are applied",
        "bytes that do not verify change nothing",
    ]
    assert all(verdict.seen for verdict in [*pushed, *drained] if verdict.outcome == "SKIP")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_check_fails_on_a_server_that_breaks_what_it_checks(check, small_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(generate_checks, "_FREE_WITHIN_S", 0.3)
    monkeypatch.setattr(transport, "MAX_MESSAGE_BYTES", 1 << 20)  # for the server that takes any size
    snapshot = read_model_snapshot(small_model, PolicyVersion(lineage="a", number=3))
    suite: Suite = Suite()
    if check in generate_checks.SUITE.checks or "change_nothing" in check.__name__:
        suite.check(weight_checks.pushed_weights_are_applied)
    suite.check(check)
    server = BrokenRollout(check.__name__)
    async with serving(server) as address, transport.connected(address) as channel:
        verdicts = await suite.run(
            rollout_server.RolloutServer(
                channel=channel,
                stub=rollout_pb2_grpc.RolloutServiceStub(channel),
                clock=SystemClock(),
                snapshot=snapshot,
                file_path=str(write_snapshot(tmp_path, snapshot)),
                drain=True,
            )
        )
    assert [verdict.outcome for verdict in verdicts] == [*["PASS"] * (len(verdicts) - 1), "FAIL"]
    assert verdicts[-1].seen
    assert verdicts[-1].expected


async def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no Hugging Face model folder"):
        read_model_snapshot(tmp_path, PolicyVersion(lineage="a", number=0))
