"""What becomes of a request for more or fewer services: the attached launcher says it, a report at a time.

who waits           for what                                            unblocked by
a call of `Scale`   the launcher's word that the order is carried out   a report that names the order; ANSWER_S
a call of `Scale`   a node, or a wait, of each service asked for        the launcher's next reports; ANSWER_S
"""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.coordinator.state.places import Places

ANSWER_S = 4.0
"""Limit for the answer. Chosen: a launcher reports every second; one that has services to end, or is of a Sluice that does not
say what becomes of an order, is not waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a launcher has done about an order."""

    order: str
    replicas: int
    """Services of the role that it keeps now."""
    refused: str
    """Why those are fewer than asked for; empty where they are not."""


class ScaleOrders:
    """The orders of the calls that wait now."""

    def __init__(self) -> None:
        self._open: dict[str, asyncio.Future[Outcome]] = {}

    @contextmanager
    def order(self) -> Iterator[str]:
        """The name of a new order, which nobody waits for any more on leaving."""
        name = secrets.token_hex(8)
        self._open[name] = asyncio.get_running_loop().create_future()
        try:
            yield name
        finally:
            del self._open[name]

    def carried_out(self, outcome: Outcome) -> None:
        """Takes a launcher's word; an order that nobody waits for any more is nobody's business."""
        if (waiting := self._open.get(outcome.order)) is not None and not waiting.done():
            waiting.set_result(outcome)

    async def outcome(self, order: str, *, role: str, replicas: int, places: Places, within_s: float) -> Outcome | None:
        """The launcher's word, or None without one in time. Returns when it is also known of each service whether it waits for
        a place, as far as the launcher places services of that role at all."""
        found: Outcome | None = None
        try:
            async with asyncio.timeout(within_s):
                found = word = await asyncio.shield(self._open[order])
                names = {f"{role}-{index}" for index in range(replicas)}
                while not word.refused and names & (known := places.known()) and not names <= known:
                    await places.changed.wait()
        except TimeoutError:
            pass
        return found
