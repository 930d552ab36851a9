"""Follows a run that this process did not start, until the run has ended and the learner has exported the model and left.

who waits   for what                 unblocked by
`follow`    the run's final state    the coordinator's status; PATIENCE_S without an answer
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sluice.client import AsyncClient
from sluice.client.watching import PATIENCE_S
from sluice.config.load import parse_config
from sluice.errors import Expired, SluiceError, Unavailable
from sluice.launch.export_wait import ExportWait
from sluice.launch.run import FINAL, STATUS_INTERVAL_S
from sluice.launch.view import View
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.v1 import coordinator_pb2 as pb

_GONE = (pb.SERVICE_STATE_LOST, pb.SERVICE_STATE_DRAINING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """How a run ended."""

    status: pb.GetStatusResponse
    departures: Sequence[str]
    """`Config.departures`."""
    had_ended: bool
    """Whether the run had ended before `follow` looked."""

    @property
    def exit_code(self) -> int:
        """The exit code that `sluice up` would have."""
        return FINAL[self.status.state]


async def follow(coordinator: str, view: View, *, credentials: Credentials = NO_CREDENTIALS) -> Followed:
    """Shows the run in `view` until the run has ended. Raises Unavailable when the coordinator stays away."""
    client = AsyncClient(coordinator, credentials=credentials)
    events = asyncio.create_task(_show_events(client, view))
    try:
        status = await _status(client, coordinator, patience_s=PATIENCE_S)
        had_ended = status.state in FINAL
        config = parse_config(await client.config(), where=f"coordinator {coordinator}")
        export = ExportWait(config)
        while not (status.state in FINAL and _has_exported(status, export)):
            view.update(status)
            if events.done():
                await asyncio.sleep(STATUS_INTERVAL_S)
            else:  # the stream of events ends with the run, and the coordinator leaves soon after
                await asyncio.wait([events], timeout=STATUS_INTERVAL_S)
            try:
                status = await _status(client, coordinator, patience_s=0.0 if status.state in FINAL else PATIENCE_S)
            except Unavailable:
                if status.state not in FINAL:
                    raise
                break  # the coordinator of a run that has ended leaves when all services have left
        view.update(status)
        return Followed(status=status, departures=config.departures, had_ended=had_ended)
    finally:
        events.cancel()
        await asyncio.gather(events, return_exceptions=True)
        await client.close()


async def _status(client: AsyncClient, coordinator: str, *, patience_s: float) -> pb.GetStatusResponse:
    """The next status that the coordinator answers with."""
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            return await client.status()
        except (Unavailable, Expired) as error:
            if time.monotonic() > give_up_s:
                raise Unavailable(
                    f"the coordinator at {coordinator} did not answer for {patience_s:.0f} s; is the run up there? "
                    "--coordinator names another"
                ) from error
        await asyncio.sleep(STATUS_INTERVAL_S)


async def _show_events(client: AsyncClient, view: View) -> None:
    """Shows events, also after restarts of the coordinator; `follow` raises when the coordinator stays away."""
    with contextlib.suppress(SluiceError):
        async for event in client.watch():
            view.event(event)


def _has_exported(status: pb.GetStatusResponse, export: ExportWait) -> bool:
    """Whether the learner of a run that has ended has left, or has had its time."""
    here = any(service.role == pb.SERVICE_ROLE_LEARNER and service.state not in _GONE for service in status.services)
    return not here or export.is_over(status, now_s=time.monotonic())
