"""A server of environments that breaks one promise of the contract: the one that the named check checks."""

import asyncio
import itertools
import time
from typing import Any

from sluice.errors import InvalidRequest, NotFound
from sluice.rpc.server import RpcServer, make_server
from sluice.testing.fakes.environment import NAME, Episode, FakeEnvironment
from sluice.v1 import common_pb2 as common
from sluice.v1 import environment_pb2 as env


class BrokenEnvironment(FakeEnvironment):
    """Keeps the contract but for what the check `broken` checks."""

    def __init__(self, broken: str = "") -> None:
        super().__init__(clock=time.monotonic, places=12)
        self.broken = broken
        self.count = itertools.count()
        if broken == "environments_are_listed":
            self.info.version = ""

    def make_server(self) -> RpcServer:
        if self.broken == "health_says_serving":
            return make_server(self.add_to, services=[])
        if self.broken == "a_message_over_the_limit_is_refused":
            return make_server(self.add_to, services=["sluice.v1.RewardService"])  # 256 MiB a message
        return super().make_server()

    async def Open(self, request: env.OpenRequest, context: Any) -> env.OpenResponse:
        if self.broken == "a_repeated_open_has_the_same_answer" and request.episode_id in self.episodes:
            return env.OpenResponse(messages=[common.ChatMessage(role="user", content="again?")], version="1")
        if self.broken == "an_unknown_environment_is_refused" and request.environment != NAME:
            request.environment = NAME
        if self.broken == "a_lease_ends_an_episode" and 0 < request.lease_s < 1:
            request.lease_s = 60
        if self.broken == "a_full_server_says_so" and len(self.episodes) >= self.places:
            raise InvalidRequest("no room")
        return await super().Open(request, context)

    async def Step(self, request: env.StepRequest, context: Any) -> env.StepResponse:
        episode = self.episodes.get(request.episode_id)
        if self.broken == "a_step_of_an_unknown_episode_is_not_found" and episode is None:
            raise InvalidRequest("unknown")
        if self.broken == "a_repeated_step_has_the_same_answer" and episode and request.turn < len(episode.answers):
            return env.StepResponse(done=True)
        if self.broken == "any_text_is_answered" and len(request.message.content) > 1 << 20:
            raise InvalidRequest("too long")
        if self.broken == "a_caller_that_left_may_ask_again" and len(request.message.content) == 1000:
            await asyncio.sleep(0.1)
            return env.StepResponse(
                done=True, messages=[common.ChatMessage(role="user", content=f"{next(self.count)}")]
            )
        return await super().Step(request, context)

    async def Close(self, request: env.CloseRequest, context: Any) -> env.CloseResponse:
        if self.broken == "a_closed_episode_is_gone":
            return env.CloseResponse()
        if self.broken == "closing_what_is_not_open_is_no_error" and request.episode_id not in self.episodes:
            raise NotFound("not open")
        return await super().Close(request, context)

    def begin(self, request: env.OpenRequest) -> Episode:
        episode = super().begin(request)
        if self.broken == "the_same_seed_begins_the_same":
            episode.opened.messages[0].content += str(next(self.count))
        if self.broken == "an_episode_begins_with_messages_and_tools_of_known_form":
            episode.opened.tools.add(name="add", parameters_json="[]")
        return episode

    def answer(self, request: env.StepRequest, episode: Episode) -> env.StepResponse:
        answer = super().answer(request, episode)
        if self.broken == "a_turn_is_answered":
            answer.messages[0].role = "assistant"
        if self.broken == "a_score_comes_at_the_end_alone":
            answer.score.score = 1.0
        if self.broken == "episodes_at_once_do_not_mix":
            answer.messages[0].content = str(next(self.count))
        return answer

    def check_open(self, request: env.OpenRequest) -> None:
        if self.broken != "requests_that_cannot_be_served_are_refused":
            super().check_open(request)
