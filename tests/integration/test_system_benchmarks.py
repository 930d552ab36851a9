"""The system's benchmarks at their smallest: the simulated services still speak what coordinator, relay and reward speak."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import coordinator_relay, long_run, overlap, recovery, reward_load
from benchmarks.simulated import history
from benchmarks.simulated.pace import Fleet, Pace, Schedule, pace
from benchmarks.simulated.virtual_pace import virtual_pace
from sluice.testing.fakes import Lengths, TimedEngine, version

pytestmark = pytest.mark.integration


async def test_coordinator_and_relay_carry_the_same_load(tmp_path: Path) -> None:
    load = coordinator_relay.Load(name="tiny", n=2, tokens=3, batch=4, batches=2, target=0.5)
    for conduct in (coordinator_relay.coordinator_cost, coordinator_relay._relay):
        cost = await conduct(tmp_path / conduct.__name__, load, 3)
        assert cost.wall_ms > 0


async def test_a_timed_run_trains_what_qualifies_and_nothing_else() -> None:
    fleet = Fleet(rollouts=3, batch=4, longer_s=0.1)
    measured = await pace(fleet, Schedule(max_staleness=1), train_s=0.01, token_s=1e-4, steps=2)
    assert measured.trained == 1.0
    assert measured.step_s >= 0.01
    assert 0 <= measured.age_mean <= measured.age_max <= 1


def test_in_virtual_time_refills_ahead_make_shorter_steps_of_the_same_ages() -> None:
    fleet = Fleet(rollouts=2, batch=8, longer_s=1.0)
    plain, ahead = (
        virtual_pace(fleet, Schedule(max_staleness=1, refill_confidence=c), train_s=1.0, token_s=1.2e-3, steps=8)
        for c in (1.0, 0.5)
    )
    assert ahead.step_s < 0.95 * plain.step_s
    assert plain.trained == 1.0
    assert plain.age_max == ahead.age_max == 1


def test_the_token_time_of_a_ratio_is_found_although_the_machine_adds_a_constant() -> None:
    def machine(fleet: Fleet, way: Schedule, /, *, train_s: float, token_s: float, steps: int) -> Pace:
        return Pace(
            step_s=0.0, waited_s=3.0 + 700 * token_s, cpu_s=0.0, trained=1.0, generated=2.0, age_mean=0.0, age_max=0.0
        )

    fleet, way = Fleet(rollouts=2, batch=8, longer_s=10.0), Schedule(max_staleness=0)
    token_s, sync = overlap._calibrated(fleet, way, train_s=1.0, generation_s=10.0, steps=1, measure=machine)
    assert abs(sync.waited_s - 10.0) < 0.4
    assert sync.waited_s == 3.0 + 700 * token_s


async def test_a_timed_engine_stamps_the_version_that_sampled_each_token() -> None:
    engine = TimedEngine(lengths=Lengths(median=4))
    engine.apply(version(3))
    made = await engine.generate(1, most=9, stop=asyncio.Event())
    assert [(span.version.number, span.start_token, span.end_token) for span in made.spans] == [(3, 0, 4)]


def test_lengths_have_a_long_tail_that_is_cut() -> None:
    drawn = sorted(Lengths(median=100, sigma=0.9, most=400).draw(seed) for seed in range(2000))
    assert 90 < drawn[1000] < 110
    assert drawn[-1] == 400
    assert 0.03 < drawn.count(400) / len(drawn) < 0.12


def test_recovery_is_a_median_by_victims_and_only_a_kill_has_a_target() -> None:
    strikes = [{"victims": ["reward killed"], "back_s": seconds} for seconds in (1.0, 30.0, 40.0)]
    strikes += [{"victims": [f"rollout frozen for {seconds} s"], "back_s": seconds} for seconds in (2.0, 4.0)]
    strikes += [
        {"victims": ["redis frozen for good", "grader killed"], "back_s": 50.0},
        {"victims": ["grader killed"], "back_s": None},
    ]
    rows = recovery.recovery_rows(strikes, start_s=5.0)
    assert [(row.what.partition(":")[0], row.value, row.target, row.met) for row in rows] == [
        ("reward killed (3)", 30.0, "< 10 s + 5.0 s", False),
        ("rollout frozen (2)", 3.0, "", True),
        ("grader killed and redis frozen for good (1)", 50.0, "", True),
    ]


@pytest.mark.long
def test_a_loaded_reward_service_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_load, "WORKERS", 2)
    monkeypatch.setattr(
        reward_load, "TIMEOUT_S", 30.0
    )  # for a busy machine; what hangs is tests/integration/test_reward_sandbox.py
    monkeypatch.setattr(reward_load, "PATHOLOGICAL", {"a memory bomb": reward_load.PATHOLOGICAL["a memory bomb"]})
    rows = {
        row.what: row
        for row in reward_load.run(most_groups=2, mixed=320, graders=("mixadd3", "judge"), program_cases=(2,))
    }
    assert rows["320 mixed samples, 2 cases a program: lost"].value == 0
    assert all(row.value > 0 for what, row in rows.items() if "scores/s" in row.unit)
    assert rows["mixadd3: service, 2 workers"].met
    assert rows["judge: service, 2 workers"].met


@pytest.mark.long
def test_a_long_run_is_looked_at_before_between_and_after_its_written_past() -> None:
    told: list[str] = []
    pace = history.Pace(batch=4, checkpoint_steps=3, evaluation_steps=2)
    rows = long_run.run(48, looks=2, pace=pace, live_batches=2, tell=told.append)
    looks = [line for line in told if "restart" in line]
    groups = [int(line.removeprefix("Redis emptied, and repaired:").split(" groups")[0]) for line in looks]
    assert groups == sorted(groups)
    assert len(looks) == 4
    assert looks[-1].startswith("Redis emptied, and repaired")
    found = {row.what: row for row in rows}
    assert found["groups"].value >= 48
    assert found["restart of the coordinator, slowest"].met
    assert found["more files between first and last look"].met
    assert found["Redis' memory, last / first"].met


def test_a_run_that_grows_misses_the_targets_of_a_long_run() -> None:
    small = long_run.Look(
        groups=100_000,
        restart_s=1.0,
        first_batch_s=1.0,
        coordinator_mb=200.0,
        peak_mb=220.0,
        redis_mb=2.0,
        redis_entries=100,
        files=10,
        file_mb=10.0,
        ledger_mb=10.0,
    )
    grown = replace(small, groups=1_000_000, restart_s=31.0, coordinator_mb=301.0, redis_mb=3.1, files=29, file_mb=17.0)
    assert all(
        row.met for row in long_run.rows_of([small, small, replace(small, groups=1_000_000)], small, file_max_mb=5.0)
    )
    missed = [
        row.what
        for row in long_run.rows_of([small, small, grown], replace(grown, peak_mb=331.0), file_max_mb=5.0)
        if not row.met
    ]
    assert missed == [
        "restart of the coordinator, slowest",
        "more files between first and last look",
        "coordinator's memory, last / first",
        "Redis' memory, last / first",
        "files without the ledger, largest",
        "coordinator's largest memory, in the repair / before",
    ]
