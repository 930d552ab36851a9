"""The flat records of a group: what Redis keeps of an accepted one, and its row in the ledger files."""

import time
from dataclasses import asdict
from typing import Any

from services.coordinator.model import Group, QueuedGroup


def accepted_info(accepted: QueuedGroup) -> dict[str, Any]:
    """JSON facts of an accepted group, enough to rebuild it as QueuedGroup."""
    return asdict(accepted)


def ledger_row(group: Group, *, term: str) -> dict[str, Any]:
    """The row of an open group that ends under `term`."""
    accs = [reward.acc for reward in group.rewards if reward.graded]
    return {
        "group_id": group.group_id,
        "admission": group.admission,
        "prompt_id": group.prompt.prompt_id,
        "attempt": group.attempt,
        "term": term,
        "step": -1,
        "oldest_version": -1 if group.oldest_version is None else group.oldest_version,
        "samples": len(group.samples),
        "tokens": group.response_tokens,
        "acc_mean": sum(accs) / len(accs) if accs else -1.0,
        "ended_s": time.time(),
    }


def queued_row(accepted: QueuedGroup, *, term: str, step: int) -> dict[str, Any]:
    """The row of an accepted group that ends under `term`; `step` is -1 unless it was trained."""
    return {
        "group_id": accepted.group_id,
        "admission": accepted.admission,
        "prompt_id": accepted.prompt_id,
        "attempt": accepted.attempt,
        "term": term,
        "step": step,
        "oldest_version": accepted.oldest_version,
        "samples": -1,
        "tokens": accepted.tokens,
        "acc_mean": -1.0,
        "ended_s": time.time(),
    }
