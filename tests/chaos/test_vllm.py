"""Runs whose rollouts are vLLM: killed and frozen, and with two tensor-parallel engine processes of which one is hit."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.chaos.plan import Deed, Hit, Plan, Strike, Victim
from tests.chaos.trial import Trial
from tests.chaos.victims import send
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(500)]

VLLM = ("rollout.engine=vllm", "rollout.kv_cache_bytes=33554432")

KILLED_AND_FROZEN = Plan(
    seed=-1,
    strikes=(
        Strike(after_step=4, pause_s=0.1, hits=(Hit(victim=Victim.ROLLOUT, deed=Deed.KILL),)),
        Strike(after_step=9, pause_s=0.1, hits=(Hit(victim=Victim.ROLLOUT, deed=Deed.FREEZE, thaw_after_s=4.0),)),
    ),
)


def engine_processes(trial: Trial) -> list[psutil.Process]:
    """vLLM's workers: children of the rollout that are not Python's resource tracker."""
    children = trial.process(Victim.ROLLOUT).children(recursive=True)
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


def test_a_run_outlasts_the_death_and_the_sleep_of_a_vllm_rollout(start_trial) -> None:
    with start_trial("run.total_steps=18", *VLLM) as trial:
        trial.carry_out(KILLED_AND_FROZEN)
        trial.finish()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rollout_that_lost_one_of_its_engine_processes_is_replaced(
    start_trial, tmp_path: Path, signum: signal.Signals
) -> None:
    model = write_tiny_model(tmp_path / "model", heads=4)
    two = (f"model.path={model}", "rollout.tensor_parallel_size=2", "rollout.step_timeout_s=8")
    with start_trial("run.total_steps=14", *VLLM, *two) as trial:
        trial.until(lambda: trial.steps() >= 4, what="step 4")
        rollout, workers = trial.process(Victim.ROLLOUT), engine_processes(trial)
        assert len(workers) == 2, [worker.cmdline() for worker in workers]
        send(workers[1], signum)
        trial.until(lambda: trial.process(Victim.ROLLOUT) != rollout, what="another rollout")
        trial.finish()
