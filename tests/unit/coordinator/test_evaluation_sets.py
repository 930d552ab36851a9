"""Evaluation sets: their settings, what is counted of a prompt, how sure it is, and what is kept of many evaluations."""

import asyncio
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from services.coordinator.groups.step_metrics import episode_metrics
from services.coordinator.loggers.line import line_of
from services.coordinator.prompts.questions import question_key
from services.coordinator.prompts.rows import parse_row
from services.coordinator.prompts.stream import PromptStream
from services.coordinator.state.evaluation_result import EvaluationResult
from services.coordinator.state.evaluation_scores import accuracies, majority, mean_interval, outcome
from services.coordinator.state.group import Reward, Turn
from services.coordinator.state.progress import KEPT_EVALUATIONS, Progress
from services.coordinator.storage import evaluation_files
from services.coordinator.storage.run_files import RunFiles
from sluice.config.evaluation_sets import evaluation_sets
from sluice.errors import InvalidRequest
from sluice.policy_version import PolicyVersion
from sluice.report.metrics import read_metrics
from sluice.run_dir.durable import append_line
from tests.unit.coordinator.fakes import FakePrompt, make_config, make_reward, make_sample
from tests.unit.coordinator.test_evaluation import FakeRollouts, evaluated

SETS = {
    "aime_2024": {"files": ["aime.jsonl"], "n": 3, "top_p": 0.7, "prompts": 2, "greedy": False, "every_steps": 7},
    "plain": {"files": ["plain.jsonl"]},
}


def rewards(*answers: str, gold: str = "42", status: str = "ok") -> list[Reward]:
    """A right sample gives `gold`; '' is a sample without an answer, '?' one that could not be graded."""
    made = []
    for answer in answers:
        kind = {"": "unparsed", "?": "timeout"}.get(answer, status)
        reward = make_reward(float(answer == gold), status=kind)
        made.append(dataclasses.replace(reward, extracted=answer.strip("?")))
    return made


def result(number: int = 1, **changes: Any) -> EvaluationResult:
    made = EvaluationResult(
        version=PolicyVersion(lineage="a", number=number),
        avg_at_n=0.5,
        pass_at_n=1.0,
        greedy=0.5,
        n=2,
        prompts=3,
        mean_response_tokens=7.0,
        wall_s=1.0,
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("42", "7", "42"), ("42", 1.0)),
        (("7", "42", "42", "7"), ("7", 0.0)),  # a tie: the answer that comes first
        (("42", "7", "7", "42"), ("42", 1.0)),
        (("", "", "42"), ("42", 1.0)),  # a sample without an answer has no vote
        (("?", "?", "42", "7", "7"), ("7", 0.0)),
        (("", ""), ("", 0.0)),  # no answer was found: wrong
    ],
)
def test_the_majority_answer_is_that_of_most_samples(answers: tuple[str, ...], expected: tuple[str, float]) -> None:
    assert majority(rewards(*answers)) == expected


def test_there_is_no_majority_where_the_grader_names_no_answers_or_graded_nothing() -> None:
    nameless = [make_reward(1.0), make_reward(0.0)]
    assert math.isnan(majority(nameless)[1])
    assert math.isnan(majority(rewards("?", "?"))[1])
    scores = accuracies([outcome(0, FakePrompt(prompt_id="p"), [make_sample(0), make_sample(1)], nameless, [])])
    assert (scores["maj_at_n"], scores["maj_interval"], scores["avg_interval"]) == (None, None, None)


def test_the_interval_of_a_mean_is_that_of_the_normal_limit_and_the_same_every_time() -> None:
    values = (np.arange(400) % 4 == 0).astype(np.float64)
    low, high = mean_interval(values) or (0.0, 0.0)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.004)
    assert mean_interval(values) == (low, high)
    assert mean_interval(values[:1]) is None
    assert mean_interval(np.ones(5)) == (1.0, 1.0)


