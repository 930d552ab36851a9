"""Opens a run: its data, Redis, the run directory, and the progress that Redis and the files record."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from services.coordinator.app.options import Options
from services.coordinator.loggers.all_loggers import Loggers, open_loggers
from services.coordinator.prompts import PromptStream
from services.coordinator.prompts.feed import PromptFeed
from services.coordinator.recovery.rollback import Account, bring_in_line, history, surviving_evaluations
from services.coordinator.run.evaluation import HeldOut
from services.coordinator.state.acceptance import Acceptance
from services.coordinator.state.board import Board
from services.coordinator.state.events import Events
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.member import Member
from services.coordinator.state.places import Places
from services.coordinator.state.progress import Progress
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.identity import Identity, identify
from services.coordinator.storage.ledger_files import LedgerFiles
from services.coordinator.storage.leftovers import drop_leftovers
from services.coordinator.storage.records import Records
from services.coordinator.storage.redis_access import access_by_password, redis_access
from services.coordinator.storage.redis_store import Store
from services.coordinator.storage.run_files import RunFiles
from services.coordinator.wire.messages import ZstdGroups
from sluice.clock import SystemClock
from sluice.config.derived import most_queued_bytes
from sluice.config.evaluation_sets import EvaluationSet, evaluation_sets
from sluice.config.load import dump_config
from sluice.config.schema import Config
from sluice.errors import DataError
from sluice.model_identity import ModelIdentity, model_identity
from sluice.policy_version import OWN_WEIGHTS, PolicyVersion
from sluice.run_dir.full_disk import DiskWaits
from sluice.telemetry.traces.process_tracer import open_tracer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The prompts of a run."""

    training: PromptStream
    """In an evaluation without a learner the prompts of the first set, with which the reward is checked."""
    held_out: Sequence[HeldOut]
    """The evaluation sets, the default set first."""
    overlaps: Sequence[str]
    """A line for each set whose prompts are among those that are trained."""
    facts: Mapping[str, object]
    """Facts about the training data, for people."""
    unusable: Sequence[str]
    """Place and reason of every row found so far that cannot become a prompt; a dry run has looked at every row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRun:
    """A run as opened, before anything is generated or trained."""

    run: RunContext
    records: Records
    store: Store
    codec: ZstdGroups
    data: Data
    feed: PromptFeed
    """Prompts of the training data, and prompts that users submit."""
    identity: ModelIdentity
    unique_name: str
    """The name that no other run has."""
    loggers: Loggers
    rolled_back: Sequence[Account]
    """Rollbacks, oldest first; the files agree with them."""
    meta: Mapping[str, str]
    """Redis's facts about the run beside the groups."""


async def open_run(config: Config, options: Options) -> OpenedRun:
    """Opens a run. Raises ConfigError or LaunchError when data, model, Redis or files cannot be used."""
    model = model_identity(config.model.path)
    data = _data(config, options)
    log.info("data", **data.facts)
    clock, events = SystemClock(), Events()
    disk = DiskWaits(clock=clock, tell=partial(_tell_disk, events), folder=options.run_dir)
    files = await disk.write(RunFiles, options.run_dir, most_bytes=config.run.file_max_bytes, disk=disk)
    identity, store = await disk.until(lambda: _take_over(config, options, files))
    codec = ZstdGroups()
    await files.keep_config(dump_config(config))
    records = Records(store=store, files=files, ledger=LedgerFiles(store=store, files=files), codec=codec)
    rolled_back = await disk.until(lambda: bring_in_line(records))
    await drop_leftovers(store, files)
    meta = await store.meta()
    progress = await _restored_progress(store, meta)
    if options.reopen:
        progress.reopen(total_steps=config.run.total_steps)
        await store.set_meta(progress.to_meta())
    if options.evaluate_only:
        progress.version = OWN_WEIGHTS
    progress.evaluations = surviving_evaluations(progress, history(rolled_back), run_dir=options.run_dir)
    loggers = open_loggers(
        config, run_dir=options.run_dir, run_id=identity.unique, trained_steps=progress.trained_steps
    )
    files.follow = loggers.put
    # Half of the limit, so that a pause alone never ends a run.
    longest_pause_s = config.coordinator.no_service_timeout_s / 2
    fleet = Fleet(longest_pause_s=longest_pause_s, tell=partial(_tell_quarantine, events))
    board = Board(
        train_batch_size=config.data.train_batch_size,
        gen_batch_size=config.gen_batch_size,
        max_staleness=config.coordinator.max_staleness,
        partial_after=config.partial_after,
        acceptance=Acceptance.of(config),
        changed=fleet.changed,
    )
    return OpenedRun(
        run=RunContext(
            run_id=identity.name,
            config=config,
            clock=clock,
            fleet=fleet,
            board=board,
            progress=progress,
            events=events,
            places=Places(clock=clock),
            disk=disk,
            tracer=open_tracer(
                config, service="coordinator", instance="coordinator", run=identity.unique, run_dir=str(options.run_dir)
            ),
        ),
        records=records,
        store=store,
        codec=codec,
        data=data,
        feed=PromptFeed(data=data.training, files=files, max_prompt_tokens=config.data.max_prompt_length),
        identity=model,
        unique_name=identity.unique,
        loggers=loggers,
        rolled_back=rolled_back,
        meta=meta,
    )


