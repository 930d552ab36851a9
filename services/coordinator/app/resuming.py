"""Puts the groups of Redis back into memory: open groups are generated again, accepted groups wait in the queue, assigned
groups belong to their batch."""

import structlog

from services.coordinator.api.run_parts import RunParts
from services.coordinator.app.remembering import remember_outcomes
from services.coordinator.state.group import QueuedGroup
from services.coordinator.state.ledger_row import reopened

log = structlog.get_logger(__name__)


async def resume(parts: RunParts) -> None:
    """Fills board and assigner; to be called once, before anything is admitted."""
    store, board, trained_steps = parts.store, parts.run.board, parts.run.progress.trained_steps
    board.next_step = await store.last_step("batch") + 1
    live = await store.live()
    assigned = {group_id: info for group_id, (state, info) in live.items() if state == "assigned"}
    for group_id, (state, info) in sorted(live.items(), key=lambda item: item[1][1]["admission"]):
        if state == "open":
            admitted = info.get("admitted") or {"epoch": 0}
            prompt = parts.prompts.again(info["cursor"], submitted=admitted["epoch"] < 0)
            board.add(reopened(group_id, info, prompt))
        elif state == "queued":
            board.restore(QueuedGroup(**info))
    for step in range(trained_steps, board.next_step):
        batch = await store.record("batch", step)
        if batch is not None:
            # A repair that was broken off has ended some of these groups, or has not yet ended groups with rows in files.
            known = [QueuedGroup(**assigned[name]) for name in batch["ids"] if name in assigned]
            parts.assigner.assigned[step] = known
    if parts.sampler is not None:
        await remember_outcomes(parts, parts.sampler)
    if live:
        log.info("restored", live=len(live), trained_steps=trained_steps, next_step=board.next_step)
