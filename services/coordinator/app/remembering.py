"""Tells a sampler of prompts what the ledger knows, when a coordinator starts: its memory is rebuilt, not kept."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from services.coordinator.api.run_parts import RunParts
from services.coordinator.prompts.difficulty import Difficulty
from services.coordinator.recovery.rollback import Account
from services.coordinator.state.group import Group
from services.coordinator.state.live_groups import live_groups

log = structlog.get_logger(__name__)

NEWEST_VERSIONS = 512
"""Outcomes of older versions are not read: a prompt without a newer one counts as never seen."""


async def remember_outcomes(parts: RunParts, sampler: Difficulty) -> None:
    """Reads the files, then the live groups; board and assigner must be filled."""
    started, rows = time.monotonic(), 0
    await parts.records.ledger.flush()  # the rows that Redis holds are then in files as well
    newest = parts.run.progress.trained_steps
    since = newest - NEWEST_VERSIONS
    async for some in parts.records.files.outcomes(versions_since=since):
        # in the order of their ends: a trained group's row comes later than its end
        for row in sorted(some, key=lambda row: row.get("ended_s") or 0):
            if _still_true(row, parts.rollbacks.made):
                sampler.remember(row)
                rows += 1
    for live in live_groups(parts.run.board, parts.assigner.assigned):
        if isinstance(live.group, Group):
            sampler.reopened(live.group)
        else:
            sampler.remember(live.row())
    if rows:
        log.info("outcomes_remembered", rows=rows, seconds=time.monotonic() - started)


def _still_true(row: Mapping[str, Any], rollbacks: Sequence[Account]) -> bool:
    """Whether no rollback has given up the policy that the row tells of: a later one may have its number again."""
    return not any(
        (row.get("oldest_version") or 0) > made.to and (row.get("ended_s") or 0) < made.time_s for made in rollbacks
    )