def _data(config: Config, options: Options) -> Data:
    """Reads the data. Raises ConfigError for data that cannot be used."""
    training = None if options.evaluate_only else PromptStream.open(config, files=config.data.train_files)
    sets = evaluation_sets(config)
    streams = {one: PromptStream.open(config, files=one.files, held_out=True) for one in sets}
    if options.check_only:
        for stream in filter(None, (training, *streams.values())):
            stream.look_at_every_row()
    held_out = [HeldOut(settings=one, prompts=stream.take(one.prompts)) for one, stream in streams.items()]
    for one in held_out:
        if one.settings.name and not one.prompts:
            raise DataError(f"eval.sets.{one.settings.name}: none of its prompts can be used, the log says why")
    if options.evaluate_only and not any(one.prompts for one in held_out):
        raise DataError("evaluation: there are no prompts in data.val_files and eval.sets")
    overlaps = [] if training is None else list(_overlaps(training, streams))
    for line in overlaps:
        log.warning("evaluation_overlap", reason=line)
    first = training or next(iter(streams.values()))
    everything = [stream for stream in (training, *streams.values()) if stream is not None]
    return Data(
        training=first,
        held_out=[one for one in held_out if one.prompts],
        overlaps=overlaps,
        facts=first.describe(),
        unusable=[reason for stream in everything for reason in stream.unusable.values()],
    )


def _overlaps(training: PromptStream, streams: Mapping[EvaluationSet, PromptStream]) -> Iterator[str]:
    """A line for each set of which prompts are trained."""
    for one, stream in streams.items():
        if shared := training.shared_with(stream):
            yield (
                f"{shared} of the {len(stream.taken)} prompts of the evaluation set {one.label} are in data.train_files too: "
                "its accuracy is that of prompts that were trained; take them out of one of the two"
            )


async def _take_over(config: Config, options: Options, files: RunFiles) -> tuple[Identity, Store]:
    """The run's identity and its store, which no earlier coordinator can write to any more."""
    own = access_by_password(options.redis_password) if options.redis_password else None
    access = own or redis_access(config.network)
    store = Store(url=options.redis_url, run_id=options.run_dir.name, access=access, disk=files.disk)
    await store.check(most_queued_bytes=most_queued_bytes(config))
    own_redis = options.own_redis or own is not None
    identity = await identify(files, store, own_redis=own_redis)
    if identity.keys != options.run_dir.name:
        await store.close()
        store = Store(url=options.redis_url, run_id=identity.keys, access=access, disk=files.disk)
    await store.take_over(owner=identity.id, by_force=own_redis)
    return identity, store


def _tell_quarantine(events: Events, member: Member, text: str) -> None:
    log.warning("service_quarantined", service_id=member.service_id, reason=text)
    events.emit("service_quarantined", f"{member.service_id}: {text}", labels={"service_id": member.service_id})


def _tell_disk(events: Events, kind: str, line: str) -> None:
    """A full disk, or room on it again, for the log and for those who watch."""
    (log.error if kind == "disk_full" else log.info)(kind, reason=line)
    events.emit(kind, line)


async def _restored_progress(store: Store, meta: Mapping[str, str]) -> Progress:
    committed = await store.last_step("commit")
    record = await store.record("commit", committed) if committed >= 0 else None
    version = None if record is None else PolicyVersion(lineage=record["lineage"], number=record["number"])
    return Progress.from_meta(meta, trained_steps=committed + 1, version=version)
