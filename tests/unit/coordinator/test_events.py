"""The event stream: every watcher at its own pace."""

import asyncio
from itertools import pairwise

from services.coordinator.state.events import Events


async def collect(events: Events, *, after: int) -> list[str]:
    return [event.message async for event in events.watch(after=after)]


async def watched(events: Events, *, after: int) -> "asyncio.Task[list[str]]":
    task = asyncio.create_task(collect(events, after=after))
    await asyncio.sleep(0)
    return task


async def test_a_watcher_gets_what_comes_after_it_and_one_that_comes_back_what_it_missed() -> None:
    events = Events()
    events.emit("warning", "one")
    events.emit("warning", "two")
    new, back = await watched(events, after=0), await watched(events, after=1)
    events.emit("warning", "three")
    events.close()
    assert await new == ["three"]
    assert await back == ["two", "three"]


async def test_a_number_of_a_former_process_means_everything_that_is_kept() -> None:
    events = Events()
    events.emit("warning", "one")
    watch = await watched(events, after=500)
    events.close()
    assert await watch == ["one"]


async def test_a_number_of_another_process_means_everything_even_where_this_one_has_given_it_out() -> None:
    events = Events()
    for message in ("one", "two"):
        events.emit("warning", message)
    events.close()
    of_another = [event.message async for event in events.watch(after=1, process="another")]
    of_this = [event.message async for event in events.watch(after=1, process=events.process)]
    assert (of_another, of_this) == (["one", "two"], ["two"])


async def test_a_watch_of_what_is_over_ends_when_all_is_read() -> None:
    events = Events()
    for message in ("one", "two"):
        events.emit("warning", message)
    assert [event.message async for event in events.watch(after=1, over=lambda: True)] == ["two"]


async def test_sequence_numbers_grow_by_one() -> None:
    events = Events()
    for _ in range(5):
        events.emit("warning", "-")
    events.close()
    numbers = [event.sequence async for event in events.watch(after=1)]
    assert all(after - before == 1 for before, after in pairwise(numbers))
