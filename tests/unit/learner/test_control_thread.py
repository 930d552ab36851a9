"""Training blocks in calls while the control thread's event loop goes on."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from services.learner.control.thread import ControlThread
from sluice.errors import Fenced

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def thread() -> Iterator[ControlThread]:
    async def nothing() -> None: ...

    made = ControlThread()
    yield made
    made.close(nothing)


async def ends_with(error: Exception, *, after: asyncio.Event | None = None) -> None:
    if after is not None:
        await after.wait()
    raise error


def test_a_call_gives_what_its_coroutine_gives(thread: ControlThread) -> None:
    async def answer() -> int:
        return 42

    assert thread.call(answer()) == 42
    with pytest.raises(Fenced, match="replaced"):
        thread.call(ends_with(Fenced("replaced")))


def test_a_call_under_way_ends_with_the_task_that_should_outlive_it(thread: ControlThread) -> None:
    refused, broken_off = asyncio.Event(), threading.Event()

    async def never_answered() -> None:
        refused.set()
        try:
            await asyncio.Event().wait()
        finally:
            broken_off.set()

    thread.keep(ends_with(Fenced("rolled back"), after=refused))
    with pytest.raises(Fenced, match="rolled back"):
        thread.call(never_answered())
    with pytest.raises(Fenced, match="rolled back"):  # and so does the next one
        thread.call(asyncio.sleep(60))
    assert broken_off.wait(10)


def test_a_call_that_lasts_does_something_meanwhile(thread: ControlThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.learner.control.thread.MEANWHILE_S", 0.01)
    enough, commands = asyncio.Event(), list[str]()

    def command() -> None:
        commands.append("IDLE")
        if len(commands) == 3:
            thread.soon(enough.set)

    with pytest.raises(Fenced, match="replaced"):
        thread.call(ends_with(Fenced("replaced"), after=enough), meanwhile=command)
    assert len(commands) >= 3
