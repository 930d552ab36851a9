"""The learner of a run that has ended has its time from when it can export, not from the run's end."""

import pytest

from sluice.config.schema import Config
from sluice.launch.export_wait import LEARNERS_OWN, UNSEEN_S, ExportWait
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb

STEP_S, READY_S, LAST = 50.0, 20.0, 8


@pytest.fixture
def wait() -> ExportWait:
    tree = {"model": {"path": "m"}, "data": {"train_files": ["mixadd3:train"]}}
    return ExportWait(
        Config.model_validate(tree | {"learner": {"step_timeout_s": STEP_S}, "launch": {"ready_timeout_s": READY_S}})
    )


def status(state: "pb.ServiceState.ValueType | None", version: int = LAST) -> pb.GetStatusResponse:
    """Of a finished run whose learner is in this state; None: is not known."""
    learner = pb.ServiceStatus(
        service_id="learner",
        role=pb.SERVICE_ROLE_LEARNER,
        state=state,
        version=common.PolicyVersion(lineage="a", number=version),
    )
    return pb.GetStatusResponse(state=pb.RUN_STATE_FINISHED, step=LAST, services=[learner] if state else [])


READY, LOST, LEAVES = pb.SERVICE_STATE_READY, pb.SERVICE_STATE_LOST, pb.SERVICE_STATE_DRAINING


@pytest.mark.parametrize("state", [READY, LEAVES])
def test_a_learner_that_exports_has_more_time_than_it_gives_a_rank_that_hangs(
    wait: ExportWait, state: "pb.ServiceState.ValueType"
) -> None:
    assert not wait.is_over(status(state), now_s=1000.0)
    assert not wait.is_over(status(state), now_s=1001.0 + 2 * STEP_S)
    assert wait.is_over(status(state), now_s=1001.0 + LEARNERS_OWN * STEP_S + UNSEEN_S)


@pytest.mark.parametrize("state", [LOST, None])
def test_a_learner_that_is_away_has_the_time_of_a_start(wait: ExportWait, state: "pb.ServiceState.ValueType") -> None:
    assert not wait.is_over(status(state), now_s=0.0)
    assert not wait.is_over(status(state), now_s=READY_S)
    assert wait.is_over(status(state), now_s=READY_S + 1)


def test_a_learner_that_died_in_its_export_trains_again_and_then_has_the_whole_time(wait: ExportWait) -> None:
    now_s = 0.0
    for state, version, lasts_s in [
        (READY, LAST, STEP_S), (LOST, LAST, READY_S), (READY, 4, 9 * STEP_S), (READY, 7, 9 * STEP_S), (READY, LAST, STEP_S)
    ]:  # fmt: skip
        assert not wait.is_over(status(state, version), now_s=now_s)
        now_s += lasts_s
        assert not wait.is_over(status(state, version), now_s=now_s)
