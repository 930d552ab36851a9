"""Plays episodes with an environment of `verifiers` (0.4): its train client renders chats, and asks the gateway by token ids.

Verifiers keeps one client for each configuration of an endpoint, as long as it serves. So a seat has one configuration, which
reads the key from the seat's variable, and a client that is there already is told the next episode's key: with a
configuration for each episode a long run would collect clients.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

from sluice.agents.episode import Episode, Limits, Outcome
from sluice.agents.taskset import Tasks, library
from sluice.errors import ConfigError

KEY_VARIABLE: Final = "SLUICE_EPISODE_API_KEY_{seat}"
"""verifiers keeps variables with API_KEY in their names from the programs that it starts on this machine."""
OUT_OF_ROOM: Final = ("context_length_exceeded", "exceeds maximum context length")
"""What the gateway says, and what verifiers' renderer says before it asks."""
LIMITS: Final = frozenset({"max_turns", "max_output_tokens", "max_total_tokens"})
"""Stop conditions of verifiers."""


class VerifiersRunner:
    """Implements Runner."""

    def __init__(self, config: Any, *, url: str, tokenizer: str, renderer: str) -> None:
        """`config`: an EnvConfig; `url`: the gateway's, which ends in /v1; `tokenizer`: the model's folder;
        `renderer`: a family of the `renderers` library, empty for the model's own. Raises ConfigError."""
        self._vf, self._url, self._tokenizer = library(), url, tokenizer
        self._renderer = _renderer(renderer)
        self._env = self._vf.load_environment(config)
        self._tasks = Tasks(self._env.taskset)
        self._limits: Limits | None = None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Holds what the environment's episodes share."""
        async with self._env.serving():
            yield

    async def play(self, episode: Episode, *, seat: int) -> Outcome:
        """Runner.play."""
        task = await self._tasks.of(episode.env_args)
        self._limit(episode.limits)
        client = self._client(episode, seat)
        sampling = self._vf.SamplingConfig(temperature=episode.sampling.temperature)
        context = self._vf.ModelContext(model=episode.model, client=client, sampling=sampling)
        ended = await self._env.run_episode(task, context)
        traces = [trace for trace in ended.traces if _asked(trace, client)]
        if fixed := [trace.agent.name for trace in traces if not trace.agent.trainable]:
            raise ConfigError(
                f"the agent {fixed[0]!r} is not to be trained but asks the policy, whose turns are all trained; give it a "
                f'model and a client of its own: --args \'{{"{fixed[0]}": {{"model": ..., "client": ...}}}}\''
            )
        if self._env.complete(ended):
            return outcome(traces)
        return not_complete(ended)

    def _limit(self, limits: Limits) -> None:
        """Has verifiers end an episode at the run's budgets, so that it is scored; the gateway holds to them in any case."""
        if limits == self._limits:
            return
        self._limits = limits
        for spec in _roles(self._env.config):
            if spec.client is None:
                spec.max_turns = _lower(spec.max_turns, limits.turns)
                spec.max_output_tokens = _lower(spec.max_output_tokens, limits.sampled_tokens)
                spec.max_total_tokens = _lower(spec.max_total_tokens, limits.sequence_tokens)

    def _client(self, episode: Episode, seat: int) -> Any:
        variable = KEY_VARIABLE.format(seat=seat)
        os.environ[variable] = episode.key
        config = self._vf.TrainClientConfig(
            base_url=self._url,
            api_key_var=variable,
            renderer_model_name=self._tokenizer,
            renderer=self._renderer,
        )
        known_as = config.model_dump_json()
        shared = self._env._interception  # verifiers has no other way to the clients that it keeps
        for server in getattr(shared, "servers", [shared]):
            if (kept := server.clients.get(known_as)) is not None:
                kept.client.api_key = episode.key
        return config


def outcome(traces: Sequence[Any]) -> Outcome:
    """The score of finished traces, the mean of their rewards, and what it is made of."""
    parts: dict[str, float] = {}
    for trace in traces:
        of = f"{trace.agent.name}." if len(traces) > 1 else ""
        parts |= {f"{of}{name}": one.value for name, one in trace.rewards.items() if one is not None}
        parts |= {f"{of}{name}": value for name, value in trace.metrics.items() if value is not None}
    if not traces:
        raise ValueError("no agent of the episode asked the policy")
    return Outcome(score=sum(trace.reward for trace in traces) / len(traces), parts=parts)


def not_complete(ended: Any) -> Outcome:
    """An episode that the run's budgets broke off scores 0, as any that is not done at its last turn. Raises RuntimeError."""
    errors = [*ended.errors, *(error for trace in ended.traces for error in trace.errors)]
    full = any(trace.stop_condition in LIMITS for trace in ended.traces)
    if full or any(said in error.message for said in OUT_OF_ROOM for error in errors):
        return Outcome(score=0.0, parts={"out_of_room": 1.0})
    raise RuntimeError(f"{errors[-1].type}: {errors[-1].message}" if errors else "the episode is not complete")


def _asked(trace: Any, client: Any) -> bool:
    """Whether a trace's agent wrote turns with the policy."""
    return trace.num_turns > 0 and trace.agent.config.client == client


def _roles(config: Any) -> Iterator[Any]:
    return (value for _, value in config if isinstance(value, library().AgentConfig))


def _lower(own: int | None, limit: int) -> int:
    return limit if own is None else min(own, limit)


def _renderer(name: str) -> Any:
    from renderers.configs import config_from_name

    try:
        return config_from_name(name) if name else None
    except (KeyError, ValueError) as error:
        raise ConfigError(f"--renderer: must be a family of the renderers library, got {name!r}: {error}") from None