def test_the_use_of_tools_is_the_share_of_episodes_that_called_one_and_absent_for_single_answers() -> None:
    turn = Turn(start=0, end=4, finish_reason="stop", rollout_id="rollout-0", seed=0, text="x")
    called = ((), ("add",), ("add", "add"), ())
    episodes = [
        dataclasses.replace(make_sample(index), turns=(dataclasses.replace(turn, tools=tools), turn))
        for index, tools in enumerate(called)
    ]
    answers = [make_sample(index) for index in range(4)]
    of_episodes, of_answers = (
        outcome(0, FakePrompt(prompt_id="p"), samples, rewards("42", "7", "7", "7"), [])
        for samples in (episodes, answers)
    )
    assert accuracies([of_episodes])["tool_use"] == 0.5
    assert accuracies([of_answers])["tool_use"] is None
    assert "tool use 0.500" in str(result(tool_use=0.5))
    assert episode_metrics(episodes, restarts=0)["episode/tool_use"] == 0.5


def test_a_row_of_a_prompt_counts_what_could_not_be_graded_apart() -> None:
    samples = [
        dataclasses.replace(make_sample(i, tokens=4 + i), finish_reason="length" if i else "stop") for i in range(3)
    ]
    row = outcome(5, FakePrompt(prompt_id="p"), samples, rewards("42", "?", "42"), rewards("7")).to_row()
    assert row == {
        "prompt": 5,
        "prompt_id": "p",
        "data_source": "fake",
        "n": 3,
        "graded": 2,
        "ungradable": 1,
        "correct": 2,
        "accuracy": 1.0,
        "majority_answer": "42",
        "majority_right": True,
        "greedy_right": False,
        "mean_response_tokens": 5.0,
        "truncated": 2,
    }
    nothing = outcome(0, FakePrompt(prompt_id="p"), samples, rewards("?", "?", "?"), []).to_row()
    assert [nothing[name] for name in ("accuracy", "majority_answer", "majority_right", "greedy_right")] == [None] * 4


def test_a_set_takes_from_eval_what_it_does_not_say_and_the_default_set_comes_first() -> None:
    config = make_config(data__val_files=["mixadd3:fresh"], eval__sets=SETS, eval__temperature=0.6, eval__n=5)
    default, aime, plain = evaluation_sets(config)
    assert (default.name, default.n, default.small_n, default.top_p, default.every_steps) == ("", 5, 4, 1.0, 10)
    assert (aime.n, aime.small_n, aime.top_p, aime.prompts, aime.greedy, aime.every_steps) == (3, 3, 0.7, 2, False, 7)
    assert (aime.temperature, plain.temperature, plain.n, plain.prompts, plain.greedy) == (0.6, 0.6, 5, 256, True)


async def test_a_set_is_drawn_with_its_own_settings_and_training_never_with_top_p() -> None:
    rollouts = Watched()
    made = await evaluated({"a": [1, 0, 0]}, n=3, rollouts=rollouts, name="aime_2024", eval__sets=SETS)
    assert rollouts.requests == ["eval-a3-aime_2024-0"]
    assert [(one.top_p, one.temperature, one.evaluation) for one in rollouts.samplings] == [(0.7, 1.0, True)]
    assert (made.result.set, made.result.top_p, made.result.greedy) == ("aime_2024", 0.7, None)
    assert [row.position for row in made.outcomes] == [0]
    with pytest.raises(InvalidRequest, match="'gone' is no evaluation set of this run; it has aime_2024, plain"):
        await evaluated({"a": [1]}, name="gone", eval__sets=SETS)


