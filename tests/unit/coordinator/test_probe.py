"""Who is let in and who is found out by comparing greedy completions."""

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import Sample, Span
from services.coordinator.state.member import Member, Role, State
from services.coordinator.weights.prober import ProbeAnswer, Prober, difference_nats
from sluice.errors import NotReady, SluiceError, TransferError
from sluice.policy_version import PolicyVersion
from tests.unit.coordinator.fakes import FakePrompts, make_config

V3 = PolicyVersion(lineage="a", number=3)
ENGINE = "vllm 1 on cpu"
GOOD, ODD = (-0.5, -0.25, -1.0), (-0.5, -0.9, -1.0)


@dataclass
class Answers:
    """Rollouts whose greedy completion is tokens 1, 2, 3 with the log-probabilities set here."""

    logprobs: dict[str, tuple[float, ...]] = field(default_factory=dict)
    failures: dict[str, SluiceError] = field(default_factory=dict)
    stamped: PolicyVersion = V3
    asked: list[str] = field(default_factory=list)

    async def generate(self, member: Member, **request: Any) -> AsyncIterator[Sample]:
        assert request["sampling"].temperature == 0
        assert request["required_version"] == V3
        self.asked.append(member.service_id)
        if member.service_id in self.failures:
            raise self.failures[member.service_id]
        logprobs = self.logprobs.get(member.service_id, GOOD)
        if not logprobs:
            return
        yield Sample(
            index=0,
            token_ids=np.arange(1, len(logprobs) + 1, dtype=np.int32),
            logprobs=np.array(logprobs, np.float32),
            spans=(Span(version=self.stamped, start=0, end=len(logprobs)),),
            finish_reason="length",
            text="",
            rollout_id=member.service_id,
            seed=0,
        )


@dataclass
class Scene:
    answers: Answers = field(default_factory=Answers)
    fleet: Fleet = field(default_factory=Fleet)

    def __post_init__(self) -> None:
        prompt, _ = FakePrompts().next("")
        config = make_config(model__dtype="float32")
        self.prober = Prober(config=config, fleet=self.fleet, rollouts=self.answers, prompt=prompt)

    def rollout(self, name: str, *, ready: bool = False, engine: str = ENGINE) -> Member:
        made = Member(
            service_id=name,
            role=Role.ROLLOUT,
            address="-",
            incarnation=name,
            capacity=8,
            last_beat_s=0.0,
            engine=engine,
            state=State.READY if ready else State.SYNCING,
            version=V3 if ready else None,
        )
        self.fleet.register(made)
        return made


async def test_the_first_of_its_kind_is_only_checked_by_itself() -> None:
    scene = Scene()
    scene.rollout("other kind", ready=True, engine="transformers 5 on cpu")
    assert await scene.prober.check(scene.rollout("new"), V3) == []
    assert scene.answers.asked == ["new"]


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        (Answers(logprobs={"new": ()}), "brought no completion"),
        (Answers(logprobs={"new": (-0.5, math.nan)}), "not finite"),
        (Answers(stamped=PolicyVersion(lineage="a", number=2)), "stamped version 2 of lineage a"),
    ],
)
async def test_an_answer_that_is_wrong_by_itself_is_refused(answers: Answers, fault: str) -> None:
    scene = Scene(answers)
    with pytest.raises(TransferError, match=fault):
        await scene.prober.check(scene.rollout("new"), V3)


async def test_one_against_one_refuses_the_newcomer_and_names_both() -> None:
    scene = Scene(Answers(logprobs={"new": ODD}))
    scene.rollout("old", ready=True)
    with pytest.raises(TransferError, match=r"new: .* 0.65 nats from that of old"):
        await scene.prober.check(scene.rollout("new"), V3)


async def test_the_majority_is_right_and_finds_the_odd_one_out() -> None:
    scene = Scene(Answers(logprobs={"first": ODD}))
    first, second, third = (scene.rollout(name) for name in ("first", "second", "third"))
    assert await scene.prober.check(first, V3) == []
    first.version = V3
    scene.fleet.set_state(first, State.READY)
    with pytest.raises(TransferError, match="differs"):
        await scene.prober.check(second, V3)
    assert await scene.prober.check(third, V3) == [first]
    assert await scene.prober.check(second, V3) == [first]


async def test_answers_within_the_tolerance_agree() -> None:
    scene = Scene(Answers(logprobs={"new": tuple(value + 5e-4 for value in GOOD)}))
    scene.rollout("old", ready=True)
    assert await scene.prober.check(scene.rollout("new"), V3) == []


async def test_another_rollout_that_does_not_answer_is_no_obstacle() -> None:
    scene = Scene(Answers(failures={"old": NotReady("version a3 is required, this rollout holds a4")}))
    scene.rollout("old", ready=True)
    assert await scene.prober.check(scene.rollout("new"), V3) == []
    assert scene.answers.asked == ["new", "old"]


async def test_each_version_is_asked_about_anew() -> None:
    scene = Scene()
    old = scene.rollout("old", ready=True)
    await scene.prober.check(scene.rollout("new"), V3)
    scene.prober._rounds[ENGINE].version = PolicyVersion(lineage="a", number=2)
    await scene.prober.check(scene.rollout("newer"), V3)
    assert scene.answers.asked == ["new", old.service_id, "newer", old.service_id]


def test_the_difference_counts_up_to_the_first_other_token() -> None:
    def answer(tokens: list[int], logprobs: list[float]) -> ProbeAnswer:
        return ProbeAnswer(token_ids=np.array(tokens, np.int32), logprobs=np.array(logprobs, np.float32))

    one = answer([1, 2, 3], [-0.5, -0.7, -0.1])
    assert difference_nats(one, answer([1, 2, 3], [-0.5, -0.7, -0.4])) == pytest.approx(0.3)
    assert difference_nats(one, answer([1, 9, 3], [-0.5, -0.6, -9.0])) == pytest.approx(0.1)
    assert difference_nats(one, answer([1, 2], [-0.5, -0.7])) == 0
