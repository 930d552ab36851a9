"""The end of a run as the launcher sees it: the learner is awaited, and nobody stops looking for frozen processes."""

from pathlib import Path
from typing import Any

from sluice.config.schema import Config
from sluice.launch.run import Run
from sluice.v1 import coordinator_pb2 as pb


class Stub:
    """All parts of a run at once: the run is finished, and the learner leaves when it is killed."""

    def __init__(self) -> None:
        self.known = {"learner"}
        self.looks = 0

    async def status(self) -> pb.GetStatusResponse:
        learner = pb.ServiceStatus(service_id="learner", heartbeat_age_s=10.0 * self.looks)
        return pb.GetStatusResponse(state=pb.RUN_STATE_FINISHED, services=[learner])

    def services(self, heartbeat_ages_s: dict[str, float], *, asked_s: float) -> None:
        self.looks += 1

    async def left(self, name: str, *, within_s: float) -> bool:
        assert name == "learner"
        return self.looks == 4

    @property
    def client(self) -> "Stub":
        return self

    async def follow_load(self, *_: Any, **__: Any) -> None:
        pass

    def places(self) -> list[pb.Place]:
        return []

    async def report_places(self, places: list[pb.Place]) -> None:
        pass

    def update(self, status: pb.GetStatusResponse) -> None:
        pass


async def test_a_learner_that_is_frozen_when_all_is_trained_is_still_looked_for() -> None:
    stub: Any = Stub()
    config = Config.model_validate({"model": {"path": "m"}, "data": {"train_files": ["mixadd3:train"]}})
    run = Run(config=config, run_dir=Path("unused"), view=stub)
    run._plane = run._keeper = run._frozen = run._fleet = stub
    assert await run._watch_status() == (0, "")
    assert stub.looks == 4
