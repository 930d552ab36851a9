"""The number of rollouts follows who idles: both sides of the table, damping, bounds, and a range that makes no sense."""

import pytest

from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.launch.autoscale import WINDOW_S, WINDOW_STEPS, Autoscaler


class Scene:
    """An autoscaler and its clock."""

    def __init__(self, *, wished: int = 2, least: int = 1, most: int = 4) -> None:
        self.scaler, self.now_s = Autoscaler(least=least, most=most, wished=wished), 0.0
        self.scaler.look([7] * wished, now_s=self.now_s)

    def window(self, *, learner: float, rollouts: float, ready: int | None = None) -> int:
        """What is wished for after a window in which each side idled for its share of the time."""
        for _ in range(WINDOW_STEPS):
            self.scaler.step({"learner/wait_s": 10.0 * learner, "step/wall_s": 10.0})
        wished = 0
        for look in range(int(WINDOW_S)):
            self.now_s += 1.0
            idle = look < rollouts * WINDOW_S
            count = self.scaler.wished if ready is None else ready
            wished = self.scaler.look([0 if idle else 7] * count, now_s=self.now_s)
        return wished

    def settled(self, *, learner: float, rollouts: float) -> list[int]:
        """The numbers over ten windows of the same idling."""
        return [self.window(learner=learner, rollouts=rollouts) for _ in range(10)]


def test_more_rollouts_come_while_the_learner_idles_and_two_at_once_where_it_idles_much() -> None:
    assert Scene().settled(learner=0.3, rollouts=0.0)[:5] == [2, 3, 3, 4, 4]
    assert Scene().settled(learner=0.7, rollouts=0.0)[:3] == [2, 4, 4]


def test_fewer_rollouts_stay_while_those_left_can_do_the_work_of_the_idle_one() -> None:
    assert Scene(wished=4).settled(learner=0.0, rollouts=0.3)[:6] == [4, 3, 3, 3, 3, 3]  # .3 of 3 is less than one
    assert Scene(wished=4).settled(learner=0.0, rollouts=0.9)[:8] == [4, 3, 3, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(("learner", "rollouts"), [(0.05, 0.05), (0.4, 0.4), (0.0, 0.2)])
def test_balance_and_alternation_change_nothing(learner: float, rollouts: float) -> None:
    assert set(Scene().settled(learner=learner, rollouts=rollouts)) == {2}


def test_two_windows_in_a_row_must_agree() -> None:
    scene = Scene()
    wished = [scene.window(learner=learner, rollouts=0.0) for learner in (0.3, 0.0, 0.3, 0.0, 0.3, 0.0)]
    assert set(wished) == {2}


def test_time_without_all_rollouts_counts_for_nothing() -> None:
    scene = Scene()
    assert {scene.window(learner=0.9, rollouts=0.0, ready=1) for _ in range(5)} == {2}
    assert scene.window(learner=0.9, rollouts=0.0) == 2
    assert scene.window(learner=0.9, rollouts=0.0) == 4


def recipe(**launch: object) -> dict[str, object]:
    return {"model": {"path": "m"}, "data": {"train_files": ["mixadd3:train"]}, "launch": launch}


def test_a_run_starts_with_the_fewest() -> None:
    launch = Config.model_validate(recipe(rollout_replicas={"min": 2, "max": 5})).launch
    assert (launch.rollouts, launch.most_rollouts) == (2, 5)


def test_a_range_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min: must be <= max \(2\), got 3"):
        Config.model_validate(recipe(rollout_replicas={"min": 3, "max": 2}))
    synchronous = recipe(rollout_replicas={"min": 1, "max": 2}) | {"coordinator": {"max_staleness": 0}}
    with pytest.raises((ValueError, ConfigError), match=r"launch.rollout_replicas: .* coordinator.max_staleness"):
        Config.model_validate(synchronous)
