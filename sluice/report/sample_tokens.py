"""Groups with the figures of their tokens, from RUN/sample_tokens.jsonl (sluice/run_dir/token_figures.py)."""

import json
from dataclasses import dataclass
from pathlib import Path

from sluice.errors import DataError
from sluice.run_dir.stored_group import StoredGroups
from sluice.run_dir.token_figures import SAMPLE_TOKENS_FILE, TokenFigures, read_line
from sluice.v1 import common_pb2

_HEAD_BYTES = 2_000
"""Where a line's id stands: before the group itself, of which a line that is not wanted is not parsed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptGroup:
    """A group that is kept for people."""

    group: common_pb2.Group
    figures: TokenFigures | None
    """None: the learner told none."""


def kept_group(run_dir: Path, group_id: str) -> KeptGroup | None:
    """Of the newest line that can be read; None where the file, or the group in it, is not there. Raises DataError where all
    lines of the group are damaged, OSError."""
    path, wanted = run_dir / SAMPLE_TOKENS_FILE, f'"group_id":{json.dumps(group_id, ensure_ascii=False)}'.encode()
    if not path.is_file():
        return None
    with path.open("rb") as file:  # a step that was booked again has a second line, with the same group
        lines = [line for line in file if wanted in line[:_HEAD_BYTES]]
    damage: Exception | None = None
    for line in reversed(lines):
        try:
            payload, figures = read_line(json.loads(line))
            return KeptGroup(group=StoredGroups().unpack(payload), figures=figures)
        except (ValueError, KeyError, TypeError) as error:
            damage = error
    if damage is not None:
        raise DataError(f"{path}: the line of group {group_id[:100]} cannot be read: {damage}") from damage
    return None
