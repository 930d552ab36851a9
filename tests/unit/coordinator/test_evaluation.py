"""Evaluations beside what fails: samples without a grade are counted apart and never NaN, rollouts that fail are left out."""

import dataclasses
import json
import math
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np
import pytest

from services.coordinator.groups.grading import Grading
from services.coordinator.run.evaluation import Evaluated, Evaluator, HeldOut
from services.coordinator.state.evaluation_result import EvaluationResult
from services.coordinator.state.evaluation_scores import by_prompt
from services.coordinator.state.group import Reward, Sample
from services.coordinator.state.member import Member, Role
from services.coordinator.state.ports import WrongAnswer
from sluice.config.evaluation_sets import evaluation_sets
from sluice.config.schema.eval import DEFAULT_SET
from sluice.errors import Expired, InvalidRequest, Overloaded, SluiceError, Unavailable
from sluice.run_dir.durable import append_line
from sluice.telemetry.traces.context import TraceContext, current, new_trace
from sluice.telemetry.traces.feed import SpanFeed
from sluice.telemetry.traces.span import SpanRecord
from sluice.telemetry.traces.tracer import OFF, Tracer
from tests.unit.coordinator.fakes import FakePrompt, FakeRewards, FakeRollouts, Stage, make_config

LOST = math.nan
STEP = new_trace()
"""The trace of the step that made version 3."""


class PartlyAway(FakeRewards):
    """Gives no grade where the accuracy is NaN."""

    async def score(self, *args: Any, **keywords: Any) -> list[Reward]:
        rewards = (await super().score(*args, **keywords))[: len(keywords["samples"])]
        return [
            dataclasses.replace(reward, status="timeout", detail="too slow") if math.isnan(reward.acc) else reward
            for reward in rewards
        ]


class PartlyBroken(FakeRollouts):
    """Answers of some rollouts are the error that stands beside the rollout's name."""

    def __init__(self, broken: dict[str, Exception]) -> None:
        super().__init__()
        self.broken = broken
        self.asked: list[str] = []

    async def generate(self, member: Member, **keywords: Any) -> AsyncIterator[Sample]:
        self.asked.append(member.service_id)
        if member.service_id in self.broken:
            raise self.broken[member.service_id]
        async for sample in super().generate(member, **keywords):
            yield sample


async def evaluate(
    acc: dict[str, list[float]],
    *,
    n: int = 4,
    rollouts: FakeRollouts | None = None,
    fleet: int = 1,
    timeout_s: float = 60.0,
) -> EvaluationResult:
    return (await evaluated(acc, n=n, rollouts=rollouts, fleet=fleet, timeout_s=timeout_s)).result


async def evaluated(
    acc: dict[str, list[float]],
    *,
    n: int = 4,
    rollouts: FakeRollouts | None = None,
    fleet: int = 1,
    timeout_s: float = 60.0,
    name: str = "",
    tracer: Tracer = OFF,
    **settings: Any,
) -> Evaluated:
    stage = Stage(
        make_config(eval__timeout_s=timeout_s),
        rewards=PartlyAway(acc=acc),
        rollouts=rollouts or FakeRollouts(),
        tracer=tracer,
    )
    stage.run.steps.note(3, STEP)
    for place in range(fleet):
        stage.add_member(Role.ROLLOUT, f"rollout-{place}", version=3)
    stage.progress.version = stage.fleet.of(Role.ROLLOUT)[0].version
    grading = Grading(config=stage.config, fleet=stage.fleet, rewards=stage.rewards, clock=stage.clock)
    prompts = [FakePrompt(prompt_id=name) for name in acc]
    config = make_config(**(settings or {"data__val_files": ["mixadd3:fresh"]}))
    sets = [HeldOut(settings=one, prompts=prompts) for one in evaluation_sets(config)]
    evaluator = Evaluator(stage.run, rollouts=stage.rollouts, grading=grading, sets=sets)
    return await evaluator.evaluate(name, prompts=len(prompts), n=n)


@pytest.mark.parametrize(
    ("accs", "avg", "passed"),
    [
        ([[1, 0], [0, 0]], 0.25, 0.5),
        ([[1, LOST], [0, 0]], 0.5, 0.5),
        ([[1, 0], [LOST, LOST]], 0.5, 1.0),
        ([[LOST, 0, 1, 1], [LOST, LOST, LOST, 0]], 1 / 3, 0.5),
        ([[0.5]], 0.5, 1.0),
    ],
)
def test_accuracies_are_those_of_the_graded_samples(accs: list[list[float]], avg: float, passed: float) -> None:
    means, passes = by_prompt(np.array(accs))
    assert (means.mean(), passes.mean()) == pytest.approx((avg, passed))


