"""The check of environments before training: one scripted episode for each environment of the data (episodes/rehearsal.py) on
every server that hosts it. An environment that fails there would fail every group for hours.

As with graders, a server that fails beside one that passes does not end the start.

 who waits               for what                                    unblocked by
 `check_environments`    a server of each environment                a registration, launch.ready_timeout_s
 `check_environments`    answers to the script                       the answers, rollout.turn_timeout_s each
"""

import asyncio
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence

import structlog

from services.coordinator.episodes.chat import Chat
from services.coordinator.episodes.rehearsal import Rehearsed, rehearse
from services.coordinator.episodes.wanted_episode import Limits
from services.coordinator.run.absences import Absences
from services.coordinator.state.group import PromptLike
from services.coordinator.state.member import EnvironmentInfo, Member, Role
from services.coordinator.state.ports import EnvironmentClient
from services.coordinator.state.run_context import RunContext
from sluice.config.schema.environments import AGENT
from sluice.errors import ConfigError, NotFound, NotReady, Overloaded, SluiceError, Unavailable

log = structlog.get_logger(__name__)

AGAIN_AFTER_S = 2.0
"""The pause before the servers are asked again."""
_MOST_LINES = 8
_PASSING = (Unavailable, Overloaded, NotFound)
"""Faults of the moment."""


def scored_twice(pairs: Iterable[tuple[str, str]], *, routes: Collection[str], scoring: Collection[str]) -> list[str]:
    """A line for each (data source, environment) of the rows for which a route of the recipe names a grader, although the
    environment scores and no other row of the data source needs the grader. An empty environment: a single answer.

    `scoring`: the environments that score. A route for everything (`*`) names no data source.
    """
    pairs = set(pairs)
    graded = {data_source for data_source, environment in pairs if environment not in scoring}
    return [
        f"reward.routes.{route}: no grader sees rows of data_source {data_source!r}, because their environment {environment!r} "
        "scores: take the route away, or `scores = True` from the environment"
        for data_source, environment in sorted(pairs)
        if environment in scoring and data_source not in graded
        for route in routes
        if route == data_source or (route.endswith("*") and route != "*" and data_source.startswith(route[:-1]))
    ][:_MOST_LINES]


def infos(members: Iterable[Member]) -> Mapping[str, EnvironmentInfo]:
    """What servers say of the environments that they host."""
    return {name: facts for member in members for name, facts in member.environments.items()}


def scoring_environments(run: RunContext) -> set[str]:
    """The environments that score: by the word of their servers, or by the recipe where agents play."""
    hosted = infos(run.fleet.of(Role.ENVIRONMENT)).items()
    return {name for name, facts in hosted if facts.scores} | {name for name, scores in _agents(run).items() if scores}


def _agents(run: RunContext) -> Mapping[str, bool]:
    """The environments that agents play, who come when they like, and whether they score."""
    return {name: one.scores for name, one in run.config.environments.items() if one.environment == AGENT}


async def check_environments(
    run: RunContext, *, environments: EnvironmentClient, chat: Chat, prompts: Sequence[PromptLike]
) -> list[Rehearsed]:
    """Rehearses each environment of the prompts on every server that hosts it, with the first of its prompts.

    Agents are not waited for. `prompts`: one for each environment and data source, also those of single answers. Returns a
    rehearsal that passed for each. Raises ConfigError for an environment that nowhere keeps the contract, or for rows that are
    scored twice; NotReady for one that no server hosts; and errors of servers that stay away.
    """
    agents = _agents(run)
    by_name = {
        prompt.environment: prompt
        for prompt in reversed(prompts)
        if prompt.environment and prompt.environment not in agents
    }
    await _hosts(run, by_name)
    pairs = [(prompt.data_source, prompt.environment) for prompt in prompts]
    if lines := scored_twice(pairs, routes=run.config.reward.routes, scoring=scoring_environments(run)):
        raise ConfigError("\n".join(lines))
    return [await _checked(run, environments, chat, prompt) for prompt in by_name.values()]


async def _hosts(run: RunContext, wanted: Collection[str]) -> list[Member]:
    """The servers of environments, as soon as each wanted one has a server."""
    limit_s, absences = run.config.launch.ready_timeout_s, Absences(run.clock)
    while True:
        members = run.fleet.of(Role.ENVIRONMENT)
        missing = sorted(set(wanted) - infos(members).keys())
        if not missing:
            return members
        if absences.look(missing, limit_s=limit_s):
            hosted = ", ".join(sorted(infos(members))) or "none"
            raise NotReady(
                f"environments.{missing[0]}: no server hosts it for {limit_s:g} s (launch.ready_timeout_s); hosted are {hosted}"
            )
        await run.fleet.changed.wait(1.0)


async def _checked(run: RunContext, environments: EnvironmentClient, chat: Chat, prompt: PromptLike) -> Rehearsed:
    """One environment on all its servers; faults of the moment are given `coordinator.max_attempts` tries."""
    name, left = prompt.environment, run.config.coordinator.max_attempts
    while True:
        left -= 1
        hosts = [host for host in await _hosts(run, [name]) if name in host.environments]
        tries = (_outcome(run, host, environments, chat, prompt, trial=left) for host in hosts)
        found = dict(zip(hosts, await asyncio.gather(*tries), strict=True))
        faults = {host: one for host, one in found.items() if isinstance(one, SluiceError)}
        for host, error in faults.items():
            log.warning("environment_check_failed", environment=name, service_id=host.service_id, reason=str(error))
        if passed := [one for one in found.values() if isinstance(one, Rehearsed)]:
            _put_aside(run, faults)
            return passed[0]
        if final := [error for error in faults.values() if not isinstance(error, _PASSING)]:
            raise ConfigError(_with_key(name, final[0]))
        if not left:
            raise next(iter(faults.values()))
        await run.clock.sleep(AGAIN_AFTER_S)


async def _outcome(
    run: RunContext, host: Member, environments: EnvironmentClient, chat: Chat, prompt: PromptLike, *, trial: int
) -> Rehearsed | SluiceError:
    """The rehearsal on one server, or its fault."""
    try:
        return await rehearse(
            host,
            environments=environments,
            chat=chat,
            prompt=prompt,
            limits=Limits.of(run.config),
            # A server answers an open episode from memory, so no two processes share an id, as with those of training.
            name=f"check-{prompt.prompt_id[:64]}-{trial}-{uuid.uuid4().hex[:8]}",
            seed=run.config.run.seed,
        )
    except SluiceError as error:
        return error


def _put_aside(run: RunContext, faults: Mapping[Member, SluiceError]) -> None:
    """Names the servers that failed beside one that passed, and counts the failure."""
    for host, error in faults.items():
        run.events.emit("warning", f"environment check: {host.service_id}: {error}")
        now_s = run.clock.now()
        if not run.fleet.lose_if_unreachable(host, error, now_s=now_s):
            run.fleet.fail(host, str(error), now_s=now_s)


def _with_key(name: str, error: SluiceError) -> str:
    """The fault with the key of the recipe in front."""
    key = f"environments.{name}: "
    return str(error) if str(error).startswith(key) else f"{key}{error}"
