"""One run in the memory of its coordinator: what most rooms look at, made once by app.py and handed to all of them."""

from dataclasses import dataclass

from services.coordinator.state.board import Board
from services.coordinator.state.events import Events
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.progress import Progress
from sluice.clock import Clock
from sluice.config.schema import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """The parts are shared and change; which parts they are does not."""

    run_id: str
    config: Config
    clock: Clock
    fleet: Fleet
    board: Board
    progress: Progress
    events: Events
