"""Makes who plays episodes, and the gateway for agents where the recipe has an environment `agent`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.coordinator.app.options import Options
from services.coordinator.episodes.chat import Chat, chat_of
from services.coordinator.episodes.chat_calls import ChatCalls
from services.coordinator.episodes.chat_template import text_of
from services.coordinator.episodes.player import Player
from services.coordinator.episodes.wanted_episode import Limits
from services.coordinator.prompts.render import load_tokenizer
from services.coordinator.state.run_context import RunContext
from services.coordinator.wire.clients import Clients
from services.coordinator.wire.episode_clients import EpisodeClients
from sluice.config.schema import Config
from sluice.config.schema.environments import AGENT
from sluice.model_identity import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from services.coordinator.agents.gateway import Gateway
    from services.coordinator.agents.playing import AgentPlayer


@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """A player and a gateway. A run without environments has neither, so that single answers load no second tokenizer;
    a run without agents has no gateway.
    """

    player: Player | None = None
    gateway: "Gateway | None" = None


def make_episodes(run: RunContext, clients: Clients, options: Options) -> Episodes:
    """What a recipe's environments need here."""
    config = run.config
    if not config.environments:
        return Episodes()
    tokenizer = load_tokenizer(config.model.path)
    chat = ChatCalls(make_chat(config, tokenizer))
    agents, gateway = None, None
    if any(one.environment == AGENT for one in config.environments.values()):
        agents, gateway = _agents(run, options, chat=chat, tokenizer=tokenizer)
    player = Player(
        config=config,
        fleet=run.fleet,
        clock=run.clock,
        environments=EpisodeClients(clients),
        chat=chat,
        agents=agents,
    )
    return Episodes(player=player, gateway=gateway)


def make_chat(config: Config, tokenizer: "PreTrainedTokenizerBase") -> Chat:
    """The form in which the model's chats are written."""
    return chat_of(tokenizer, template=config.data.template, renderer=config.model.renderer)


def _agents(
    run: RunContext, options: Options, *, chat: ChatCalls, tokenizer: "PreTrainedTokenizerBase"
) -> "tuple[AgentPlayer, Gateway]":
    from services.coordinator.agents.desk import AgentDesk
    from services.coordinator.agents.door import Door
    from services.coordinator.agents.gateway import Facts, Gateway
    from services.coordinator.agents.playing import AgentPlayer

    desk, limits = AgentDesk(run), Limits.of(run.config)
    facts = Facts(
        model=Path(run.config.model.path).name,
        limits=limits,
        temperature=run.config.rollout.temperature,
        vocabulary=vocabulary_size(run.config.model.path),
        text_of=lambda ids: text_of(tokenizer, ids),
    )
    gateway = Gateway(desk, Door(options.credentials, desk, clock=run.clock), facts)
    return AgentPlayer(desk, limits=limits, chat=chat, text_of=facts.text_of), gateway
