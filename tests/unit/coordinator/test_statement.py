"""What a learner may state of the steps behind it."""

import pytest

from services.coordinator.state.group import admission_of, group_id_of
from services.coordinator.state.learner_history import MAX_STEPS, Statement, TrainedStep
from sluice.errors import Fenced, InvalidRequest
from sluice.lineage import Rollback
from sluice.policy_version import PolicyVersion


def trained(step: int, *ids: str, batch: str = "b") -> TrainedStep:
    return TrainedStep(
        step=step,
        batch_digest=batch,
        group_ids=ids or (f"r-{step:07d}",),
        version=PolicyVersion(lineage="a", number=step + 1),
        weights_digest="w",
        committed=True,
    )


def stated(number: int, *steps: TrainedStep) -> Statement:
    return Statement(version=PolicyVersion(lineage="a", number=number), steps=steps)


def test_a_learner_of_a_history_that_was_rolled_back_is_refused_by_name() -> None:
    rollbacks = [Rollback(to=6, lineage="b")]
    stated(6, trained(5)).refuse_given_up([])
    with pytest.raises(Fenced, match="trained step 6 as version a7, which was rolled back"):
        stated(7, trained(5), trained(6)).refuse_given_up(rollbacks)
    with pytest.raises(Fenced, match="holds version a6, the run was rolled back to version 6 and goes on as lineage b"):
        stated(6, trained(5)).refuse_given_up(rollbacks)
    Statement(version=PolicyVersion(lineage="b", number=6), steps=[trained(5)]).refuse_given_up(rollbacks)
    Statement(version=PolicyVersion(lineage="c", number=8)).refuse_given_up(rollbacks)


def test_the_last_steps_before_the_version_can_be_looked_up() -> None:
    said = stated(7, trained(5), trained(6))
    assert said.of(5) == trained(5)
    assert said.of(6) == trained(6)
    assert said.of(4) is None
    assert said.of(7) is None


def test_a_learner_may_state_nothing() -> None:
    assert stated(3).of(2) is None


@pytest.mark.parametrize(
    ("number", "steps", "said"),
    [
        (3, [trained(0), trained(2)], "must be the steps before version 3"),
        (3, [trained(1), trained(0)], "must be the steps before version 3"),
        (3, [trained(3)], "must be the steps before version 3"),
        (1, [trained(-1), trained(0)], "must be the steps before version 1"),
        (2, [trained(0, "r-1"), trained(1, "r-1")], "'r-1' was trained twice"),
        (1, [trained(0, batch="")], "step 0 has no batch digest or no groups"),
        (MAX_STEPS + 1, [trained(step) for step in range(MAX_STEPS + 1)], f"at most {MAX_STEPS} steps"),
    ],
)
def test_a_record_that_does_not_fit_together_is_refused(number: int, steps: list[TrainedStep], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        stated(number, *steps)


@pytest.mark.parametrize("admission", [0, 41, 12_345_678])
def test_a_group_id_tells_its_admission(admission: int) -> None:
    assert admission_of(group_id_of(admission, run_id="my-run"), run_id="my-run") == admission


@pytest.mark.parametrize(
    "group_id", ["", "run", "run-", "run-1", "run-00000a1", "other-0000001", "0000001", "run-٠٠٠٠٠٠١"]
)
def test_an_id_of_another_run_is_none_of_ours(group_id: str) -> None:
    assert admission_of(group_id, run_id="run") is None
