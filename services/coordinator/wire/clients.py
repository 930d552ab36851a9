"""gRPC calls to rollouts, rewards and the learner: one channel per process, every call with a deadline.

A call to a lost member ends at once: the member's channel is closed when `member.gone` is set.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from services.coordinator.state.group import PromptLike, Reward, Sample
from services.coordinator.state.member import Member, Role
from services.coordinator.state.ports import Sampling, TooLarge
from services.coordinator.wire.answers import AskedSamples, rewards_of
from services.coordinator.wire.episode_answers import ANSWER_BYTES
from services.coordinator.wire.messages import finish_to
from sluice.errors import Unavailable
from sluice.limits import MAX_REQUEST_BYTES
from sluice.policy_version import PolicyVersion
from sluice.rpc.access import Role as AccessRole
from sluice.rpc.arrays import pack_ids
from sluice.rpc.channel import open_channel, traced
from sluice.rpc.chat_messages import score_to
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.error_status import error_of
from sluice.rpc.policy_versions import version_to_proto
from sluice.v1 import (
    common_pb2,
    environment_pb2_grpc,
    learner_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)

_STUB = {
    Role.ROLLOUT: rollout_pb2_grpc.RolloutServiceStub,
    Role.REWARD: reward_pb2_grpc.RewardServiceStub,
    Role.ENVIRONMENT: environment_pb2_grpc.EnvironmentServiceStub,
    Role.LEARNER: learner_pb2_grpc.LearnerServiceStub,
}


_OPTIONS = {Role.ENVIRONMENT: (("grpc.max_receive_message_length", ANSWER_BYTES),)}
"""A larger answer is refused unread: it comes from a user's code."""


class Clients:
    """All outgoing calls of the coordinator."""

    def __init__(
        self, credentials: Credentials = NO_CREDENTIALS, *, vocabulary: int, keeps_traces: bool = False
    ) -> None:
        """`vocabulary` is the number of the model's token ids; with `keeps_traces` calls carry their place in a trace."""
        self._credentials, self._vocabulary, self._keeps_traces = credentials, vocabulary, keeps_traces
        self._peers: dict[Member, _Peer] = {}
        self._closers: set[asyncio.Task[None]] = set()

    def rollout(self, member: Member) -> "rollout_pb2_grpc.RolloutServiceAsyncStub":
        """The rollout's stub."""
        return self._peer(member).stub

    def learner(self, member: Member) -> "learner_pb2_grpc.LearnerServiceAsyncStub":
        """The learner's stub."""
        return self._peer(member).stub

    def environment(self, member: Member) -> "environment_pb2_grpc.EnvironmentServiceAsyncStub":
        """The stub of a server of environments."""
        return self._peer(member).stub

    async def generate(
        self,
        member: Member,
        *,
        request_id: str,
        prompt: PromptLike,
        seeds: Mapping[int, int],
        sampling: Sampling,
        timeout_s: float,
        required_version: PolicyVersion | None = None,
    ) -> AsyncIterator[Sample]:
        """RolloutClient.generate."""
        request = rollout_pb2.GenerateRequest(
            request_id=request_id,
            prompt_token_ids=pack_ids(prompt.token_ids),
            samples=[rollout_pb2.SampleSpec(index=index, seed=seed) for index, seed in seeds.items()],
            sampling=common_pb2.SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, top_k=-1, max_tokens=sampling.max_tokens
            ),
            evaluation=sampling.evaluation,
            required_version=None if required_version is None else version_to_proto(required_version),
        )
        asked = AskedSamples(
            member=member,
            oldest=member.version,
            only=required_version,
            missing=dict(seeds),
            max_tokens=sampling.max_tokens,
            vocabulary=self._vocabulary,
        )
        with as_sluice_errors(member):
            async for response in self.rollout(member).Generate(request, timeout=timeout_s):
                if response.WhichOneof("event") == "sample":
                    yield asked.take(response.sample)

    async def score(
        self, member: Member, *, group_id: str, prompt: PromptLike, samples: Sequence[Sample], timeout_s: float
    ) -> list[Reward]:
        """RewardClient.score."""
        request = reward_pb2.ScoreRequest(
            group_id=group_id,
            data_source=prompt.data_source,
            prompt_text=prompt.text,
            ground_truth=prompt.ground_truth,
            extra_info_json=prompt.extra_info_json,
            environment=prompt.environment,
            # Servers with different versions may have played episodes of one group.
            environment_version="+".join(sorted({sample.environment_version for sample in samples} - {""})),
            items=[
                reward_pb2.ScoreItem(
                    index=sample.index,
                    text=sample.text,
                    response_tokens=sample.sampled_tokens,
                    finish_reason=finish_to(sample.finish_reason),
                    given=None if sample.score is None else score_to(sample.score),
                )
                for sample in samples
            ],
        )
        size, most = request.ByteSize(), MAX_REQUEST_BYTES["sluice.v1.RewardService"]
        if size > most:
            raise TooLarge(
                f"{group_id} has {size} bytes with its texts, a request to a reward takes {most}",
                fix="lower rollout.n or data.max_response_length",
            )
        stub = self._peer(member).stub
        with as_sluice_errors(member):
            response = await stub.Score(request, timeout=timeout_s)
        return rewards_of(member, response, given=[sample.score for sample in samples])

    async def close(self) -> None:
        """Closes every channel."""
        for task in self._closers:
            task.cancel()
        await asyncio.gather(*(peer.channel.close() for peer in self._peers.values()))
        self._peers.clear()

    def _peer(self, member: Member) -> "_Peer":
        if member.gone.is_set():
            raise Unavailable(f"{member.service_id} at {member.address} is gone")
        if member not in self._peers:
            to = AccessRole(member.shown_role or member.role.value)
            options = _OPTIONS.get(member.role, ())
            channel = open_channel(member.address, credentials=self._credentials, to=to, options=options)
            channel = traced(channel) if self._keeps_traces else channel
            self._peers[member] = _Peer(channel=channel, stub=_STUB[member.role](channel))
            task = asyncio.create_task(self._close_when_gone(member))
            self._closers.add(task)
            task.add_done_callback(self._closers.discard)
        return self._peers[member]

    async def _close_when_gone(self, member: Member) -> None:
        await member.gone.wait()
        await self._peers.pop(member).channel.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Peer:
    """A member's channel and stub. A stub makes a callable for every method, so it is made once, not once a call."""

    channel: grpc.aio.Channel
    stub: Any


@contextlib.contextmanager
def as_sluice_errors(member: Member) -> Iterator[None]:
    """Turns failed calls into SluiceErrors, also calls whose channel was closed (gRPC cancels them); a cancellation of the
    calling task stays a cancellation."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error, peer=member.service_id) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if member.gone.is_set() and task is not None and not task.cancelling():
            raise Unavailable(f"{member.service_id} at {member.address} is gone") from None
        raise
    except grpc.aio.UsageError as error:
        raise Unavailable(f"{member.service_id} at {member.address} is gone") from error
