"""Every state that a small run can reach, whatever dies when: no group lost or trained twice, and the end in reach."""

import pytest

from tests.unit.coordinator.run_model import Setting, Violation, explore
from tests.unit.coordinator.store_model import Rules

ONE = Setting(batch=1, gen_batch=1)
"""Batches of one group: for accidents that come in great numbers."""

RUNS = {
    "three steps, a checkpoint every second one": Setting(steps=3, checkpoint_every=2),
    "synchronous": Setting(staleness=0),
    "synchronous and over-generated": Setting(staleness=0, gen_batch=3, coordinator_crashes=1),
    "two rollouts of different age": Setting(steps=3, rollouts=2, checkpoint_every=2),
    "a rejected group": Setting(gen_batch=3, rejections=1, queue_groups=3),
    "three steps of staleness": Setting(staleness=2, steps=3, queue_groups=6, checkpoint_every=3),
    "coordinator dies twice": Setting(coordinator_crashes=2),
    "coordinator and learner die": Setting(coordinator_crashes=1, learner_crashes=1),
    "learner dies between two checkpoints": Setting(steps=3, checkpoint_every=2, learner_crashes=1),
    "learner dies twice": Setting(learner_crashes=2),
    "coordinator, learner and rollout die": ONE._replace(coordinator_crashes=1, learner_crashes=1, rollout_crashes=1),
    "coordinator freezes": Setting(coordinator_freezes=1),
    "coordinator freezes, learner dies": ONE._replace(coordinator_freezes=1, learner_crashes=1),
    "coordinator freezes, rollout dies": ONE._replace(coordinator_freezes=1, rollout_crashes=1),
    "redis forgets": Setting(redis_losses=1),
    "redis forgets between two checkpoints": ONE._replace(redis_losses=1, steps=3, checkpoint_every=2),
    "redis forgets, coordinator dies": ONE._replace(redis_losses=1, coordinator_crashes=1),
    "redis forgets, learner dies": ONE._replace(redis_losses=1, learner_crashes=1),
}


@pytest.mark.parametrize("run", RUNS)
def test_from_every_state_the_end_is_in_reach_and_no_state_breaks_a_promise(run: str) -> None:
    seen = explore(RUNS[run])
    print(
        f"{run}: {seen.states} states, {seen.events} events, {seen.ends} ends, the farthest {seen.longest} events away"
    )
    assert seen.ends > 0
    assert seen.states > 50


MUTATIONS = {
    "no fence is checked": (Setting(coordinator_freezes=1, rules=Rules(fences=False)), "was replaced may still"),
    "fences start again when Redis is empty": (
        ONE._replace(coordinator_freezes=1, redis_losses=1, rules=Rules(fences_outlast_a_loss=False)),
        "was replaced may still",
    ),
    "a former learner's fence comes back": (
        ONE._replace(learner_crashes=1, redis_losses=1, rules=Rules(fences_outlast_a_loss=False)),
        "former learner's fence",
    ),
    "a commit counts every time": (
        Setting(steps=3, checkpoint_every=2, learner_crashes=1, rules=Rules(commit_once=False)),
        "counted twice",
    ),
    "a batch is chosen anew when it is asked for again": (
        Setting(learner_crashes=1, rules=Rules(assign_once=False)),
        r"batch 0 was \(0, 1\) and is now|cannot be reached",
    ),
    "the commit counts, not the checkpoint": (
        Setting(steps=3, checkpoint_every=2, learner_crashes=1, files_until_checkpoint=False),
        "its file None",
    ),
    "back-pressure holds up the next batch": (Setting(pressure_spares_the_next_batch=False), "cannot be reached"),
    "a batch's file is written before it is recorded": (
        ONE._replace(gen_batch=2, queue_groups=3, coordinator_freezes=1, record_before_file=False),
        "overwrites batch 0",
    ),
    "a Redis that forgot is not repaired": (Setting(redis_losses=1, repairs=False), "were admitted|is not known"),
    "the newest groups are trained first": (
        Setting(steps=3, gen_batch=4, staleness=1, queue_groups=6, first_admitted_first=False),
        "too old for any step|trains group",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_run_with_a_part_broken_is_caught(mutation: str) -> None:
    setting, said = MUTATIONS[mutation]
    with pytest.raises(Violation, match=said):
        explore(setting)
