"""A learner on two machines that an engine has placed: nothing typed, one machine's death is one restart, stale rounds."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from services.learner.distributed.meeting import Meeting, Place, meet
from sluice.config.schema import LaunchConfig
from sluice.errors import Expired
from sluice.launch.commands import service_command
from sluice.launch.engines.local import LocalEngine
from sluice.launch.keeper import Keeper
from sluice.launch.machines import Machines
from sluice.launch.processes import Child
from sluice.testing.fakes import FakeCoordinator
from tests.integration.tiny_run import serving_a_tiny_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@contextlib.asynccontextmanager
async def _kept(fake: FakeCoordinator, address: str, said: list[str]) -> AsyncIterator[Keeper]:
    """A keeper of both machines, placed here as an engine places them on nodes."""
    launch = LaunchConfig(engine="ray", learner_nnodes=2)
    config = fake.config.model_copy(update={"launch": launch})

    async def is_over() -> bool:
        return fake.end <= fake.ready

    async def registered() -> set[str]:
        return {"learner"} if fake.registrations else set()

    keeper = Keeper(
        launch=launch,
        log_dir=fake.run_dir / "logs",
        say=said.append,
        is_over=is_over,
        registered=registered,
        engine=LocalEngine(),
    )
    keeper.keep(service_command(config, "learner", index=0, coordinator=address, run_id="run"))
    try:
        yield keeper
    finally:
        await keeper.stop(last="", at_once=asyncio.Event())


def _rank_of(task: object) -> psutil.Process:
    assert isinstance(task, Child)
    children = psutil.Process(task.process.pid).children(recursive=True)
    (rank,) = (child for child in children if child.cmdline()[1:5] == ["-P", "-u", "-m", "services.learner"])
    return rank


async def test_a_killed_machine_costs_one_restart_and_the_run_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    async with serving_a_tiny_run(tmp_path, checkpoint_every_steps=1) as (fake, address):
        fake.ready = 1
        async with _kept(fake, address, said) as keeper:
            await fake.until(lambda: len(fake.checkpoints) == 1)
            machines = keeper.child("learner")
            assert isinstance(machines, Machines)
            victim = _rank_of(machines.tasks[1])
            assert (victim.environ()["RANK"], victim.environ()["WORLD_SIZE"]) == ("1", "2")
            victim.kill()
            await fake.until(lambda: len(fake.registrations) == 2)
            await fake.allow(ready=2, end=2)
            assert await keeper.left("learner", within_s=60.0)
            keeper.failed.cancel()
    assert [registration.service_id for registration in fake.registrations] == ["learner", "learner"]
    assert fake.registrations[1].version.number == 1
    assert [commit.version.number for commit in fake.commits] == [1, 2]
    assert len(fake.meetings) == 2, "each start met under a name of its own"
    assert [text for text in said if "restart" in text] == ["learner ended with code 1; restart 1 of 3"]
    assert said[0].startswith("learner-1 on ")
    assert "serving" in (fake.run_dir / "logs" / "learner.log").read_text()
    assert "failed (exitcode: -9)" in (fake.run_dir / "logs" / "learner-1.log").read_text()


class Board(dict[str, str]):
    """A coordinator's memory of meeting points."""

    def of(self, round_name: str) -> Callable[..., str]:
        def board(endpoint: str, *, wait_s: float = 0.0) -> str:  # answers at once, as a coordinator of an older Sluice
            if endpoint:
                self[round_name] = endpoint
            return self.get(round_name, "")

        return board


def test_machines_of_one_round_meet_and_a_machine_of_a_former_round_meets_nobody() -> None:
    board = Board()
    place = Place(round_name="new", number=0, machines=3, timeout_s=30.0)

    def come(place: Place) -> Meeting:
        return meet(place, board.of(place.round_name), host="127.0.0.1")

    with ThreadPoolExecutor(4) as threads:
        stale = threads.submit(come, replace(place, round_name="old", number=1, timeout_s=1.0))
        came = [threads.submit(come, replace(place, number=number)) for number in (2, 0, 1)]
        endpoints = {each.result(timeout=30).endpoint for each in came}
        assert endpoints == {board["new"]}
        assert list(board) == ["new"]
        with pytest.raises(Expired, match=r"waited 1 s to hear from the coordinator where the first machine is"):
            stale.result(timeout=30)
        # Even one that hears of the new round's store, by whatever mistake, is not taken for the new round's machine.
        board["old"] = board["new"]
        with pytest.raises(Expired, match=r"machine 1 of the learner, on .* waited 0.1 s for all other machines"):
            come(replace(place, round_name="old", number=1, timeout_s=0.1))
        with pytest.raises(Expired, match=r"waited 0.1 s for machine 1, 2 of its 3 machines"):
            come(replace(place, round_name="alone", timeout_s=0.1))


def test_a_first_machine_that_cannot_be_reached_is_named_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.learner.distributed.meeting.CONNECT_S", 0.2)
    place = Place(round_name="r", number=1, machines=2, timeout_s=5.0)
    with pytest.raises(
        Expired, match=r"did not reach the first machine at 127.0.0.1:1 within 0.2 s .*network.advertise"
    ):
        meet(place, lambda _, **__: "127.0.0.1:1", host="127.0.0.1")
