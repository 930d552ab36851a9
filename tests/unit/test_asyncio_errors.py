"""The errors that asyncio only logs are found; those that a test leaves in the list fail it (tests/conftest.py)."""

import asyncio
import gc
import logging
from collections.abc import Callable

import pytest

from tests.asyncio_errors import asyncio_errors


async def _raise() -> None:
    raise OSError("nobody looks")


async def _a_task_that_nobody_awaits() -> None:
    await asyncio.wait([asyncio.create_task(_raise())])


async def _a_callback() -> None:
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("fails", "first_words", "last_line"),
    [
        (_a_task_that_nobody_awaits, "Task exception was never retrieved", "OSError: nobody looks"),
        (_a_callback, "Exception in callback", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_without_a_reader_is_found(
    fails: Callable[[], object], first_words: str, last_line: str, event_loop_errors: list[str]
) -> None:
    asyncio.run(fails())  # type: ignore[arg-type]
    gc.collect()
    (error,) = event_loop_errors
    event_loop_errors.clear()
    assert error.startswith(first_words)
    assert error.endswith(last_line)


def test_a_warning_is_no_error(event_loop_errors: list[str]) -> None:
    logging.getLogger("asyncio").warning("slow")
    assert event_loop_errors == []


def test_an_error_after_the_block_is_not_the_blocks(event_loop_errors: list[str]) -> None:
    with asyncio_errors() as errors:
        pass
    logging.getLogger("asyncio").error("later")
    event_loop_errors.clear()
    assert errors == []
