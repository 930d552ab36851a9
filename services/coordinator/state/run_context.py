"""One run in its coordinator's memory: the parts that most rooms need, made once by the app room."""

from dataclasses import dataclass, field

from services.coordinator.state.board import Board
from services.coordinator.state.events import Events
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.places import Places
from services.coordinator.state.progress import Progress
from services.coordinator.state.step_traces import StepTraces
from sluice.clock import Clock, SystemClock
from sluice.config.schema import Config
from sluice.run_dir.full_disk import DiskWaits
from sluice.telemetry.traces.tracer import OFF, Tracer


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """The shared parts of one run. The parts change; the set of parts does not."""

    run_id: str
    config: Config
    clock: Clock
    fleet: Fleet
    board: Board
    progress: Progress
    events: Events
    places: Places
    disk: DiskWaits = field(default_factory=lambda: DiskWaits(clock=SystemClock()))
    """Writers that wait for room: those of the run's records."""
    tracer: Tracer = OFF
    steps: StepTraces = field(default_factory=StepTraces)
    """Where the traces of the newest steps are."""
