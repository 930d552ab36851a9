"""A reward server under check: requests to send, and a completion that the server takes for right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from sluice.testing.conformance.suite import NotApplicable, require
from sluice.testing.conformance.transport import CALL_TIMEOUT_S
from sluice.v1 import common_pb2, reward_pb2

STOP = common_pb2.FINISH_REASON_STOP


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardServer:
    """One server."""

    channel: grpc.aio.Channel
    stub: Any
    data_source: str
    ground_truth: str
    right: str | None
    """A completion that the server takes for right; None when no tried completion was right."""
    takes_any_source: bool

    def request(self, texts: Sequence[str], **changes: Any) -> reward_pb2.ScoreRequest:
        """A request for a group with these completions, all finished."""
        items = [
            reward_pb2.ScoreItem(index=index, text=text, response_tokens=10, finish_reason=STOP)
            for index, text in enumerate(texts)
        ]
        fields: dict[str, Any] = {
            "group_id": "conformance",
            "data_source": self.data_source,
            "prompt_text": "What is it?",
        }
        fields |= {"ground_truth": self.ground_truth, "items": items}
        return reward_pb2.ScoreRequest(**(fields | changes))

    async def score(self, texts: Sequence[str], **changes: Any) -> list[common_pb2.SampleReward]:
        """The results of the group that `request` makes."""
        return await self.send(self.request(texts, **changes))

    async def send(
        self, request: reward_pb2.ScoreRequest, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> list[common_pb2.SampleReward]:
        """The results of a request, a result an item."""
        results = list((await self.stub.Score(request, timeout=timeout_s)).results)
        require(len(results) == len(request.items), f"{len(results)} results for {len(request.items)} items")
        return results

    def known_right(self) -> str:
        """A right completion. Raises NotApplicable when no right completion is known."""
        if self.right is None:
            raise NotApplicable("no completion is known that its grader takes for right")
        return self.right
