"""Makes the parts of a run's coordinator and wires them."""

import asyncio

import structlog

from services.coordinator.api.learner_seat import LearnerSeat
from services.coordinator.api.run_parts import RunParts
from services.coordinator.app.episodes import make_chat, make_episodes
from services.coordinator.app.opening import Data, OpenedRun
from services.coordinator.app.options import Options
from services.coordinator.groups.admitter import Admitter
from services.coordinator.groups.assignment import Assigner
from services.coordinator.groups.conductor import Conductor
from services.coordinator.groups.grading import Grading
from services.coordinator.prompts.difficulty import Difficulty
from services.coordinator.prompts.render import load_tokenizer
from services.coordinator.recovery.repair import Repair
from services.coordinator.recovery.rollback import Rollbacks
from services.coordinator.run.commits import Commits
from services.coordinator.run.environment_check import check_environments, scoring_environments
from services.coordinator.run.evaluation import Evaluator
from services.coordinator.run.lifecycle import Lifecycle
from services.coordinator.run.reward_check import check_reward
from services.coordinator.run.stall import StallWatch
from services.coordinator.run.waits import Situation
from services.coordinator.state.cache_use import CacheUse
from services.coordinator.state.push_times import PushTimes
from services.coordinator.state.run_context import RunContext
from services.coordinator.weights.prober import Prober
from services.coordinator.weights.push import WeightPush
from services.coordinator.wire.clients import Clients
from services.coordinator.wire.episode_clients import EpisodeClients
from sluice.model_identity import vocabulary_size

log = structlog.get_logger(__name__)

CHECKED_PROMPTS = 4
_MOST_ROWS_NAMED = 20
_MOST_KEPT_CHECKED = 64


def make_parts(opened: OpenedRun, options: Options) -> RunParts:
    """All parts, wired, and without any group yet: resuming.py puts the groups of Redis back."""
    run, records, meta = opened.run, opened.records, opened.meta
    clients = Clients(
        options.credentials, vocabulary=vocabulary_size(run.config.model.path), keeps_traces=run.tracer.on
    )
    push_times, cache_use = PushTimes(), CacheUse()
    grading = Grading(config=run.config, fleet=run.fleet, rewards=clients, clock=run.clock)
    episodes = make_episodes(run, clients, options)
    sampler = None if options.evaluate_only else _sampler(opened)
    admitter = Admitter(
        run,
        records,
        prompts=opened.feed,
        cursor=meta.get("cursor", ""),
        admissions=int(meta.get("admissions", 0)),
        sampler=sampler,
    )
    conductor = Conductor(run, records, admitter=admitter, rollouts=clients, grading=grading, player=episodes.player)
    assigner = Assigner(run, records)
    rollbacks = Rollbacks(run, records, assigner=assigner, made=opened.rolled_back, idle=options.idle)
    repair = Repair(run, records, admitter=admitter, assigner=assigner)
    evaluator = Evaluator(run, rollouts=clients, grading=grading, sets=opened.data.held_out, player=episodes.player)

    def situation() -> Situation:
        return Situation(
            config=run.config,
            progress=run.progress,
            board=run.board,
            fleet=run.fleet,
            assigned=list(assigner.assigned),
            admissions=admitter.admissions,
            evaluating=evaluator.under_way,
            disk=run.disk.now(),
            no_place=run.places.waiting(),
            failing=admitter.failures.last_fault if admitter.failures.have_a_cause else "",
        )

    async def reward_check() -> None:
        await _check(run, clients, opened.data, whole=options.check_only)

    return RunParts(
        run=run,
        records=records,
        store=opened.store,
        codec=opened.codec,
        identity=opened.identity,
        unique_name=opened.unique_name,
        loggers=opened.loggers,
        clients=clients,
        prompts=opened.feed,
        conductor=conductor,
        assigner=assigner,
        # pyrefly: ignore[bad-argument-type] - the RPCs of gRPC's stubs are attributes, not methods
        push=WeightPush(run, clients, times=push_times, prober=_prober(run, clients, opened.data)),
        commits=Commits(
            run,
            records,
            conductor=conductor,
            assigner=assigner,
            push_times=push_times,
            cache_use=cache_use,
            rollbacks=rollbacks,
        ),
        evaluator=evaluator,
        evaluates_only=options.evaluate_only,
        lifecycle=Lifecycle(
            run,
            records,
            conductor=conductor,
            assigner=assigner,
            evaluator=evaluator,
            check_reward=reward_check,
            check_only=options.check_only,
            evaluate_only=options.evaluate_only,
            warnings=opened.data.overlaps,
        ),
        stall=StallWatch(run, conductor=conductor, situation=situation),
        rollbacks=rollbacks,
        learner=LearnerSeat(
            run,
            records,
            assigner=assigner,
            repair=repair,
            rollbacks=rollbacks,
            own_fence=opened.store.fence,
            meta=meta,
        ),
        repair=repair,
        cache_use=cache_use,
        player=episodes.player,
        gateway=episodes.gateway,
        sampler=sampler,
    )


def _sampler(opened: OpenedRun) -> Difficulty | None:
    config, data, feed = opened.run.config, opened.data.training, opened.feed
    if config.data.sampler == "shuffle" or data.size is None:
        return None
    return Difficulty(data, is_submitted=feed.is_submitted)


def _prober(run: RunContext, clients: Clients, data: Data) -> Prober | None:
    if not run.config.weights.probe:
        return None
    return Prober(config=run.config, fleet=run.fleet, rollouts=clients, prompt=data.training.next(0)[0])


async def _check(run: RunContext, clients: Clients, data: Data, *, whole: bool) -> None:
    """The checks before training: rows, environments, graders. `whole` tells the episodes word by word."""
    run.events.emit("data", ", ".join(f"{name} {value!r}" for name, value in data.facts.items()))
    for reason in data.unusable[:_MOST_ROWS_NAMED]:
        run.events.emit("row_skipped", reason)
    if (more := len(data.unusable) - _MOST_ROWS_NAMED) > 0:
        run.events.emit("row_skipped", f"and {more} more rows, which the coordinator's log names")
    scoring = await _check_environments(run, clients, data, whole=whole) if run.config.environments else set[str]()
    first = [data.training.next(position)[0] for position in range(CHECKED_PROMPTS)]
    kept = [prompt for prompts in data.training.kept_for_the_check.values() for prompt in prompts]
    checked = {prompt.prompt_id: prompt for prompt in (*first, *kept[:_MOST_KEPT_CHECKED])}.values()
    graded = [prompt for prompt in checked if prompt.environment not in scoring]  # no grader sees the others
    for row in await check_reward(run, rewards=clients, prompts=graded) if graded else ():
        run.events.emit("reward_checked", str(row))


async def _check_environments(run: RunContext, clients: Clients, data: Data, *, whole: bool) -> set[str]:
    """Rehearses the environments of the data; returns those that score."""
    # A million rows take half a minute, in which services would not be heard.
    training = await asyncio.to_thread(data.training.of_each_environment)
    prompts = [*training, *(prompt for one in data.held_out for prompt in one.prompts)]
    chat = make_chat(run.config, load_tokenizer(run.config.model.path))
    for one in await check_environments(run, environments=EpisodeClients(clients), chat=chat, prompts=prompts):
        for line in one.lines() if whole else [str(one)]:
            run.events.emit("environment_checked", line)
        for note in one.notes:
            run.events.emit("warning", f"environments.{one.environment}: {note}")
    return scoring_environments(run)
