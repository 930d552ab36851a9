"""The same run as pace.py, in virtual time: the real conductor, assigner and board, with nothing around them that takes time.

The event loop's clock jumps to the next timer as soon as nothing is ready, so what is measured is the schedule alone: no
machine, no load, the same figures every time. Samples take the time that timed engines give them.
"""

import asyncio
import contextlib
import selectors
import statistics
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from benchmarks.simulated.pace import LIMIT, MEDIAN, SAMPLES, SIGMA, SIGNAL, WARM_UP, Fleet, Pace, Schedule
from services.coordinator.groups.assignment import Assigner
from services.coordinator.state.group import PromptLike, Reward, Sample
from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.ports import Sampling
from services.coordinator.storage.run_files import BatchFile
from sluice.policy_version import PolicyVersion
from sluice.testing.fakes import Lengths, TimedEngine, version
from tests.unit.coordinator.fakes import Stage, make_config, make_reward, make_sample

FOR_EVER_S = 1e9


def virtual_pace(fleet: Fleet, schedule: Schedule, *, train_s: float, token_s: float, steps: int) -> Pace:
    """Runs `steps` steps behind WARM_UP others; a token takes `token_s`, a step's training `train_s`."""
    with contextlib.closing(_VirtualTime()) as loop:
        return loop.run_until_complete(_run(fleet, schedule, train_s, token_s, steps))


class _Jumping(selectors.DefaultSelector):
    """Lets the time pass that it is asked to wait, at once."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += max(0.0, timeout or 0.0)
        return super().select(0)


class _VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose time is that of its selector."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


class _Rollouts:
    """Samples of timed engines, one engine a rollout, in the order in which they end."""

    def __init__(self, fleet: Fleet, token_s: float) -> None:
        lengths = Lengths(median=MEDIAN, sigma=SIGMA, most=LIMIT)
        names = [f"rollout-{number}" for number in range(fleet.rollouts)]
        self.engines = {name: TimedEngine(lengths=lengths, token_s=token_s, slots=fleet.slots) for name in names}

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
        engine, never = self.engines[member.service_id], asyncio.Event()

        async def sample(index: int, seed: int) -> Sample:
            made = await engine.generate(seed, most=LIMIT, stop=never)
            return make_sample(index, version=made.spans[0].version.number, tokens=1, seed=seed)

        tasks = [asyncio.create_task(sample(index, seed)) for index, seed in seeds.items()]
        for task in asyncio.as_completed(tasks):
            yield await task


class _Rewards:
    """The share of prompts with signal."""

    async def score(
        self, member: Member, *, group_id: str, prompt: PromptLike, samples: Sequence[Sample], timeout_s: float
    ) -> list[Reward]:
        has_signal = zlib.crc32(prompt.prompt_id.encode()) / (1 << 32) < SIGNAL
        return [make_reward(float(has_signal and sample.index == 0)) for sample in samples]


class _Batches:
    """Batches that nobody reads."""

    async def stage_batch(self, step: int, *, payloads: Sequence[bytes]) -> BatchFile:
        return BatchFile(step=step, payloads=payloads, digest=str(step))

    async def name_batch(self, step: int, digest: str) -> None:
        return None


async def _run(fleet: Fleet, schedule: Schedule, train_s: float, token_s: float, steps: int) -> Pace:
    rollouts, rewards = _Rollouts(fleet, token_s), _Rewards()
    stage = Stage(_config(fleet, schedule), rollouts=rollouts, rewards=rewards)  # type: ignore[arg-type]
    assigner = Assigner(stage.run, stage.records(_Batches()))
    for name in rollouts.engines:
        stage.add_member(Role.ROLLOUT, name, capacity=fleet.slots)
    conducting = asyncio.create_task(stage.conductor.run())
    try:
        return await _train(stage, assigner, rollouts, train_s, steps)
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in (conducting, *left):
            task.cancel()
        await asyncio.gather(conducting, *left, return_exceptions=True)


async def _train(stage: Stage, assigner: Assigner, rollouts: _Rollouts, train_s: float, steps: int) -> Pace:
    now, waited, ended = asyncio.get_running_loop().time, list[float](), list[float]()
    for step in range(WARM_UP + steps):
        _push(stage, rollouts, step)
        asked = now()
        batch = await assigner.batch(step, wait_s=FOR_EVER_S)
        assert not isinstance(batch, str), batch
        waited.append(now() - asked)
        await asyncio.sleep(train_s)
        ended.append(now())
    counters = stage.store.counters
    ages = [[step - group.oldest_version for group in groups] for step, groups in assigner.assigned.items()]
    used, unused = sum(map(len, ages)), counters["stale"] + counters["surplus"]
    rejected = sum(count for term, count in counters.items() if term.startswith("filtered_"))
    return Pace(
        step_s=(ended[-1] - ended[WARM_UP - 1]) / steps,
        waited_s=statistics.mean(waited[WARM_UP:]),
        cpu_s=None,
        trained=used / (used + unused),
        generated=(used + unused + rejected) / used,
        age_mean=statistics.mean(age for step in ages[WARM_UP:] for age in step),
        age_max=max(max(step) for step in ages),
    )


def _push(stage: Stage, rollouts: _Rollouts, number: int) -> None:
    """Every rollout has the newest weights, at once."""
    for member in stage.fleet.of(Role.ROLLOUT, state=None):
        member.version, member.granted = PolicyVersion(lineage="a", number=number), number
        rollouts.engines[member.service_id].apply(version(number))
        stage.fleet.set_state(member, State.READY)


def _config(fleet: Fleet, schedule: Schedule) -> Any:
    return make_config(
        data__train_batch_size=fleet.batch,
        data__gen_batch_size=schedule.waves * fleet.batch,
        learner__mini_batch_size=fleet.batch,
        rollout__n=SAMPLES,
        coordinator__max_staleness=schedule.max_staleness,
        coordinator__refill_confidence=schedule.refill_confidence,
        run__total_steps=10_000,
    )
