"""Real runs whose processes are killed and frozen, one and two at a time, at moments drawn from a seed; also beside liars."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.run_dir.ledger_schema import LEDGER_SCHEMA
from tests.chaos.liar import command_of
from tests.chaos.plan import Deed, Hit, Plan, Strike, Victim, make_plan
from tests.chaos.trial import Trial
from tests.chaos.verdict import problems, quarantined

STEPS = 24


def kill(victim: Victim) -> Hit:
    return Hit(victim=victim, deed=Deed.KILL)


@pytest.mark.chaos
@pytest.mark.timeout(500)
def test_a_run_outlasts_whatever_is_done_to_its_processes(start_trial, seed: int) -> None:
    plan = make_plan(seed, steps=STEPS)
    print(plan)
    with start_trial(f"run.total_steps={STEPS}") as trial:
        trial.carry_out(plan)
        trial.finish()


LIARS: Sequence[str] = (
    *("weights.backend=file", "coordinator.straggler_deadline_s=2"),
    *("coordinator.generate_timeout_s=6", "coordinator.score_timeout_s=4"),
)
"""The liars have no tensors, so weights come as files; and a liar that answers never is to be found out within one run."""


@pytest.mark.chaos
@pytest.mark.timeout(500)
def test_a_run_outlasts_two_members_that_lie_while_honest_ones_are_struck(start_trial, tiny: Path, seed: int) -> None:
    plan = make_plan(seed, steps=STEPS, liars=True)
    print(plan)

    def beside(coordinator: str) -> list[list[str]]:
        return [command_of(liar, coordinator=coordinator, model=tiny) for liar in plan.liars]

    with start_trial(f"run.total_steps={STEPS}", *LIARS, beside=beside) as trial:
        trial.carry_out(plan)
        trial.finish()
        names = {liar.service_id for liar in plan.liars}
        assert names <= trial.witness.quarantined, "by `sluice status`"
        assert names <= quarantined(trial.run_dir), "by the coordinator's log"


def freeze(victim: Victim, *, thaw_after_s: float) -> Hit:
    return Hit(victim=victim, deed=Deed.FREEZE, thaw_after_s=thaw_after_s)


SHORT = Plan(
    seed=-1,
    strikes=(
        Strike(after_step=3, pause_s=0.0, hits=(kill(Victim.ROLLOUT), kill(Victim.GRADER))),
        Strike(after_step=7, pause_s=0.1, hits=(kill(Victim.COORDINATOR), freeze(Victim.REWARD, thaw_after_s=3.0))),
        Strike(after_step=11, pause_s=0.1, hits=(kill(Victim.REDIS), kill(Victim.FOLLOWER))),
    ),
)


@pytest.fixture(scope="module")
def struck(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run in which everybody was hit, and which has come to its end in order."""
    run_dir = tmp_path_factory.mktemp("struck") / "run"
    with Trial(recipe, run_dir, overrides=["run.total_steps=18"]) as trial:
        trial.carry_out(SHORT)
        trial.finish()
    said = [line for line in trial.output_path.read_text().splitlines() if "; restart " in line]
    assert {line.split()[0] for line in said} >= {"rollout-0", "coordinator", "redis", "learner"}
    return run_dir


def repeat_a_row(run_dir: Path) -> None:
    rows = pq.read_table(run_dir / "ledger").slice(0, 1)
    pq.write_table(rows, run_dir / "ledger" / "part-999999999999.parquet")


def lose_rows(run_dir: Path) -> None:
    next(iter((run_dir / "ledger").glob("*.parquet"))).unlink()


def train_a_group_elsewhere(run_dir: Path) -> None:
    rows = pq.read_table(run_dir / "ledger").to_pylist()
    first = next(row for row in rows if row["term"] == "trained" and row["step"] == 1)
    first["step"] = 2
    for path in (run_dir / "ledger").glob("*.parquet"):
        path.unlink()
    pq.write_table(pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA), run_dir / "ledger" / "part-0.parquet")


def lose_a_token(run_dir: Path) -> None:
    path = run_dir / "summary.json"
    summary = json.loads(path.read_text())
    summary["tokens"]["generated"] += 1
    path.write_text(json.dumps(summary))


def forget_a_step(run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if '"step":4,' not in line))


def swap_batches(run_dir: Path) -> None:
    newest = sorted((run_dir / "batches").glob("*.groups"))[-2:]
    newest[1].write_bytes(newest[0].read_bytes())


def apply_an_old_version(run_dir: Path) -> None:
    with (run_dir / "logs" / "rollout-0.log").open("a") as log:
        log.write("2026 [info ] weights_applied service=rollout stall_ms=1 version=a1\n")


@pytest.mark.e2e
@pytest.mark.timeout(500)
def test_a_run_in_which_everybody_was_hit_has_nothing_to_hide(struck: Path) -> None:
    assert problems(struck) == []


@pytest.mark.e2e
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (repeat_a_row, "several rows"),
        (lose_rows, "without a row"),
        (train_a_group_elsewhere, "step 2: 5 rows"),
        (lose_a_token, "tokens received"),
        (forget_a_step, "metrics.jsonl: steps"),
        (swap_batches, "different groups"),
        (apply_an_old_version, "version a1 applied after"),
    ],
)
def test_the_verdict_names_what_is_wrong(
    struck: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(struck, copy, ignore=shutil.ignore_patterns("redis", "model"))
    damage(copy)
    assert any(said in problem for problem in problems(copy)), problems(copy)
