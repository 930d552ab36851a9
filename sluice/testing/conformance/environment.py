"""Checks an environment server: chooses the environment, then runs the checks of environment_checks.py."""

import contextlib
from typing import Any

import grpc

from sluice.testing.conformance.environment_checks import SUITE
from sluice.testing.conformance.environment_server import EnvironmentServer, row_fields
from sluice.testing.conformance.suite import Verdict
from sluice.testing.conformance.transport import CALL_TIMEOUT_S, connected
from sluice.v1 import environment_pb2, environment_pb2_grpc


async def check_environment(address: str, *, environment: str = "", row: str = "") -> list[Verdict]:
    """Checks the server at `address` (host:port).

    `environment` is the environment to check, by default the first that the server lists; `row` is a row of a data file as
    JSON, for an environment that does not begin with any row. Raises Unavailable when nothing answers, and ConfigError for a
    bad row.
    """
    fields = row_fields(row)
    async with connected(address) as channel:
        return await SUITE.run(await meet_environment(channel, environment=environment, row=fields))


async def meet_environment(
    channel: grpc.aio.Channel, *, environment: str = "", row: dict[str, Any] | None = None
) -> EnvironmentServer:
    """The server behind a channel, and the environment under check where the server lists it."""
    stub: Any = environment_pb2_grpc.EnvironmentServiceStub(channel)
    listed: list[environment_pb2.EnvironmentInfo] = []
    with contextlib.suppress(grpc.aio.AioRpcError):  # the check of ListEnvironments reports a failure
        request = environment_pb2.ListEnvironmentsRequest()
        listed = list((await stub.ListEnvironments(request, timeout=CALL_TIMEOUT_S)).environments)
    found = (one for one in listed if environment in ("", one.name))
    return EnvironmentServer(
        channel=channel, stub=stub, info=next(found, None), row=row_fields("") if row is None else row
    )
