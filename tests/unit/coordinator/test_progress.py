"""What Redis keeps of a run's state, and what a run that is started again makes of it."""

from pathlib import Path

import pytest

from services.coordinator.recovery.rollback import surviving_evaluations
from services.coordinator.state.evaluation_result import EvaluationResult
from services.coordinator.state.progress import KEPT_EVALUATIONS, Progress, RunState
from sluice.lineage import Rollback
from sluice.policy_version import PolicyVersion
from sluice.run_dir.durable import append_line


def progress(state: RunState, **changes: object) -> Progress:
    made = Progress(state=state, trained_steps=4, train_started_s=100.0, train_ended_s=160.0)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_everything_but_the_metrics_comes_back_from_redis() -> None:
    version = PolicyVersion(lineage="a", number=4)
    evaluation = EvaluationResult(
        version=version, avg_at_n=0.5, pass_at_n=1.0, greedy=0.5, n=2, prompts=3, mean_response_tokens=7.0, wall_s=1.0
    )
    made = progress(
        RunState.RUNNING,
        version=version,
        admission="paused",
        stop_requested=True,
        stop_reason="enough",
        evaluations=[evaluation],
        scale={"rollout": 2},
        part_names=["brevity"],
    )
    assert Progress.from_meta(made.to_meta(), trained_steps=4, version=version) == made


def evaluation(version: int) -> EvaluationResult:
    made = PolicyVersion(lineage="a", number=version)
    return EvaluationResult(
        version=made, avg_at_n=0.5, pass_at_n=1.0, greedy=0.5, n=2, prompts=3, mean_response_tokens=7.0, wall_s=1.0
    )


def test_the_first_evaluation_and_the_newest_are_kept_however_long_the_run() -> None:
    made = progress(RunState.RUNNING)
    for version in range(KEPT_EVALUATIONS + 50):
        made.evaluated(evaluation(version))
    kept = [result.version.number for result in made.evaluations]
    assert kept == [0, *range(51, KEPT_EVALUATIONS + 50)]
    assert len(made.to_meta()["evaluations"]) < 400 * KEPT_EVALUATIONS
    again = Progress()
    again.remember([{"kind": "eval", "time_s": 1.0} | evaluation(version).to_line() for version in range(1000)])
    assert [result.version.number for result in again.evaluations][:2] == [0, 1001 - KEPT_EVALUATIONS]


def test_a_rollback_behind_every_kept_evaluation_finds_the_older_ones_in_the_metrics(tmp_path: Path) -> None:
    made = progress(RunState.RUNNING)
    for version in range(3 * KEPT_EVALUATIONS):
        made.evaluated(evaluation(version))
        append_line(tmp_path / "metrics.jsonl", {"kind": "step", "step": version, "time_s": 1.0})
        append_line(tmp_path / "metrics.jsonl", {"kind": "eval", "time_s": 1.0} | evaluation(version).to_line())
    back = surviving_evaluations(made, [Rollback(to=KEPT_EVALUATIONS + 10, lineage="b")], run_dir=tmp_path)
    assert [result.version.number for result in back] == [0, *range(12, KEPT_EVALUATIONS + 11)]


def test_an_empty_redis_is_a_new_run() -> None:
    assert Progress.from_meta({}, trained_steps=0, version=None) == Progress()


@pytest.mark.parametrize("state", [RunState.STOPPED, RunState.FAILED, RunState.STARVED])
def test_a_run_that_ended_early_goes_on_when_it_is_opened_again(state: RunState) -> None:
    made = progress(state, stop_requested=True, stop_reason="enough", reason="enough", admission="paused")
    made.reopen(total_steps=10)
    assert made.state is RunState.RUNNING
    assert (made.reason, made.stop_requested, made.admitting) == ("", False, True)


def test_a_run_that_failed_before_training_starts_from_the_beginning() -> None:
    made = progress(RunState.FAILED, train_started_s=0.0)
    made.reopen(total_steps=10)
    assert made.state is RunState.STARTING


def test_a_finished_run_goes_on_only_to_train_more_steps() -> None:
    made = progress(RunState.FINISHED)
    made.reopen(total_steps=4)
    assert made.state is RunState.FINISHED
    made.reopen(total_steps=5)
    assert made.state is RunState.RUNNING


def test_the_time_a_run_lay_still_is_not_training_time() -> None:
    made = progress(RunState.STOPPED)
    made.reopen(total_steps=10)
    made.go_on(now_s=1000.0)
    assert made.train_ended_s - made.train_started_s == 60.0
    made.go_on(now_s=2000.0)
    assert made.train_ended_s == 1000.0, "only once"
