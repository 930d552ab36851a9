"""Checks a reward server: finds an answer that the server takes for right, then runs the checks of reward_checks.py."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import grpc

from sluice.gold_answers import gold_forms
from sluice.testing.conformance.reward_checks import SUITE, UNKNOWN_SOURCE
from sluice.testing.conformance.reward_server import RewardServer
from sluice.testing.conformance.suite import Verdict
from sluice.testing.conformance.transport import CALL_TIMEOUT_S, connected
from sluice.v1 import common_pb2, reward_pb2, reward_pb2_grpc


async def check_reward(
    address: str, *, data_source: str = "", ground_truth: str = "42", answer: str = ""
) -> list[Verdict]:
    """Checks the server at `address` (host:port).

    `data_source` is the source to grade, by default the first that the server lists; `answer` is a right completion for
    `ground_truth`, by default the ground truth in the forms that built-in graders read. Raises Unavailable when nothing
    answers.
    """
    async with connected(address) as channel:
        server = await meet_reward(channel, data_source=data_source, ground_truth=ground_truth, answer=answer)
        return await SUITE.run(server)


async def meet_reward(
    channel: grpc.aio.Channel, *, data_source: str = "", ground_truth: str = "42", answer: str = ""
) -> RewardServer:
    """The server behind a channel, with a right completion where the search found one."""
    stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
    sources = await _sources(stub)
    server = RewardServer(
        channel=channel,
        stub=stub,
        data_source=data_source or next((name for name in sources if not name.endswith("*")), UNKNOWN_SOURCE),
        ground_truth=ground_truth,
        right=None,
        takes_any_source="*" in sources,
    )
    right = await _right_among([answer] if answer else gold_forms(ground_truth), server)
    return dataclasses.replace(server, right=right)


async def _sources(stub: Any) -> list[str]:
    """The data sources that the server lists; empty on a failure, which the check of ListGraders reports."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        listed = await stub.ListGraders(reward_pb2.ListGradersRequest(), timeout=CALL_TIMEOUT_S)
        return [source for grader in listed.graders for source in grader.data_sources]
    return []


async def _right_among(texts: Sequence[str], server: RewardServer) -> str | None:
    """The first text that the server grades as right, texts sent one by one; the check of gold answers reports failures."""
    for text in texts:
        with contextlib.suppress(grpc.aio.AioRpcError):
            response = await server.stub.Score(server.request([text]), timeout=CALL_TIMEOUT_S)
            if any(result.status == common_pb2.REWARD_STATUS_OK and result.acc == 1 for result in response.results):
                return text
    return None
