"""The check before training: what it asks, what it refuses, what it tells."""

import asyncio
import dataclasses
import math
from collections import Counter

import pytest
from structlog.testing import capture_logs

from services.coordinator.groups.step_metrics import StepWindow
from services.coordinator.run.reward_check import AGAIN_AFTER_S, GARBAGE, check_reward
from services.coordinator.state.group import Group, Reward
from services.coordinator.state.member import Role, State
from services.coordinator.state.ports import WrongAnswer
from services.coordinator.wire.messages import group_from, group_to, reward_from
from sluice.errors import ConfigError, Expired, InvalidRequest, Overloaded, Unavailable
from sluice.gold_answers import gold_forms
from sluice.limits import MOST_PARTS
from sluice.v1 import common_pb2
from tests.unit.coordinator.fakes import FakePrompt, Stage, make_config, make_sample


class Grading:
    """Scores texts by a rule of (text, ground truth)."""

    def __init__(self, rule):
        self.rule = rule

    async def score(self, member, *, group_id, prompt, samples, timeout_s):
        return [reward(float(self.rule(sample.text, prompt.ground_truth))) for sample in samples]


def reward(acc, **changed):
    facts = {"status": "ok", "raw_score": acc, "acc": acc, "extracted": "", "shaped_reward": acc}
    return Reward(**{**facts, "overlong_penalty": 0.0, "grader": "mine", "grader_version": "3", **changed})


def prompts(*golds):
    return [FakePrompt(prompt_id=f"p{n}", data_source="d", ground_truth=gold) for n, gold in enumerate(golds)]


async def check(rule, *golds):
    return await check_reward(Stage(make_config()).run, rewards=Grading(rule), prompts=prompts(*golds))


def sound(text, gold):
    return text == f"Answer: {gold}"


@dataclasses.dataclass
class Several:
    """Rewards by name: each scores by its rule, or raises its error."""

    rules: dict
    asked: Counter = dataclasses.field(default_factory=Counter)

    async def score(self, member, **call):
        self.asked[member.service_id] += 1
        rule = self.rules[member.service_id]
        if isinstance(rule, Exception):
            raise rule
        return await Grading(rule).score(member, **call)


def stage_of(rewards):
    stage = Stage(make_config())
    for name in rewards.rules:
        if name not in stage.fleet.members:
            stage.add_member(Role.REWARD, name)
    return stage


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


ERRORS = [InvalidRequest("no"), WrongAnswer("nonsense"), Expired("late"), Unavailable("reset"), Overloaded("full")]


@pytest.mark.parametrize("broken", [*ERRORS, lambda text, gold: False, lambda text, gold: True])
@pytest.mark.parametrize("first", [True, False])
async def test_one_broken_reward_beside_a_sound_one_does_not_end_the_start_and_is_named(broken, first):
    names = ("reward-0", "reward-1") if first else ("reward-1", "reward-0")
    rewards = Several({names[0]: broken, names[1]: sound})
    stage = stage_of(rewards)
    (row,) = await check_reward(stage.run, rewards=rewards, prompts=prompts("1", "2"))
    assert row.gold == 2
    member = stage.fleet.members[names[0]]
    if isinstance(broken, Exception):
        assert member.health.counts == (1, 1)
        return
    assert (member.state, member.reason) == (State.QUARANTINED, member.barred)
    assert "this one not: reward check: grader 'mine' for data_source 'd' scores" in member.reason