async def test_an_evaluation_is_one_trace_with_a_span_for_each_drawing_that_its_calls_stand_below() -> None:
    spans: list[SpanRecord] = []
    carried: dict[str, TraceContext | None] = {}

    class Kept:
        def write(self, written: Iterable[SpanRecord]) -> None:
            spans.extend(written)

        def close(self) -> None:
            pass

    class Placed(PartlyBroken):
        async def generate(self, member: Member, *, request_id: str, **keywords: Any) -> AsyncIterator[Sample]:
            carried[request_id] = current()
            async for sample in super().generate(member, request_id=request_id, **keywords):
                yield sample

    async def traced(*, fleet: int = 1, fails: dict[str, Exception] | None = None, ratio: float = 1.0) -> None:
        spans.clear(), carried.clear()
        tracer = Tracer(SpanFeed(Kept, flush_s=0.0), run="run-1", ratio=ratio)
        try:
            await evaluated({"a": [1, 0], "b": [0, 0]}, n=2, rollouts=Placed(fails or {}), fleet=fleet, tracer=tracer)
        finally:
            tracer.close(within_s=10.0)
        assert current() is None

    await traced()
    *drawings, root = spans
    assert (root.name, root.parent_id, root.links, root.fault) == ("sluice.evaluation", "", [STEP], "")
    named = {"set": DEFAULT_SET, "prompts": 2, "ungraded": 0}
    assert {f"sluice.evaluation.{name}": value for name, value in named.items()}.items() <= root.attributes.items()
    assert (root.attributes["sluice.policy.version"], root.attributes["sluice.acc_mean"]) == (3, 0.25)
    assert {(span.name, span.parent_id) for span in drawings} == {("sluice.evaluation.prompt", root.place.span_id)}
    assert set(carried.values()) == {span.place for span in drawings}
    assert len(drawings) == len(carried) == 4, "two prompts, drawn and greedy"

    await traced(ratio=1e-9)
    assert ([span.name for span in spans], set(carried.values())) == (["sluice.evaluation"], {None})

    with pytest.raises(InvalidRequest):
        await traced(fails={"rollout-0": InvalidRequest("no")})
    assert spans[-1].fault == "InvalidRequest: no"

    await traced(fleet=2, fails={"rollout-0": Unavailable("away")})
    root = spans[-1]
    assert (root.attributes["sluice.rollout"], root.fault) == ("rollout-1", ""), "the one that drew what is counted"


async def test_a_sample_without_a_grade_is_counted_and_is_in_no_accuracy() -> None:
    result = await evaluate({"a": [1, LOST, 0, 0], "b": [LOST] * 4, "c": [1, 1, 1, 1]})
    assert (result.avg_at_n, result.pass_at_n) == pytest.approx((2 / 3, 1.0))
    assert result.ungraded == 6  # one of a, four of b, and b's greedy completion, whose grade is b's first
    assert result.greedy == 1.0
    assert "6 samples not graded" in str(result)
    line = json.loads(json.dumps(result.to_line(), allow_nan=False))
    assert EvaluationResult.from_line(line) == result


async def test_an_evaluation_without_any_grade_fails_and_says_why() -> None:
    with pytest.raises(SluiceError, match="none of the 8 samples could be graded: timeout 'too slow'"):
        await evaluate({"a": [LOST] * 4, "b": [LOST] * 4})


async def test_without_a_graded_greedy_completion_there_is_no_greedy_accuracy() -> None:
    result = await evaluate({"a": [LOST, 1, 0, 0]})
    assert result.greedy is None
    assert "greedy" not in str(result)
    assert json.dumps(result.to_line(), allow_nan=False)


@pytest.mark.parametrize(
    "errors",
    [
        (InvalidRequest("no"), InvalidRequest("no")),
        (WrongAnswer("nonsense"), InvalidRequest("no")),
        (SluiceError("short"), SluiceError("short"), InvalidRequest("no"), WrongAnswer("nonsense"), Overloaded("full")),
    ],
)
async def test_an_evaluation_ends_on_the_one_rollout_that_answers(errors: tuple[SluiceError, ...]) -> None:
    rollouts = PartlyBroken({f"rollout-{place}": error for place, error in enumerate(errors)})
    result = await evaluate({"a": [1, 0, 0, 0]}, rollouts=rollouts, fleet=len(errors) + 1)
    assert result.avg_at_n == 0.25


async def test_an_evaluation_that_every_rollout_refuses_ends_with_the_refusal() -> None:
    rollouts = PartlyBroken({f"rollout-{place}": InvalidRequest("no") for place in range(3)})
    with pytest.raises(InvalidRequest, match="no"):
        await evaluate({"a": [1, 0, 0, 0]}, rollouts=rollouts, fleet=3)
    assert set(rollouts.asked) == {"rollout-0", "rollout-1", "rollout-2"}


async def test_an_evaluation_whose_only_rollout_dies_ends_at_its_limit() -> None:
    rollouts = PartlyBroken({"rollout-0": Unavailable("gone")})
    with pytest.raises(Expired, match=r"not done after eval\.timeout_s"):
        await evaluate({"a": [1, 0, 0, 0], "b": [1, 0, 0, 0]}, rollouts=rollouts, timeout_s=0.05)


async def test_a_rollout_that_fails_alone_is_asked_as_often_as_a_group_would_be() -> None:
    rollouts = PartlyBroken({"rollout-0": SluiceError("short")})
    with pytest.raises(SluiceError, match="short"):
        await evaluate({"a": [1]}, n=1, rollouts=rollouts)
    assert len(rollouts.asked) >= make_config().coordinator.max_attempts


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, [1.0, math.nan], {"deep": [{"er": math.inf}]}, "\ud83d"]
)
def test_every_line_of_a_run_is_strict_json(tmp_path: Any, value: object) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"kind": "step", "loss": value, "fine": 1.5})
    line = json.loads(path.read_bytes().decode("utf-8"), parse_constant=pytest.fail)
    assert line["fine"] == 1.5
    assert line["loss"] == value or value not in (line["loss"], "\ud83d")
