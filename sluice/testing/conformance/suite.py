"""A list of checks over one server, and the verdict of each check.

A check is an async function whose name and docstring say what must hold. A check returns, or raises `Violation` with what
was seen, or raises `NotApplicable`. A failed call is a violation too. Each check ends within CHECK_TIMEOUT_S.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import grpc

from sluice.errors import SluiceError

CHECK_TIMEOUT_S = 60.0
"""Longer than the deadlines of all calls of a check, so that a call's own deadline speaks first."""

S = TypeVar("S")
Check = Callable[[S], Awaitable[None]]


class Violation(Exception):
    """The contract is broken; the message says what was seen."""


class NotApplicable(Exception):
    """This server gives no occasion for the check; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The outcome of one check."""

    check: str
    expected: str
    outcome: Literal["PASS", "FAIL", "SKIP"]
    seen: str = ""
    """What was seen instead, or why the check does not apply; empty for PASS."""


class Suite(Generic[S]):
    """Checks in the order in which they run."""

    def __init__(self) -> None:
        self.checks: list[Check[S]] = []

    def check(self, function: Check[S]) -> Check[S]:
        """Decorator: adds a check."""
        self.checks.append(function)
        return function

    async def run(self, server: S) -> list[Verdict]:
        """Runs all checks, one after the other, also after a failed check."""
        return [await _verdict(check, server) for check in self.checks]


def require(holds: bool, seen: str) -> None:
    """Raises Violation with `seen` unless `holds`."""
    if not holds:
        raise Violation(seen)


async def _verdict(check: Check[S], server: S) -> Verdict:
    outcome, seen = "PASS", ""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await check(server)
    except (Violation, SluiceError) as violation:  # a SluiceError: the server sent a torn array or a bad manifest
        outcome, seen = "FAIL", str(violation)
    except NotApplicable as reason:
        outcome, seen = "SKIP", str(reason)
    except grpc.aio.AioRpcError as error:
        outcome, seen = "FAIL", f"{error.code().name}: {error.details()}"
    except TimeoutError:
        outcome, seen = "FAIL", f"did not end within {CHECK_TIMEOUT_S:.0f} s"
    name = getattr(check, "__name__", str(check)).replace("_", " ")
    expected = " ".join((inspect.getdoc(check) or "").split())
    return Verdict(check=name, expected=expected, outcome=outcome, seen=seen)
