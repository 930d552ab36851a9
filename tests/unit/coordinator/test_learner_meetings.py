"""Where the learner's machines meet, as the coordinator remembers it: by round, the last rounds, checked."""

import pytest

from services.coordinator.api.learner_meetings import MOST_ROUNDS, LearnerMeetings
from sluice.errors import InvalidRequest


def test_who_asks_for_a_round_hears_of_that_round_alone() -> None:
    meetings = LearnerMeetings()
    assert meetings.meet("new", "") == ""
    assert meetings.meet("old", "10.0.0.1:1") == "10.0.0.1:1"
    assert meetings.meet("new", "") == ""
    meetings.meet("new", "10.0.0.2:2")
    meetings.meet("old", "10.0.0.1:1")  # told again by a machine that does not know that its round is over
    assert (meetings.meet("new", ""), meetings.meet("old", "")) == ("10.0.0.2:2", "10.0.0.1:1")
    assert meetings.meet("new", "10.0.0.3:3") == "10.0.0.3:3"


def test_only_the_rounds_that_were_told_of_last_are_kept() -> None:
    meetings = LearnerMeetings()
    for number in range(MOST_ROUNDS + 1):
        meetings.meet("long", "10.0.0.1:1")
        meetings.meet(f"round-{number}", "10.0.0.2:2")
    kept = [
        name for name in ("long", *(f"round-{number}" for number in range(MOST_ROUNDS + 1))) if meetings.meet(name, "")
    ]
    assert kept == ["long", *(f"round-{number}" for number in range(2, MOST_ROUNDS + 1))]


@pytest.mark.parametrize(
    ("round_name", "endpoint", "message"),
    [
        ("", "10.0.0.1:1", "meet: round: must be 1 to 200 ASCII characters"),
        ("r" * 201, "", "meet: round: must be 1 to 200 ASCII characters"),
        ("r", "10.0.0.1", "meet: endpoint must be HOST:PORT or empty, got '10.0.0.1'"),
        ("r", "a b:1", "meet: endpoint must be HOST:PORT or empty"),
    ],
)
def test_what_can_be_no_round_or_no_meeting_point_is_refused(round_name: str, endpoint: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        LearnerMeetings().meet(round_name, endpoint)
