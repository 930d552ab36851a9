"""The Prometheus endpoint's own figures: the run's present state, and the addresses of all services' endpoints."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from services.coordinator.api.run_parts import RunParts
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.member import Role, State
from services.coordinator.state.progress import RunState
from sluice.telemetry.prometheus import Target

WHOLE_IN_A_ROW = 5
"""Versions that a rollout has taken whole, one after another, while others got deltas: more than a newcomer, a late rollout or
one failed push explain."""


def gauges(parts: RunParts) -> dict[str, float]:
    """The live metrics of sluice/telemetry/catalogue/live.py that cost nothing to compute."""
    training = parts.run.progress.state is RunState.RUNNING and parts.run.fleet.learner is not None
    return {
        "run/trained_steps": float(parts.run.progress.trained_steps),
        "run/idle_s": parts.stall.idle_s(),
        "learner/waiting_s": parts.assigner.learner_waits_s() if training else 0.0,
        "staleness/bound_steps": float(parts.run.config.coordinator.max_staleness),
        "logger/dropped_lines": float(parts.loggers.dropped),
        "traces/dropped_records": float(parts.run.tracer.dropped),
        **fleet_gauges(parts.run.fleet),
    }


def fleet_gauges(fleet: Fleet) -> dict[str, float]:
    """Members by role and state, and by how their weights come."""
    return {
        "fleet/rollouts_ready": float(len(fleet.of(Role.ROLLOUT))),
        "fleet/rollouts_quarantined": float(len(fleet.of(Role.ROLLOUT, state=State.QUARANTINED))),
        "fleet/rewards_ready": float(len(fleet.of(Role.REWARD))),
        "fleet/services_lost": float(
            sum(member.state is State.LOST and not member.leaving for member in fleet.members.values())
        ),
        "weights/rollouts_without_delta": float(_without_delta(fleet)),
    }


def _without_delta(fleet: Fleet) -> int:
    """Rollouts that get whole versions again and again, while another one's newest version came as a delta."""
    rollouts = fleet.of(Role.ROLLOUT)
    if not any(member.encoding == "delta" for member in rollouts):
        return 0
    return sum(member.whole_in_a_row >= WHOLE_IN_A_ROW for member in rollouts)


def disk_gauges(path: Path) -> dict[str, float]:
    """The disk under `path`. Blocking; raises OSError."""
    disk = shutil.disk_usage(path)
    return {"disk/free_bytes": float(disk.free), "disk/free_fraction": disk.free / disk.total}


def targets(fleet: Fleet, *, run_id: str) -> Sequence[Target]:
    """The endpoints of all services but lost ones, which count in `fleet/services_lost` and would only time out."""
    return [
        Target(
            address=member.metrics_address,
            labels={"run": run_id, "role": member.role.value, "service_id": member.service_id},
        )
        for member in sorted(fleet.members.values(), key=lambda member: member.service_id)
        if member.metrics_address and member.state is not State.LOST
    ]
