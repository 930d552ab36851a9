"""When a service says that it cannot grade."""

import math

import pytest
from structlog.testing import capture_logs

from services.reward.alarm import LEAST, WINDOW, GradingAlarm
from services.reward.scoring import Reward


def reward(status):
    graded = status in ("ok", "unparsed")
    score = 1.0 if graded else math.nan
    detail = "" if graded else "10 s"
    return Reward(status=status, raw_score=score, acc=score, extracted="", overlong_penalty=0.0, detail=detail)


def warnings(*statuses, alarm=None):
    alarm = alarm or GradingAlarm(fraction=0.05)
    with capture_logs() as logs:
        for status in statuses:
            alarm.note([reward(status)])
    return logs


@pytest.mark.parametrize("status", ["timeout", "error"])
def test_a_share_of_ungraded_samples_is_warned_about_with_its_reason(status):
    (warning,) = warnings(*["ok"] * 95, *[status] * 5)
    assert (warning["event"], warning["log_level"]) == ("samples_not_graded", "warning")
    assert (warning[f"{status}_fraction"], warning["samples"], warning["newest"]) == (0.05, 100, "10 s")


def test_fewer_and_wrong_answers_are_no_alarm():
    assert not warnings(*["unparsed"] * 500, *["timeout"] * 20, *["error"] * 20)


def test_the_first_samples_of_a_service_are_no_rate():
    assert not warnings(*["timeout"] * (LEAST - 1))


def test_it_is_said_once_a_window_and_what_left_the_window_is_forgotten():
    alarm = GradingAlarm(fraction=0.05)
    assert len(warnings(*["timeout"] * (LEAST + WINDOW), alarm=alarm)) == 2
    assert not warnings(*["ok"] * 2 * WINDOW, alarm=alarm)[1:]
