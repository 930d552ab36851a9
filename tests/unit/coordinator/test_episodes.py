"""Episodes of a group, with fakes: turns, budgets, and every fault of environment and rollout; the ledger closes each time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from services.coordinator.groups.grading import Grading
from services.coordinator.run.evaluation import Evaluator, HeldOut
from services.coordinator.state.group import Sample
from services.coordinator.state.group_trace import attempt_of
from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.ports import Sampling, WrongAnswer
from sluice.config.evaluation_sets import evaluation_sets
from sluice.errors import Expired, InvalidRequest, NotFound, Overloaded, SluiceError, Unavailable
from sluice.policy_version import PolicyVersion
from sluice.telemetry.traces.context import TraceContext, current
from sluice.telemetry.traces.feed import SpanFeed
from sluice.telemetry.traces.span import SpanRecord
from sluice.telemetry.traces.tracer import Tracer
from sluice.testing import assert_eventually
from tests.unit.coordinator.fake_episodes import EpisodePrompt, EpisodeStage, FakeChat, FakeEnvironments
from tests.unit.coordinator.fakes import FakeRollouts, make_config, make_sample, running, settle

FIRST = "r-0000000"


@asynccontextmanager
async def played(stage: EpisodeStage, *, rollouts: int = 1) -> AsyncIterator[EpisodeStage]:
    """Runs the stage; afterwards no episode is open and every place is free."""
    for place in range(rollouts):
        stage.add_member(Role.ROLLOUT, f"rollout-{place}", version=0)
    async with running(stage):
        for _ in range(4):
            await settle()
        yield stage
    for _ in range(4):
        await settle()
    assert not stage.environments.opened, "an episode that was opened is closed"
    assert all(member.outstanding == 0 for member in stage.fleet.members.values())


def once(call: str, error: Exception, *, at: int = 0) -> Callable[[str, str, int], Exception | None]:
    """Fails the call number `at` of a kind, on whatever server."""
    return lambda service_id, name, count: error if name == call and count == at else None


class Turns(FakeRollouts):
    """Raises `broken` for a request by name, once; records which rollout had which request."""

    def __init__(self, **broken: Any) -> None:
        super().__init__()
        self.broken: dict[str, Exception] = broken
        self.on: dict[str, str] = {}

    async def generate(self, member: Member, *, request_id: str, **keywords: Any) -> AsyncIterator[Sample]:
        self.on[request_id] = member.service_id
        if (error := self.broken.pop(request_id, None)) is not None:
            raise error
        async for sample in super().generate(member, request_id=request_id, **keywords):
            yield sample


class Bounded(FakeRollouts):
    """Cuts a turn at max_tokens."""

    async def generate(self, member: Member, *, sampling: Sampling, **keywords: Any) -> AsyncIterator[Sample]:
        async for sample in super().generate(member, sampling=sampling, **keywords):
            most = sampling.max_tokens
            if len(sample.token_ids) > most:
                short = make_sample(sample.index, version=0, tokens=most, seed=sample.seed)
                sample = replace(short, finish_reason="length")
            yield sample


async def test_a_turn_is_a_span_below_its_try_and_calls_carry_its_place_or_the_groups() -> None:
    spans: list[SpanRecord] = []

    class Kept:
        def write(self, written: Iterable[SpanRecord]) -> None:
            spans.extend(written)

        def close(self) -> None:
            pass

    class Placed(Turns):
        carried: ClassVar[dict[str, TraceContext | None]] = {}

        async def generate(self, member: Member, *, request_id: str, **keywords: Any) -> AsyncIterator[Sample]:
            self.carried[request_id] = current()
            async for sample in super().generate(member, request_id=request_id, **keywords):
                yield sample

    rollouts = Placed(**{f"{FIRST}.0.1.1": Unavailable("gone")})
    tracer = Tracer(SpanFeed(Kept, flush_s=0.0), run="run-1")
    async with played(EpisodeStage(rollouts=rollouts, tracer=tracer), rollouts=2) as stage:
        group = stage.groups[0]
    tracer.close(within_s=10.0)
    assert current() is None
    turns = [span for span in spans if span.name == "sluice.turn" and span.place.trace_id == group.trace_id]
    first, second = (attempt_of(group.trace_id, attempt) for attempt in group.attempts)
    assert first is not None
    assert second is not None
    below = Counter(span.parent_id for span in turns)
    assert below == {first.span_id: 4, second.span_id: 1}, "two turns each, of which one is sampled again"
    assert [span.attributes["error.type"] for span in turns if "error.type" in span.attributes] == ["Unavailable"]
    assert {rollouts.carried[f"{FIRST}.{index}.1.0"] for index in (0, 1)} < {span.place for span in turns}


async def test_a_group_of_episodes_is_kept_with_turns_prompt_and_given_scores() -> None:
    async with played(EpisodeStage()) as stage:
        assert len(stage.board.queued) == 8
        group = stage.groups[0]
    assert group.prompt.token_ids.tolist() == [ord("g"), ord("o")]
    sample = group.samples[1]
    assert [(turn.start, turn.end) for turn in sample.turns] == [(0, 4), (6, 10)]
    assert [(span.start, span.end) for span in sample.spans] == [(0, 4), (6, 10)]
    assert sample.token_ids.tolist() == [1] * 4 + [7] * 2 + [1] * 4
    assert (sample.finish_reason, sample.score.score, sample.sampled_tokens) == ("stop", 1.0, 8)
    assert sample.environment_version == "1", "the ledger says which code scored"
    assert stage.board.queued[FIRST].tokens == 16
    [attempt] = group.attempts
    assert (attempt.asked, attempt.samples, attempt.tokens, attempt.fault) == (2, 2, 16, "")
    assert len(stage.environments.seeds) == stage.environments.calls["open"] / 2, "one seed a group"
    turns = {turn.seed for one in group.samples.values() for turn in one.turns}
    assert len(turns) == 4, "each turn has a seed of its own"
    metrics = stage.conductor.window.metrics(now_s=1, step=0, trained=[])
    assert (metrics["episode/turns_mean"], metrics["episode/observed_mean_tokens"]) == (2, 2)
    assert metrics["episode/restarts"] == 0


@pytest.mark.parametrize(
    ("changes", "turns", "finish", "heard"),
    [
        ({"rollout__max_turns": 2}, 2, "stop", [False, True]),
        (
            {"data__max_response_length": 8},
            2,
            "stop",
            [False, True],
        ),  # eight are sampled, and the last turn ends by itself
        ({"data__max_response_length": 10}, 3, "length", [False, False, True]),
        (
            {"data__max_episode_tokens": 13, "data__max_prompt_length": 2, "data__max_response_length": 10},
            2,
            "length",
            [False, False, True],
        ),  # 2 + 4 + 2 + 4, and 2 more do not fit
    ],
)
async def test_budgets_end_an_episode_and_the_environment_hears_of_it(
    changes: dict[str, Any], turns: int, finish: str, heard: list[bool]
) -> None:
    async with played(EpisodeStage(FakeEnvironments(turns=9), rollouts=Bounded(), **changes)) as stage:
        samples = [stage.groups[0].samples[index] for index in (0, 1)]
        games = len(stage.environments.last) // len(heard)
    assert [(one.finish_reason, len(one.turns), one.score.score) for one in samples] == [
        (finish, turns, 0),
        (finish, turns, 1),
    ]
    assert stage.environments.last.count(True) == games * heard.count(True)


@pytest.mark.parametrize("rewrites", [False, True])
async def test_an_episode_without_room_for_a_turn_ends_by_length_with_a_score(rewrites: bool) -> None:
    """Prompt 2, turn 4, observed 2: the limit leaves room for one turn; where history is rewritten (5 ids) as well."""
    chat = FakeChat()
    chat.rewrites = rewrites
    limit, sampled = (6, 3) if rewrites else (8, 5)
    budgets = {"max_episode_tokens": limit, "max_response_length": sampled, "max_prompt_length": 2}
    changes = {f"data__{name}": value for name, value in budgets.items()}
    stage = EpisodeStage(FakeEnvironments(turns=9), chat=chat, **changes)
    stage.rollouts.tokens = 2 if rewrites else 4
    async with played(stage):
        samples = [stage.groups[0].samples[index] for index in (0, 1)]
    assert [(one.finish_reason, len(one.turns), one.score.score) for one in samples] == [
        ("length", 1, 0),
        ("length", 1, 1),
    ]
    assert all(len(one.token_ids) == one.sampled_tokens for one in samples), "nothing observed at the end"


FAULTS = {
    "dies": (once("step", Unavailable("gone")), "environment"),
    "hangs": (once("step", Expired("no answer")), "environment"),
    "lies": (once("step", WrongAnswer("role 'system'")), "environment_wrong_answer"),
    "refuses a turn": (once("step", InvalidRequest("odd")), "environment"),
    "forgets": (once("step", NotFound("not open")), "environment"),
    "cannot open": (once("open", SluiceError("boom")), "environment"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_episode_begins_again_on_another_server_under_the_group_id(fault: str) -> None:
    fails, _ = FAULTS[fault]
    async with played(EpisodeStage(FakeEnvironments(fails=fails), hosts=2)) as stage:
        assert FIRST in stage.board.queued
        group = next(group for group in stage.groups if group.attempt == 2)
        assert [attempt.asked for attempt in group.attempts] == [2, 1]
        assert [bool(attempt.fault) for attempt in group.attempts] == [True, False]
        lost = 0 if fault == "cannot open" else 4
        assert (group.lost_tokens, stage.store.counters["lost_tokens"]) == (lost, lost)
        assert group.samples[0].turns[0].seed != group.samples[1].turns[0].seed
        assert stage.conductor.window.restarts == (fault != "cannot open")


@pytest.mark.parametrize("fault", ["hangs", "lies", "forgets", "cannot open"])
async def test_a_group_whose_environment_keeps_failing_is_failed_by_name(fault: str) -> None:
    fails, reason = FAULTS[fault]
    error = fails("", "step", 0) or fails("", "open", 0)
    always = lambda service_id, call, count: error if call == ("open" if fault == "cannot open" else "step") else None  # noqa: E731
    stage = EpisodeStage(FakeEnvironments(fails=always), coordinator__max_attempts=2)
    async with played(stage):
        for _ in range(8):
            stage.fleet.end_pauses(now_s=stage.clock.now())
            await stage.clock.advance(200)
            await settle()
        assert stage.store.counters[f"failed:{reason}"] >= 1
        assert stage.store.rows_[0]["fault"]
    if fault in ("hangs", "lies"):
        assert stage.fleet.members["env-0"].health.counts[0] > 0


async def test_a_row_that_every_server_refuses_fails_its_group_at_once() -> None:
    fails = lambda service_id, call, count: InvalidRequest("no such task") if call == "open" else None  # noqa: E731
    async with played(EpisodeStage(FakeEnvironments(fails=fails), hosts=2)) as stage:
        assert stage.store.counters["failed:environment_refused"] >= 1
        assert not stage.rollouts.requests, "no rollout has a place before an environment has one"


async def test_episodes_of_one_group_that_begin_differently_fail_the_group() -> None:
    environments = FakeEnvironments(chat_of=lambda episode_id: "go" + episode_id.split(".")[1])
    async with played(EpisodeStage(environments)) as stage:
        assert stage.store.counters["failed:environment_differs"] >= 1
        assert "'0' and '1'" in stage.store.rows_[0]["fault"] or "'1' and '0'" in stage.store.rows_[0]["fault"]


async def test_a_server_that_pushes_back_is_waited_for_and_no_attempt_is_lost() -> None:
    async with played(EpisodeStage(FakeEnvironments(fails=once("open", Overloaded("full"))))) as stage:
        assert FIRST not in stage.board.queued
        await stage.clock.advance(1)
        await settle()
        await settle()
        assert stage.board.queued[FIRST].attempt == 1


async def test_a_server_that_pushes_back_for_ever_fails_the_group() -> None:
    fails = lambda service_id, call, count: Overloaded("full") if call == "open" else None  # noqa: E731
    stage = EpisodeStage(FakeEnvironments(fails=fails), coordinator__score_wait_s=3.0)
    async with played(stage):
        for _ in range(20):
            await stage.clock.advance(1)
            await settle()
        assert stage.store.counters["failed:environment_overloaded"] >= 1


async def test_places_of_the_environment_are_back_pressure_and_hold_no_engine() -> None:
    environments = FakeEnvironments(gate=asyncio.Event())
    async with played(EpisodeStage(environments, places=3)) as stage:
        member = stage.fleet.members["env-0"]
        assert (member.outstanding, environments.calls["open"]) == (3, 3)
        assert stage.fleet.members["rollout-0"].outstanding == 0, "the engine is free while the environment works"
        assert environments.gate is not None
        environments.gate.set()
        for _ in range(40):
            await settle()
        assert len(stage.board.queued) == 8


@pytest.mark.parametrize("error", [Unavailable("gone"), SluiceError("boom"), WrongAnswer("odd", tokens=3)])
async def test_a_rollout_that_fails_in_a_later_turn_loses_one_turn(error: Exception) -> None:
    rollouts = Turns(**{f"{FIRST}.0.1.1": error})
    async with played(EpisodeStage(rollouts=rollouts), rollouts=2) as stage:
        group = next(group for group in stage.groups if group.group_id == FIRST)
        assert stage.environments.calls["open"] == 2 * len(stage.groups), "no episode began again"
        assert rollouts.on[f"{FIRST}.0.2.1"] != rollouts.on[f"{FIRST}.0.1.0"]
        assert (group.attempt, len(group.samples[0].turns)) == (2, 2)
        assert group.lost_tokens == (3 if isinstance(error, WrongAnswer) else 0)
        assert (stage.fleet.members[rollouts.on[f"{FIRST}.0.1.0"]].state is State.LOST) == isinstance(
            error, Unavailable
        )


async def test_a_turn_goes_on_where_its_prefix_is_cached_unless_that_rollout_has_newer_weights() -> None:
    environments, rollouts = FakeEnvironments(gate=asyncio.Event(), turns=2), Turns()
    async with played(EpisodeStage(environments, rollouts=rollouts), rollouts=3) as stage:
        first = dict(rollouts.on)
        assert len(set(first.values())) == 3
        assert environments.gate is not None
        moved = stage.fleet.members["rollout-0"]
        moved.version, moved.granted = PolicyVersion(lineage="a", number=1), 1
        environments.gate.set()
        for _ in range(8):
            await settle()
    stayed = {name: rollouts.on[name[:-1] + "1"] == on for name, on in first.items() if on != "rollout-0"}
    assert stayed
    assert all(stayed.values())


async def test_turns_aborted_for_newer_weights_use_up_no_attempt() -> None:
    rollouts = Turns()
    rollouts.aborts = {f"{FIRST}.0.1.1"}
    stage = EpisodeStage(rollouts=rollouts)
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0).granted = 1
    async with played(stage, rollouts=0):
        assert stage.board.queued[FIRST].attempt == 1
        assert f"{FIRST}.0.1.1.1" in rollouts.requests
        assert stage.store.counters["lost_tokens"] == 4


async def test_an_episode_that_became_too_old_between_turns_begins_again_on_newer_weights() -> None:
    environments = FakeEnvironments(gate=asyncio.Event())
    async with played(EpisodeStage(environments)) as stage:
        stage.board.next_step = 2
        rollout = stage.fleet.members["rollout-0"]
        rollout.version, rollout.granted = PolicyVersion(lineage="a", number=2), 2
        assert environments.gate is not None
        environments.gate.set()
        for _ in range(8):
            await settle()
        group = next(group for group in stage.groups if group.group_id == FIRST)
        assert group.oldest_version == 2
        assert group.lost_tokens == 8
        assert [attempt.fault[:22] for attempt in group.attempts] == ["the turns of version 0", ""]


async def test_a_batch_waits_for_episodes_by_the_oldest_version_that_they_hold() -> None:
    environments = FakeEnvironments(gate=asyncio.Event())
    async with played(EpisodeStage(environments)) as stage:
        group = stage.board.open[FIRST]
        assert (group.start_version, group.phase.value) == (0, "in_flight")


async def test_a_lease_is_renewed_while_a_turn_is_sampled() -> None:
    environments = FakeEnvironments()
    rollouts = FakeRollouts(gate=asyncio.Semaphore(0))
    stage = EpisodeStage(environments, rollouts=rollouts)
    stage.player._limits = replace(stage.player._limits, lease_s=0.003)
    async with played(stage):
        opened = environments.calls["open"]
        await assert_eventually(lambda: environments.calls["open"] >= opened + 8)
        assert rollouts.gate is not None
        for _ in range(1000):
            rollouts.gate.release()


def evaluator_of(environments: FakeEnvironments, rollouts: FakeRollouts) -> tuple[EpisodeStage, Evaluator]:
    """Two held-out rows and two rollouts with one version."""
    stage = EpisodeStage(environments, rollouts=rollouts)
    for place in range(2):
        stage.add_member(Role.ROLLOUT, f"rollout-{place}", version=3)
    stage.progress.version = stage.fleet.of(Role.ROLLOUT)[0].version
    [settings] = evaluation_sets(make_config(data__val_files=["mixadd3:fresh"]))
    return stage, Evaluator(
        stage.run,
        rollouts=rollouts,
        grading=Grading(config=stage.config, fleet=stage.fleet, rewards=stage.rewards, clock=stage.clock),
        sets=[HeldOut(settings=settings, prompts=[EpisodePrompt(prompt_id="a"), EpisodePrompt(prompt_id="b")])],
        player=stage.player,
    )


async def test_an_evaluation_plays_episodes_on_one_rollout_under_one_version() -> None:
    rollouts = Turns()
    stage, evaluator = evaluator_of(FakeEnvironments(fails=once("step", NotFound("not open"))), rollouts)
    evaluated = await evaluator.evaluate(n=2)
    await settle()
    assert evaluated.result.mean_response_tokens == 8
    assert len(set(rollouts.on.values())) == 1
    assert not stage.environments.opened
    counts = Counter(name.rpartition(".")[2] for name in rollouts.on)
    assert counts["1"] == 6, "a second turn for two samples and a greedy one of two prompts"
    assert np.isfinite(evaluated.result.avg_at_n)


async def test_episodes_of_one_row_that_begin_differently_fail_an_evaluation_by_name() -> None:
    environments = FakeEnvironments(chat_of=lambda episode_id: "go" + episode_id.split(".")[1])
    stage, evaluator = evaluator_of(environments, Turns())
    with pytest.raises(
        SluiceError, match=r"evaluation: .*environment 'game' opened one seed with two chats, '[01]' and"
    ):
        await evaluator.evaluate(n=2)
    await settle()
    assert not stage.environments.opened
