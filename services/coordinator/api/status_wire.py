"""Core -> wire for the messages that people read: status, ledger, evaluations, group lines."""

import math

from services.coordinator.api.group_listing import GroupLine
from services.coordinator.api.run_parts import RunParts
from services.coordinator.groups.step_metrics import queue_metrics
from services.coordinator.recovery.rollback import Account
from services.coordinator.state.evaluation_result import EvaluationResult, Interval
from services.coordinator.state.ledger import LedgerCounts, count, ledger_metrics
from services.coordinator.state.member import Gpus, Member, Role, State
from services.coordinator.state.progress import Progress, RunState
from sluice.rpc.policy_versions import version_to_proto
from sluice.v1 import coordinator_pb2 as pb

_RUN_STATE = {
    RunState.STARTING: pb.RUN_STATE_STARTING,
    RunState.RUNNING: pb.RUN_STATE_RUNNING,
    RunState.FINISHING: pb.RUN_STATE_FINISHING,
    RunState.FINISHED: pb.RUN_STATE_FINISHED,
    RunState.FAILED: pb.RUN_STATE_FAILED,
    RunState.STOPPED: pb.RUN_STATE_STOPPED,
    RunState.STARVED: pb.RUN_STATE_STARVED,
}
_ADMISSION = {"paused": pb.RUN_STATE_PAUSED, "draining": pb.RUN_STATE_DRAINING}
_ROLE = {
    Role.ROLLOUT: pb.SERVICE_ROLE_ROLLOUT,
    Role.REWARD: pb.SERVICE_ROLE_REWARD,
    Role.ENVIRONMENT: pb.SERVICE_ROLE_ENVIRONMENT,
    Role.LEARNER: pb.SERVICE_ROLE_LEARNER,
}
_STATE = {
    State.REGISTERED: pb.SERVICE_STATE_REGISTERED,
    State.SYNCING: pb.SERVICE_STATE_SYNCING,
    State.READY: pb.SERVICE_STATE_READY,
    State.DRAINING: pb.SERVICE_STATE_DRAINING,
    State.QUARANTINED: pb.SERVICE_STATE_QUARANTINED,
    State.LOST: pb.SERVICE_STATE_LOST,
}


def run_state(progress: Progress) -> "pb.RunState.ValueType":
    """The state by the API's names: a running run shows a pause or a drain as its state."""
    if progress.state is RunState.RUNNING and progress.admission in _ADMISSION:
        return _ADMISSION[progress.admission]
    return _RUN_STATE[progress.state]


async def status(parts: RunParts) -> pb.GetStatusResponse:
    """Everything GetStatus shows."""
    run, progress = parts.run, parts.run.progress
    counts = count(await parts.store.counters(), run.board)
    now_s, nodes = run.clock.now(), run.places.nodes()
    return pb.GetStatusResponse(
        run_id=run.run_id,
        state=run_state(progress),
        reason=progress.reason,
        refused=progress.refused,
        step=progress.trained_steps,
        total_steps=run.config.run.total_steps,
        version=None if progress.version is None else version_to_proto(progress.version),
        services=[service(member, now_s=now_s, node=nodes.get(name, "")) for name, member in run.fleet.members.items()],
        ledger=ledger_to(counts),
        metrics=progress.metrics | queue_metrics(run.board) | ledger_metrics(counts),
        evaluations=[evaluation(result) for result in progress.evaluations],
        train_wall_s=progress.train_wall_s,
        scale=progress.scale,
        run_dir=str(parts.records.files.run_dir),
        waits=[pb.Wait(who=wait.who, why=wait.why, since_s=wait.since_s) for wait in parts.stall.waits()],
        rollbacks=[
            pb.RolledBack(to=made.to, lineage=made.lineage, reached=made.reached, time_s=made.time_s)
            for made in parts.rollbacks.made
        ],
        evaluation_sets=[settings.name for settings in parts.evaluator.sets],
    )


def service(member: Member, *, now_s: float, node: str = "") -> pb.ServiceStatus:
    """One registered process."""
    return pb.ServiceStatus(
        service_id=member.service_id,
        role=_ROLE[member.role],
        state=_STATE[member.state],
        address=member.address,
        version=None if member.version is None else version_to_proto(member.version),
        running=member.outstanding,
        capacity=member.takes,
        heartbeat_age_s=now_s - member.last_beat_s,
        node=node,
        source=member.source,
        push_ms=member.push_ms,
        encoding=member.encoding,
        sent_bytes=member.sent_bytes,
        gpus=None if member.gpus is None else _gpus(member.gpus),
        device=member.device,
    )


def _gpus(gpus: Gpus) -> pb.Gpus:
    return pb.Gpus(name=gpus.name, count=gpus.count, memory_bytes=gpus.memory_bytes)


async def ledger(parts: RunParts) -> pb.Ledger:
    """The ledger, term by term."""
    return ledger_to(count(await parts.store.counters(), parts.run.board))


def ledger_to(counts: LedgerCounts) -> pb.Ledger:
    """Core -> wire."""
    failed_tokens = {f"failed:{reason}": tokens for reason, tokens in counts.failed_tokens.items()}
    return pb.Ledger(
        admitted=counts.admitted,
        failed=counts.failed,
        closed=counts.closed,
        generated_tokens=counts.received_tokens,
        trained_tokens=counts.tokens["trained"],
        lost_tokens=counts.lost_tokens,
        tokens={**counts.tokens, **failed_tokens, "lost": counts.lost_tokens},
        **counts.terms,
    )


def evaluation(result: EvaluationResult) -> pb.Evaluation:
    """One evaluation."""
    return pb.Evaluation(
        version=version_to_proto(result.version),
        avg_at_n=result.avg_at_n,
        pass_at_n=result.pass_at_n,
        greedy=math.nan if result.greedy is None else result.greedy,
        set=result.set,
        maj_at_n=result.maj_at_n,
        avg_interval=_interval(result.avg_interval),
        pass_interval=_interval(result.pass_interval),
        maj_interval=_interval(result.maj_interval),
        temperature=result.temperature,
        top_p=result.top_p,
        n=result.n,
        prompts=result.prompts,
        mean_response_tokens=result.mean_response_tokens,
        wall_s=result.wall_s,
        ungraded=result.ungraded,
        tool_use=result.tool_use,
    )


def _interval(ends: Interval | None) -> pb.Interval | None:
    return None if ends is None else pb.Interval(low=ends[0], high=ends[1])


def rollback(account: Account) -> pb.RollbackResponse:
    """What a rollback has given up, or would give up."""
    return pb.RollbackResponse(
        to=account.to,
        reached=account.reached,
        lineage=account.lineage,
        groups=account.groups,
        tokens=account.tokens,
        checkpoints=account.checkpoints,
    )


def summary(line: GroupLine) -> pb.GroupSummary:
    """One line about a group."""
    return pb.GroupSummary(
        group_id=line.group_id,
        state=line.state,
        admission=line.admission,
        prompt_id=line.prompt_id,
        attempt=line.attempt,
        oldest_version=line.oldest_version,
        step=line.step,
    )


def submitted(prompt: pb.UserPrompt) -> dict[str, str]:
    """A prompt of a user as a row (prompts/rows.py); columns for environments only where there are values."""
    row = {"data_source": prompt.data_source, "prompt": prompt.prompt, "ground_truth": prompt.ground_truth}
    row["extra_info"] = prompt.extra_info_json
    if prompt.environment:
        row["environment"] = prompt.environment
    if prompt.environment_args_json:
        row["env_args"] = prompt.environment_args_json
    return row
