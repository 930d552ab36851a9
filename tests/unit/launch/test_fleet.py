"""The number of rollouts as the launcher carries it out: asked again after a failed call, never stuck at one it cannot have."""

from typing import Any

import pytest

from sluice.config.schema import Config
from sluice.errors import LaunchError, NotReady, Unavailable
from sluice.launch import deployments
from sluice.launch.autoscale import WINDOW_S, WINDOW_STEPS
from sluice.launch.commands import Command, GpuShare
from sluice.launch.fleet import Fleet
from sluice.v1 import coordinator_pb2 as pb


class Stub:
    """Keeper, GPUs and coordinator at once: `room` rollouts can be kept, and calls fail while `away`."""

    def __init__(self, room: int) -> None:
        self.room, self.away, self.kept, self.asked = room, False, {"rollout-0"}, list[int]()
        self.fleet: Fleet | None = None
        """Who carries out what is asked for while the call waits for that."""

    def names(self, role: str) -> set[str]:
        return self.kept

    def keep(self, command: Command, *, requested: bool = False) -> None:
        self.kept.add(command.name)

    def share(self, role: str, name: str) -> GpuShare:
        if len(self.kept) >= self.room:
            raise LaunchError(f"{name} is not started: no GPU is free")
        return GpuShare()

    async def scale(self, role: str, replicas: int) -> None:
        if self.away:
            raise Unavailable("coordinator: gone")
        self.asked.append(replicas)
        if self.fleet is not None and (refused := await self.fleet.scale(role, replicas)):
            raise NotReady(f"scale: {refused}")


def make(stub: Any, said: list[str]) -> Fleet:
    tree = {"model": {"path": "m"}, "data": {"train_files": ["mixadd3:train"]}}
    config = Config.model_validate(tree | {"launch": {"rollout_replicas": {"min": 1, "max": 8}}})
    return Fleet(
        config=config,
        run_id="r",
        coordinator="c:1",
        keeper=stub,
        gpus=stub,
        say=said.append,
        check_only=False,
        evaluate_only=False,
    )


class Time:
    """Seconds of a run whose learner idles."""

    def __init__(self, fleet: Fleet, stub: Any) -> None:
        self.fleet, self.stub, self.now_s = fleet, stub, 0.0

    async def windows(self, number: int) -> None:
        for _ in range(number * (int(WINDOW_S) + 2)):
            for _ in range(WINDOW_STEPS):
                self.fleet.step(pb.WatchEventsResponse(values={"learner/wait_s": 3.0, "step/wall_s": 10.0}))
            ready = [
                pb.ServiceStatus(service_id=name, role=pb.SERVICE_ROLE_ROLLOUT, state=pb.SERVICE_STATE_READY, running=7)
                for name in self.stub.kept
            ]
            status = pb.GetStatusResponse(state=pb.RUN_STATE_RUNNING, services=ready)
            try:
                await self.fleet.follow_load(status, self.stub, now_s=self.now_s)
            except Unavailable:
                assert self.stub.away
            self.now_s += 1.0


async def test_a_number_that_cannot_be_had_is_given_up_and_the_rule_goes_on() -> None:
    stub, said = Stub(room=2), list[str]()
    fleet = make(stub, said)
    time = Time(fleet, stub)
    await time.windows(2)
    assert stub.asked == [2]
    await fleet.scale("rollout", 2)
    await time.windows(2)
    assert stub.asked == [2, 3]
    assert await fleet.scale("rollout", 3) == "rollout-2 is not started: no GPU is free"
    assert said[-1] == "scale rollout 3: rollout-2 is not started: no GPU is free"
    await time.windows(5)
    assert stub.asked == [2, 3]
    stub.kept.discard("rollout-1")  # given up by its keeper
    await time.windows(3)
    assert stub.asked == [2, 3, 2]


async def test_what_the_launcher_itself_has_refused_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(owner: str, role: str, replicas: int) -> str:
        raise LaunchError("rollout: `kubectl scale deployment r-rollout --replicas=2` is left to you: no route")

    monkeypatch.setenv(deployments.OWNER, "r")
    monkeypatch.setattr(deployments, "scale", no_answer)
    stub, said = Stub(room=8), list[str]()
    stub.fleet = make(stub, said)
    await Time(stub.fleet, stub).windows(4)
    assert stub.asked == [2]
    assert [line for line in said if "left to you" in line] == [said[-1]]


async def test_a_change_that_the_coordinator_did_not_hear_is_asked_for_again() -> None:
    stub = Stub(room=8)
    time = Time(make(stub, []), stub)
    stub.away = True
    await time.windows(3)
    assert stub.asked == []
    stub.away = False
    await time.windows(1)
    assert stub.asked == [2]


async def test_a_request_ends_the_following_of_the_load() -> None:
    stub, said = Stub(room=8), list[str]()
    fleet = make(stub, said)
    await fleet.scale("rollout", 4)
    assert stub.kept == {f"rollout-{index}" for index in range(4)}
    await Time(fleet, stub).windows(4)
    assert stub.asked == []
    assert said == ["4 rollouts by request: from now on their number follows requests alone"]


@pytest.mark.parametrize("role", ["rollout", "reward"])
async def test_fewer_replicas_end_those_with_the_highest_numbers(role: str) -> None:
    stub = Stub(room=8)
    stub.kept = {f"{role}-{index}" for index in range(3)}
    ended = list[str]()

    async def end(name: str) -> None:
        ended.append(name)

    stub.end, stub.give_back = end, lambda name: None  # type: ignore[attr-defined]
    await make(stub, []).scale(role, 1)
    assert ended == [f"{role}-1", f"{role}-2"]