async def test_a_reward_whose_grades_are_wrong_gets_no_work_until_a_new_process_takes_its_name():
    rewards = Several({"reward-0": sound, "reward-1": lambda text, gold: False})
    stage = stage_of(rewards)
    await check_reward(stage.run, rewards=rewards, prompts=prompts("1"))
    member = stage.fleet.members["reward-1"]
    for _ in range(3):
        stage.fleet.fail(member, "late", now_s=0.0)
    stage.fleet.end_pauses(now_s=1e6)
    stage.fleet.lose(member, "its link was cut")
    same = stage.add_member(Role.REWARD, "reward-1")
    assert [one.service_id for one in stage.fleet.of(Role.REWARD)] == ["reward-0"]
    assert "this one not" in same.reason
    stage.fleet.lose(same, "killed")
    stage.fleet.register(dataclasses.replace(same, state=State.REGISTERED, incarnation="another", barred=""))
    assert len(stage.fleet.of(Role.REWARD)) == 2


@pytest.mark.parametrize("error", [Expired("late"), WrongAnswer("nonsense"), Overloaded("full")])
async def test_a_reward_alone_that_gives_no_grades_is_asked_again_before_the_start_fails(error):
    rewards = Several({"reward-0": error})
    stage = stage_of(rewards)
    checking = asyncio.create_task(check_reward(stage.run, rewards=rewards, prompts=prompts("1")))
    for _ in range(3):
        await settle()
        await stage.clock.advance(AGAIN_AFTER_S)
    with pytest.raises(type(error), match=str(error)):
        await checking
    assert rewards.asked["reward-0"] == 3
    rewards.rules["reward-0"] = InvalidRequest("unknown data_source")
    with pytest.raises(InvalidRequest):
        await check_reward(stage.run, rewards=rewards, prompts=prompts("1"))
    assert rewards.asked["reward-0"] == 4, "a refusal is final"


async def test_a_reward_that_dies_in_the_check_may_come_back():
    rewards = Several({"reward-0": Unavailable("killed")})
    stage = stage_of(rewards)
    checking = asyncio.create_task(check_reward(stage.run, rewards=rewards, prompts=prompts("1")))
    await settle()
    assert stage.fleet.members["reward-0"].state is State.LOST
    rewards.rules["reward-0"] = sound
    stage.add_member(Role.REWARD, "reward-0")
    await stage.clock.advance(AGAIN_AFTER_S)
    (row,) = await checking
    assert row.gold == 1


async def test_a_sound_grader_passes_and_is_told_of():
    (row,) = await check(lambda text, gold: text == f"Answer: {gold}", "1", "2", "1", "1")
    assert (row.gold, row.shuffled, row.shuffled_right, row.garbage) == (4, 4, 0, 4 * len(GARBAGE))
    assert str(row).startswith("mine 3 for d: gold 4 of 4 right, other prompts' gold 0 of 4, garbage 0 of 16; ")


async def test_gold_that_is_wrong_and_garbage_that_is_right_are_refused():
    with pytest.raises(ConfigError, match="scores the gold answer '1'"):
        await check(lambda text, gold: False, "1")
    with pytest.raises(ConfigError, match="empty or garbage answer"):
        await check(lambda text, gold: True, "1")


@pytest.mark.parametrize(
    ("gold", "written"),
    [
        ("125", "125"), ("125.0", "125"), ("-3.00", "-3"), ("0.50", "0.50"), ('"125"', "125"), ('["34"]', "34"),
        ('["1", "2"]', "1, 2"), ("[1, 2.0]", "1, 2"), ('[[1], [2]]', "[[1], [2]]"), ("[1, 2)", "[1, 2)"),
        ('{"question": "?", "answer": 7}', "7"), ('{"inputs": [], "outputs": []}', '{"inputs": [], "outputs": []}'),
        ("true", "true"), ("  34 ", "  34 "), ("{1, 2}", "{1, 2}"), ('"', '"'), ("[" * 100_000, "[" * 100_000),
    ],
)  # fmt: skip
async def test_gold_is_written_as_a_model_would_write_it(gold, written):
    assert gold_forms(gold)[3] == f"Answer: {written}"
    (row,) = await check(lambda text, asked: text == f"\\boxed{{{written}}}", gold)
    assert row.gold == 1


