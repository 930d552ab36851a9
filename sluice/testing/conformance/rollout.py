"""Checks a rollout server: first its weight RPCs without a learner, then, with weights, its generation."""

import tempfile
from pathlib import Path
from typing import Any

import grpc

from sluice.clock import SystemClock
from sluice.policy_version import PolicyVersion
from sluice.testing.conformance import generate_checks, weight_checks
from sluice.testing.conformance.model_snapshot import read_model_snapshot
from sluice.testing.conformance.rollout_server import RolloutServer
from sluice.testing.conformance.suite import Verdict
from sluice.testing.conformance.transport import CALL_TIMEOUT_S, connected
from sluice.v1 import rollout_pb2, rollout_pb2_grpc
from sluice.weights.snapshot import Snapshot

LINEAGE = "conformance"
"""The lineage of weights that are pushed to a server without weights."""


async def check_rollout(address: str, *, model: Path | None = None, drain: bool = False) -> list[Verdict]:
    """Checks the server at `address` (host:port), which must not be at work in a run.

    `model` is a Hugging Face folder whose weights are pushed to the server as a file, so both ends must see this machine's
    temporary folder; without `model` the server must hold weights. `drain` also checks Drain, after which the server takes
    no work. Raises Unavailable when nothing answers, ConfigError when `model` is no model folder.
    """
    async with connected(address) as channel:
        stub: Any = rollout_pb2_grpc.RolloutServiceStub(channel)
        snapshot = None if model is None else read_model_snapshot(model, await _next_version(stub))
        with tempfile.TemporaryDirectory(prefix="sluice-conformance-") as folder:
            server = RolloutServer(
                channel=channel,
                stub=stub,
                clock=SystemClock(),
                snapshot=snapshot,
                file_path=_written(Path(folder), snapshot),
                drain=drain,
            )
            return [*await weight_checks.SUITE.run(server), *await generate_checks.SUITE.run(server)]


async def _next_version(stub: Any) -> PolicyVersion:
    """A version that the server may be given: behind its own version, because numbers never go back."""
    try:
        info = await stub.GetInfo(rollout_pb2.RolloutServiceGetInfoRequest(), timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError:  # the checks will report the failure
        return PolicyVersion(lineage=LINEAGE, number=0)
    if not info.HasField("version"):
        return PolicyVersion(lineage=LINEAGE, number=0)
    return PolicyVersion(lineage=info.version.lineage, number=info.version.number + 1)


def _written(folder: Path, snapshot: Snapshot | None) -> str:
    """The snapshot's path; empty without one."""
    if snapshot is None:
        return ""
    from sluice.weights.snapshot_files import write_snapshot

    return str(write_snapshot(folder, snapshot))
