"""Finds the ledger row of any group of the run: live, ended lately, or ended long ago."""

from typing import Any

from services.coordinator.api.run_parts import Core
from services.coordinator.state.ledger_row import ledger_row, queued_row
from sluice.errors import NotFound


async def find_row(core: Core, wanted: str) -> dict[str, Any]:
    """The row of the group with this id or number, as far as it is known. Raises NotFound that says what there is."""

    def is_it(group_id: str, admission: int) -> bool:
        return wanted in (group_id, str(admission))

    for group in core.board.open.values():
        if is_it(group.group_id, group.admission):
            return ledger_row(group, term=group.phase.value, ended=False)
    queued = [(group, "queued", -1) for group in core.board.queued.values()]
    assigned = [(group, "assigned", step) for step, groups in core.assigner.assigned.items() for group in groups]
    for group, term, step in queued + assigned:
        if is_it(group.group_id, group.admission):
            return queued_row(group, term=term, step=step, ended=False)
    row = await core.store.find_row(lambda row: is_it(row["group_id"], row["admission"]))
    if row is None:
        row = await core.files.find_row(wanted)
    if row is None:
        admitted = (await core.store.counters()).get("admitted", 0)
        raise NotFound(
            f"group {wanted!r}: must be one of the {admitted} groups of this run, numbered from 0 and named like "
            f"{core.run_id}-0000000",
            fix="`sluice groups` (ListGroups) names the newest, RUN/ledger/*.parquet every one that has ended",
        )
    return row
