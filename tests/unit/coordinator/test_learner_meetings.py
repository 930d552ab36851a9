"""Where the learner's machines meet, as the coordinator remembers it: by round, the last rounds, checked."""

import asyncio

import pytest

from services.coordinator.api.learner_meetings import MOST_ROUNDS, LearnerMeetings
from sluice.errors import InvalidRequest


async def at_once(meetings: LearnerMeetings, round_name: str, endpoint: str = "") -> str:
    return await meetings.meet(round_name, endpoint, wait_s=0.0)


async def test_who_asks_for_a_round_hears_of_that_round_alone() -> None:
    meetings = LearnerMeetings()
    assert await at_once(meetings, "new") == ""
    assert await at_once(meetings, "old", "10.0.0.1:1") == "10.0.0.1:1"
    assert await at_once(meetings, "new") == ""
    await at_once(meetings, "new", "10.0.0.2:2")
    await at_once(meetings, "old", "10.0.0.1:1")  # told again by a machine that does not know that its round is over
    assert [await at_once(meetings, name) for name in ("new", "old")] == ["10.0.0.2:2", "10.0.0.1:1"]
    assert await at_once(meetings, "new", "10.0.0.3:3") == "10.0.0.3:3"


async def test_who_waits_hears_as_soon_as_the_first_machine_tells_or_nothing_at_the_deadline() -> None:
    meetings = LearnerMeetings()
    waiting = [asyncio.create_task(meetings.meet("r", "", wait_s=30.0)) for _ in range(3)]
    another = asyncio.create_task(meetings.meet("other", "", wait_s=0.001))
    await asyncio.sleep(0)
    waiting[0].cancel()  # a machine that is gone
    await at_once(meetings, "former", "10.0.0.9:9")
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting[1:])
    await at_once(meetings, "r", "10.0.0.1:1")
    assert await asyncio.gather(*waiting[1:]) == ["10.0.0.1:1"] * 2
    assert waiting[0].cancelled()
    assert await another == ""
    assert await meetings.meet("r", "", wait_s=30.0) == "10.0.0.1:1"


async def test_only_the_rounds_that_were_told_of_last_are_kept() -> None:
    meetings = LearnerMeetings()
    for number in range(MOST_ROUNDS + 1):
        await at_once(meetings, "long", "10.0.0.1:1")
        await at_once(meetings, f"round-{number}", "10.0.0.2:2")
    names = ["long", *(f"round-{number}" for number in range(MOST_ROUNDS + 1))]
    kept = [name for name in names if await at_once(meetings, name)]
    assert kept == ["long", *(f"round-{number}" for number in range(2, MOST_ROUNDS + 1))]


@pytest.mark.parametrize(
    ("round_name", "endpoint", "wait_s", "message"),
    [
        ("", "10.0.0.1:1", 0.0, "meet: round: must be 1 to 200 ASCII characters"),
        ("r" * 201, "", 0.0, "meet: round: must be 1 to 200 ASCII characters"),
        ("r", "10.0.0.1", 0.0, "meet: endpoint must be HOST:PORT or empty, got '10.0.0.1'"),
        ("r", "a b:1", 0.0, "meet: endpoint must be HOST:PORT or empty"),
        ("r", "", float("nan"), "meet: wait_s: must be seconds >= 0"),
    ],
)
async def test_what_can_be_no_round_or_no_meeting_point_is_refused(
    round_name: str, endpoint: str, wait_s: float, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await LearnerMeetings().meet(round_name, endpoint, wait_s=wait_s)
