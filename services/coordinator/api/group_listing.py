"""Groups of the run for people: a list with a line a group, the ledger row of one group, the payload of one group."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.coordinator.api.run_parts import RunParts
from services.coordinator.groups.assignment import POISON
from services.coordinator.state.live_groups import LiveGroup, live_groups
from services.coordinator.wire.messages import group_to
from sluice.errors import NotFound
from sluice.v1 import common_pb2


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLine:
    """The line of one group in ListGroups."""

    group_id: str
    state: str
    admission: int
    prompt_id: str
    attempt: int
    oldest_version: int
    step: int


def line_of(row: Mapping[str, Any]) -> GroupLine:
    """The line for a ledger row."""
    return GroupLine(
        group_id=row["group_id"],
        state=row["term"],
        admission=row["admission"],
        prompt_id=row["prompt_id"],
        attempt=row["attempt"],
        oldest_version=row["oldest_version"],
        step=row["step"],
    )


def group_lines(parts: RunParts) -> Iterator[GroupLine]:
    """Live and recently ended groups, newest first."""
    for live in _live(parts):
        oldest = live.group.oldest_version
        yield GroupLine(
            group_id=live.group.group_id,
            state=live.state,
            admission=live.group.admission,
            prompt_id=live.prompt_id,
            attempt=live.group.attempt,
            oldest_version=-1 if oldest is None else oldest,
            step=live.step,
        )
    for row in reversed(parts.store.recent):
        yield line_of(row)


async def find_row(parts: RunParts, wanted: str) -> dict[str, Any]:
    """The row of the group with this id or number, with the columns known so far. Raises NotFound with similar ids."""

    number = str(int(wanted)) if wanted.isdecimal() and len(wanted) < 19 else ""  # also with zeros, as in the ids

    def is_it(group_id: str, admission: int) -> bool:
        return wanted == group_id or number == str(admission)

    for live in _live(parts):
        if is_it(live.group.group_id, live.group.admission):
            return live.row()
    row = await parts.store.find_row(lambda row: is_it(row["group_id"], row["admission"]))
    if row is None:
        row = await parts.records.files.find_row(wanted)
    if row is None:
        admitted = (await parts.store.counters()).get("admitted", 0)
        raise NotFound(
            f"group {wanted!r}: must be one of the {admitted} groups of this run, numbered from 0 and named like "
            f"{parts.run.run_id}-0000000",
            fix="`sluice groups` (ListGroups) names the newest, RUN/ledger/*.parquet every one that has ended",
        )
    return row


async def find_payload(parts: RunParts, line: GroupLine) -> common_pb2.Group | None:
    """The group behind a line, from memory, from the queue or from its batch file; None when the group is not kept."""
    if line.group_id in parts.run.board.open:
        return group_to(parts.run.board.open[line.group_id])
    if line.state == "queued":
        payload = await parts.store.payload(line.group_id)
        return None if payload is None else parts.codec.decode(payload)
    if line.step < 0 and line.state != POISON:
        return None
    try:
        payloads = await parts.records.files.payloads_with(line.step)
    except NotFound:
        return None  # removed, because no checkpoint can ask for the batch
    groups = (parts.codec.decode(payload) for payload in payloads)
    return next((group for group in groups if group.group_id == line.group_id), None)


def _live(parts: RunParts) -> Iterator[LiveGroup]:
    return live_groups(parts.run.board, parts.assigner.assigned)