class Watched(FakeRollouts):
    """Keeps how samples were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.samplings: list[Any] = []

    def generate(self, *args: Any, **keywords: Any) -> Any:
        self.samplings.append(keywords["sampling"])
        return super().generate(*args, **keywords)


def test_a_line_keeps_everything_and_a_line_of_an_older_version_is_read() -> None:
    made = result(set="aime_2024", maj_at_n=0.5, avg_interval=(0.25, 0.75), maj_interval=(0.0, 1.0), top_p=0.7)
    made = dataclasses.replace(made, tool_use=0.25)
    line = json.loads(json.dumps(made.to_line(), allow_nan=False))
    assert EvaluationResult.from_line(line) == made
    assert EvaluationResult.from_dict(json.loads(json.dumps(dataclasses.asdict(made)))) == made
    old = {name: line[name] for name in ("version", "lineage", "wall_s", "mean_response_tokens", "n", "prompts")}
    old |= {"eval/avg_at_n": 0.5, "eval/pass_at_n": 1.0, "eval/greedy": 0.5}
    assert EvaluationResult.from_line(old) == result()
    assert made.metrics()["eval/set/aime_2024/avg_at_n_low"] == 0.25
    values = line_of({"kind": "eval", "time_s": 1.0} | line).values
    assert values == {name: value for name, value in made.metrics().items() if value is not None}


def test_the_first_evaluation_of_each_set_is_kept_and_the_metrics_of_sets_stay_apart(tmp_path: Path) -> None:
    made = Progress()
    for version in range(KEPT_EVALUATIONS):
        for name in ("", "aime_2024"):
            made.evaluated(result(version, set=name))
            append_line(
                tmp_path / "metrics.jsonl", {"kind": "eval", "time_s": 1.0} | result(version, set=name).to_line()
            )
    kept = [(one.set, one.version.number) for one in made.evaluations]
    assert len(kept) == KEPT_EVALUATIONS
    assert kept[:3] == [("", 0), ("aime_2024", 0), ("", 101)]
    metrics = read_metrics(tmp_path)
    assert len(metrics.evaluations) == len(metrics.sets["aime_2024"]) == KEPT_EVALUATIONS


def test_the_files_of_evaluations_are_bounded_and_the_first_of_each_set_stays(tmp_path: Path) -> None:
    rows = [outcome(i, FakePrompt(prompt_id=f"p{i}"), [make_sample(0)], rewards("42"), []).to_row() for i in range(3)]
    for version in (0, 3, 12):
        for name in ("", "aime_2024"):
            path = evaluation_files.keep(tmp_path, result(version, set=name), rows, most_bytes=10**9)
    assert path.name == "a-000012-aime_2024.parquet"
    assert pq.read_table(path).select(["set", "version", "prompt", "majority_right"]).to_pylist()[2] == {
        "set": "aime_2024",
        "version": 12,
        "prompt": 2,
        "majority_right": True,
    }
    evaluation_files.keep(tmp_path, result(13), rows, most_bytes=1)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "a-000000-aime_2024.parquet",
        "a-000000.parquet",
        "a-000013.parquet",
    ]


def test_a_question_is_its_raw_text_whatever_stands_around_it() -> None:
    def row(prompt: Any, source: str = "a") -> Any:
        return parse_row({"data_source": source, "prompt": prompt, "reward_model": {"ground_truth": "1"}}, where="x")

    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    same = [
        row("1+1?"),
        row(" 1+1?\n", "b"),
        row([turn("user", "1+1?")]),
        row([turn("system", "s"), turn("user", "1+1?")]),
    ]
    assert len({question_key(one) for one in same}) == 1
    other = [row("1+1"), row([turn("user", "1+1?"), turn("assistant", "2"), turn("user", "sure?")])]
    assert len({question_key(one) for one in [same[0], *other]}) == 3


def test_evaluation_prompts_that_are_trained_are_counted() -> None:
    def stream(*prompts: str) -> PromptStream:
        rows = [
            parse_row({"data_source": "s", "prompt": text, "reward_model": {"ground_truth": "1"}}, where="x")
            for text in prompts
        ]
        return PromptStream(Rows(rows), renderer=Renders(), seed=0, shuffle=False, max_prompt_length=9)  # type: ignore[arg-type]

    held_out, training = stream("a", "b", "c"), stream("x", "c", "b ", "y")
    assert len(held_out.take(2)) == 2
    assert training.shared_with(held_out) == 1
    assert stream("x").shared_with(held_out) == 0


class Rows:
    """Some rows."""

    def __init__(self, rows: list[Any]) -> None:
        self.row, self.size = rows.__getitem__, len(rows)


class Renders:
    """Prompts of one token."""

    def render(self, row: Any) -> Any:
        return FakePrompt(prompt_id=row.prompt_id)


async def test_evaluations_of_one_version_that_end_at_once_have_one_whole_file(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    await asyncio.gather(*(files.keep_evaluation(result(3), []) for _ in range(24)))
    assert [path.name for path in (tmp_path / "evaluations").iterdir()] == ["a-000003.parquet"]
    assert pq.read_table(tmp_path / "evaluations" / "a-000003.parquet").num_rows == 0
