"""RUN/prompt_places.json: how many groups were admitted at the newest checkpoints, and the cursor of the next prompt.

For a Redis that forgot: without a place, every prompt of the run is drawn once more to find the next one. Blocking.
"""

import json
from pathlib import Path

import structlog

from sluice.run_dir.durable import write_synced

log = structlog.get_logger(__name__)

PLACES_FILE = "prompt_places.json"
KEPT_PLACES = 64
"""Chosen: a checkpoint may follow every step, and the groups of many batches may have to be generated again."""


def note_place(run_dir: Path, *, admissions: int, cursor: str) -> None:
    """Notes the place; a place that cannot be noted costs time in an accident, and nothing else."""
    try:
        known = [place for place in _places(run_dir) if place[0] < admissions]
        text = json.dumps([*known, (admissions, cursor)][-KEPT_PLACES:])
        write_synced(run_dir / PLACES_FILE, [text.encode()])
    except OSError as error:
        log.warning("prompt_place_not_noted", reason=str(error))


def place_before(run_dir: Path, admissions: int) -> tuple[int, str] | None:
    """The newest noted place with at most so many groups admitted; None without one."""
    return max((place for place in _places(run_dir) if place[0] <= admissions), default=None)


def _places(run_dir: Path) -> list[tuple[int, str]]:
    try:
        return [
            (int(admissions), str(cursor))
            for admissions, cursor in json.loads((run_dir / PLACES_FILE).read_text(encoding="utf-8"))
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        log.warning("prompt_places_unreadable", reason=str(error))
        return []
