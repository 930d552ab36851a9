"""What the learner remembers of its steps, and for how long."""

from services.learner.checkpoint.training_record import STATED_STEPS, TrainedBatch, TrainingRecord


def batch(step: int, *, committed: bool = False) -> TrainedBatch:
    return TrainedBatch(step=step, digest=f"d{step}", group_ids=[f"g{step}"], lineage="a", committed=committed)


def steps(record: TrainingRecord) -> list[int]:
    return [batch.step for batch in record.stated]


def test_a_step_is_stated_before_it_is_committed_and_says_so() -> None:
    record = TrainingRecord()
    record.trained(batch(0))
    assert [said.committed for said in record.stated] == [False]
    record.committed("b")
    assert [(said.committed, said.lineage) for said in record.stated] == [(True, "b")]


def test_what_a_checkpoint_lists_is_stated_until_the_next_one_is_complete() -> None:
    record = TrainingRecord()
    for step in range(4):
        record.trained(batch(step))
    record.saved(2)
    assert (steps(record), [said.step for said in record.unsaved]) == ([0, 1, 2, 3], [2, 3])
    record.saved(4)
    assert (steps(record), record.unsaved) == ([2, 3], [])


def test_a_restored_learner_states_what_its_checkpoint_lists() -> None:
    record = TrainingRecord([batch(4, committed=True), batch(5, committed=True)])
    assert (steps(record), record.unsaved) == ([4, 5], [])
    record.trained(batch(6))
    assert (steps(record), [said.step for said in record.unsaved]) == ([4, 5, 6], [6])


def test_a_very_long_record_is_stated_in_part_and_saved_in_full() -> None:
    record = TrainingRecord()
    for step in range(STATED_STEPS + 5):
        record.trained(batch(step))
    assert steps(record) == list(range(5, STATED_STEPS + 5))
    assert len(record.unsaved) == STATED_STEPS + 5
