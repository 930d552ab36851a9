"""gRPC calls to servers of environments (EnvironmentClient of state/ports.py)."""

from services.coordinator.state.group import PromptLike
from services.coordinator.state.member import Member
from services.coordinator.state.ports import TooLarge
from services.coordinator.wire.clients import Clients, as_sluice_errors
from services.coordinator.wire.episode_answers import opening_of, reply_of
from services.coordinator.wire.messages import finish_to
from sluice.environments import Message, Opening, Reply
from sluice.limits import MAX_REQUEST_BYTES
from sluice.rpc.chat_messages import message_to
from sluice.v1 import common_pb2, environment_pb2


class EpisodeClients:
    """Calls over the channels of `clients`."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def open(
        self,
        member: Member,
        *,
        episode_id: str,
        prompt: PromptLike,
        seed: int,
        lease_s: float,
        max_turns: int,
        timeout_s: float,
    ) -> Opening:
        """EnvironmentClient.open."""
        request = environment_pb2.OpenRequest(
            episode_id=episode_id,
            environment=prompt.environment,
            arguments_json=prompt.environment_args_json,
            seed=seed,
            messages=[common_pb2.ChatMessage(role=one.role, content=one.content) for one in prompt.messages],
            data_source=prompt.data_source,
            ground_truth=prompt.ground_truth,
            extra_info_json=prompt.extra_info_json,
            lease_s=lease_s,
            max_turns=max_turns,
        )
        size, most = request.ByteSize(), MAX_REQUEST_BYTES["sluice.v1.EnvironmentService"]
        if size > most:
            raise TooLarge(f"{episode_id}: its row has {size} bytes, a request to an environment takes {most}")
        with as_sluice_errors(member):
            answer = await self._clients.environment(member).Open(request, timeout=timeout_s)
        return opening_of(f"{member.service_id}: {prompt.environment!r} as opened", answer)

    async def step(
        self,
        member: Member,
        *,
        episode_id: str,
        environment: str,
        turn: int,
        message: Message,
        finish_reason: str,
        last: bool,
        timeout_s: float,
    ) -> Reply:
        """EnvironmentClient.step."""
        request = environment_pb2.StepRequest(
            episode_id=episode_id,
            turn=turn,
            message=message_to(message),
            finish_reason=finish_to(finish_reason),
            last=last,
        )
        with as_sluice_errors(member):
            answer = await self._clients.environment(member).Step(request, timeout=timeout_s)
        who = f"{member.service_id}: the answer of {environment!r} to turn {turn}"
        return reply_of(who, answer, hosted=member.environments.get(environment), last=last)

    async def close(self, member: Member, *, episode_id: str, timeout_s: float) -> None:
        """EnvironmentClient.close."""
        with as_sluice_errors(member):
            await self._clients.environment(member).Close(
                environment_pb2.CloseRequest(episode_id=episode_id), timeout=timeout_s
            )
