import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.vs_trl.crossings import Curve, curve, first_at, median_curve
from benchmarks.vs_trl.records import Accuracy, Moment, add_accuracy, add_moment, saved_batches, weights_dir
from benchmarks.vs_trl.tasks import TASKS, Task
from benchmarks.vs_trl.terms import Terms, read_terms, terms_of, write_terms
from sluice.config.load import load_config

RECIPE = Path(__file__).parents[3] / "recipes" / "cpu-demo.yaml"


def demo_terms(*overrides: str) -> Terms:
    return terms_of(load_config(RECIPE, overrides=overrides), task="demo", save_every_batches=4)


def test_the_terms_are_those_of_the_demo_recipe():
    terms = demo_terms()
    assert (terms.groups_per_batch, terms.groups_per_update, terms.samples_per_group) == (20, 10, 8)
    assert (terms.max_response_tokens, terms.overlong_buffer_tokens) == (72, 24)
    assert (terms.clip_low, terms.clip_high, terms.betas, terms.weight_decay) == (0.2, 0.28, (0.9, 0.95), 0.0)


def test_the_warm_up_counts_batches_so_that_both_updates_of_a_batch_have_one_rate():
    terms = demo_terms("learner.warmup_steps=4")
    assert [terms.lr_factor(update) for update in range(9)] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1, 1]


def test_a_generation_for_every_update_leaves_completions_and_updates_as_they_are():
    terms = demo_terms()
    on_policy = terms.on_policy()
    assert on_policy.updates_per_batch == 1
    assert on_policy.groups_per_update == terms.groups_per_update
    assert on_policy.batches * on_policy.groups_per_batch == terms.batches * terms.groups_per_batch
    assert on_policy.save_every_batches * on_policy.groups_per_batch == 4 * terms.groups_per_batch
    assert [u for u in range(20) if on_policy.lr_factor(u) == 1] == list(range(9, 20))


def test_the_terms_reach_the_other_environment_unchanged(tmp_path: Path):
    terms = demo_terms()
    write_terms(terms, tmp_path / "terms.json")
    assert read_terms(tmp_path / "terms.json") == terms


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("learner.mini_batch_size=7", "mini_batch_size"),
        ("reward.overlong_buffer.penalty_factor=0.5", "overlong_buffer"),
        ("reward.overlong_buffer.enable=false", "overlong_buffer"),
    ],
)
def test_a_recipe_that_trl_cannot_follow_is_refused(override: str, key: str):
    with pytest.raises(ValueError, match=key):
        demo_terms(override)


def test_a_completion_is_right_only_when_the_sum_follows_the_last_mark_and_it_ended():
    reward = TASKS["demo"].reward
    assert reward(answer="125", completion="7+8+0=15;6+5+1=12#125", finished=True) == 1
    assert reward(answer="125", completion="7+8+0=15;6+5+1=12#125", finished=False) == 0
    assert reward(answer="125", completion="#125#124", finished=True) == 0


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_rows_of_a_seed_are_always_the_same_and_their_answers_are_graded_right(task: Task):
    rows = task.rows(seed=3, count=1500)
    assert rows == task.rows(seed=3, count=1500)
    assert rows != task.rows(seed=4, count=1500)
    for row in rows[:20]:
        right = "#" * (task.name == "demo") + row.answer
        assert task.reward(completion=right, answer=row.answer, finished=True) == 1
        assert task.reward(completion=right + "1", answer=row.answer, finished=True) == 0


def test_a_level_is_reached_at_the_first_value_at_or_above_it():
    assert first_at([0.3, 0.5, 0.4, 0.6], [0.0, 10.0, 20.0, 30.0], 0.5) == 10.0
    assert first_at([0.3, 0.5], [0.0, 10.0], 0.51) == math.inf


def test_the_median_curve_ends_where_the_shortest_run_does():
    runs = [
        Curve(costs={"seconds": [0.0, end]}, avg=[0.2, top], greedy=[0.2, top])
        for end, top in ((10.0, 0.4), (10.0, 0.8), (20.0, 0.6))
    ]
    seconds, median = median_curve(runs, "seconds")
    assert seconds[-1] == 10
    # At 10 s the runs stand at .4, .8 and, half way, .4.
    assert median[[0, -1]] == pytest.approx(np.array([0.2, 0.4]))


def test_a_curve_has_the_moments_whose_weights_were_evaluated(tmp_path: Path):
    for batches in range(4):
        add_moment(
            tmp_path,
            Moment(batches=batches, seconds=2.0 * batches, cpu_seconds=3.0, completions=160 * batches, tokens=0),
        )
    for batches in (3, 1):
        add_accuracy(tmp_path, "fresh", Accuracy(batches=batches, avg=batches / 10, greedy=0.9))
    assert curve(tmp_path, "fresh").costs["seconds"] == [2.0, 6.0]
    assert curve(tmp_path, "fresh").avg == [0.1, 0.3]


def test_folders_of_weights_are_found_in_the_order_of_training(tmp_path: Path):
    for batches in (100, 8, 12):
        weights_dir(tmp_path, batches).mkdir(parents=True)
    assert saved_batches(tmp_path) == [8, 12, 100]


def test_a_run_made_under_other_terms_is_not_taken_for_this_one(tmp_path: Path):
    from benchmarks.vs_trl.race import kept_or_made

    terms, made = demo_terms(), []

    def make(run: Path) -> dict[str, object]:
        made.append(run)
        return {"start_up_s": 1.0}

    for _ in range(2):
        kept_or_made(tmp_path / "run", terms, make)
    assert made == [tmp_path / "run"]
    assert json.loads((tmp_path / "run" / "done.json").read_text())["terms"]["lr"] == asdict(terms)["lr"]
    with pytest.raises(ValueError, match="other terms"):
        kept_or_made(tmp_path / "run", replace(terms, lr=1e-3), make)