@pytest.mark.parametrize("gold", ["125.0", '["34"]', '"34"', '["1", "2"]'])
async def test_a_gold_answer_that_no_model_writes_is_refused_by_name(gold):
    with pytest.raises(ConfigError, match=r"scores the gold answer '.*', which a model writes as '[\d, ]+', of prompt"):
        await check(lambda text, asked: text.removeprefix("Answer: ") == asked, gold)


async def test_a_grader_that_does_not_look_at_the_ground_truth_is_refused():
    with pytest.raises(ConfigError, match="gold answers of other prompts as right, 2 of 2"):
        await check(lambda text, gold: text in ("1", "2"), "1", "2")


async def test_another_prompts_gold_may_be_right_by_chance_or_be_the_same():
    (row,) = await check(lambda text, gold: text == gold or text == "2", "1", "2", "3")
    assert (row.shuffled, row.shuffled_right) == (3, 1)
    (same,) = await check(lambda text, gold: text == gold, "yes", "yes")
    assert same.shuffled == 0


def test_parts_of_a_score_go_over_the_wire_and_back():
    message = common_pb2.SampleReward(status=common_pb2.REWARD_STATUS_OK, parts={"math": 1.0, "form": 0.5})
    group = Group(group_id="g", admission=0, prompt=prompts("1")[0], cursor="")
    group.samples, group.rewards = {0: make_sample(0)}, [reward_from(message)]
    assert group_from(group_to(group)).rewards[0].parts == {"math": 1.0, "form": 0.5}


def test_a_timeout_stays_a_timeout_though_its_scores_are_none():
    late = common_pb2.SampleReward(
        status=common_pb2.REWARD_STATUS_TIMEOUT, raw_score=math.nan, acc=math.nan, detail="not graded within 10 s"
    )
    assert (reward_from(late).status, reward_from(late).detail) == ("timeout", "not graded within 10 s")


def test_parts_are_averaged_into_metrics_under_names_that_prometheus_takes():
    window = StepWindow(started_s=0.0)
    for part in (1.0, 0.0):
        scored = reward(1.0, raw_score=2.0, shaped_reward=1.5, parts={"my/style.py:brevity": part})
        group = Group(group_id="g", admission=0, prompt=prompts("1")[0], cursor="")
        group.samples, group.rewards = {0: make_sample(0)}, [scored]
        window.add_scored(group)
    values = window.metrics(now_s=1.0, step=0, trained=[])
    assert values["reward/part/my_style_py_brevity"] == 0.5
    assert (values["reward/generated_raw_mean"], values["reward/generated_mean"]) == (2.0, 1.5)


def scored(window: StepWindow, *names: str) -> None:
    for name in names:
        group = Group(group_id="g", admission=0, prompt=prompts("1")[0], cursor="")
        graded = reward(1.0, raw_score=2.0, shaped_reward=1.5, parts={name: 1.0})
        group.samples, group.rewards = {0: make_sample(0)}, [graded]
        window.add_scored(group)


def test_a_run_has_metrics_of_so_many_parts_and_one_more_however_many_names_a_grader_invents():
    known: list[str] = []
    with capture_logs() as logs:
        for step in range(20):
            window = StepWindow(started_s=0.0, known_parts=known)
            scored(window, "brevity", *(f"case-{step}-{number}" for number in range(10)))
            values = window.metrics(now_s=1.0, step=step, trained=[])
            assert values["reward/part/brevity"] == 1.0
    assert sum(name.startswith("reward/part/") for name in values) == 2, values
    assert values["reward/part/other"] == 1.0
    assert len(known) == MOST_PARTS + 1
    assert [line["event"] for line in logs] == ["too_many_part_names"]


def test_parts_whose_names_differ_only_in_what_prometheus_refuses_are_one_metric():
    window = StepWindow(started_s=0.0)
    scored(window, "a/b", "a:b")
    assert window.known_parts == ["a_b"]
    assert window.metrics(now_s=1.0, step=0, trained=[])["reward/part/a_b"] == 1.0
