"""A run whose generation and training take a time that is set: the real coordinator between simulated rollouts and a learner
that sleeps."""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simulated.learner import whole_batch
from benchmarks.simulated.stage import Stage, stage
from sluice.config.schema import Config
from sluice.testing.fakes import FakeLearner
from sluice.testing.fakes.service import Connection
from sluice.v1 import coordinator_pb2 as pb

LIMIT, MEDIAN, SIGMA = 512, 128, 0.9
SIGNAL = 0.5
SAMPLES = 8
WARM_UP = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """How many rollouts, and a batch that keeps them busy."""

    rollouts: int
    batch: int
    longer_s: float
    """The longer of generation and training."""

    @property
    def slots(self) -> int:
        """Samples a rollout generates at once: all rollouts together two batches."""
        return -(-2 * self.batch * SAMPLES // self.rollouts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How groups are admitted."""

    max_staleness: int
    refill_confidence: float = 1.0
    waves: int = 2
    """`data.gen_batch_size` in batches."""

    def __str__(self) -> str:
        ahead = f", refill_confidence {self.refill_confidence:g}" if self.max_staleness else ""
        return f"max_staleness {self.max_staleness}{ahead}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """A run in its steady state."""

    step_s: float
    waited_s: float
    """Of a step, for its batch."""
    cpu_s: float | None
    """Of the coordinator, a step; None in virtual time."""
    trained: float
    """Groups trained or assigned / those and the stale and surplus ones."""
    generated: float
    """Groups with a verdict / groups trained or assigned."""
    age_mean: float
    age_max: float


async def pace(fleet: Fleet, schedule: Schedule, *, train_s: float, token_s: float, steps: int) -> Pace:
    """Runs `steps` steps behind WARM_UP others; a token takes `token_s`, a step's training `train_s`."""
    with tempfile.TemporaryDirectory(prefix="sluice-overlap-") as folder:
        async with (
            stage(Path(folder) / "stage") as around,
            around.coordinator(_config(around.model, fleet, schedule)),
            around.reward(),
            around.fleet(fleet.rollouts, *_engine(fleet, token_s)),
        ):
            learner = FakeLearner(model=around.model)
            try:
                return await _train(around, learner, await learner.join(around.address), train_s, steps)
            finally:
                await learner.stop()


async def _train(around: Stage, learner: FakeLearner, run: Connection, train_s: float, steps: int) -> Pace:
    waited: list[float] = []
    marks: list[tuple[float, float]] = []
    for step in range(WARM_UP + steps):
        asked = time.perf_counter()
        batch = await whole_batch(learner, run, step)
        waited.append(time.perf_counter() - asked)
        await asyncio.sleep(train_s)
        await learner.commit(run, step, batch)
        marks.append((time.perf_counter(), around.conductor_cpu_s()))
    step_s, cpu_s = ((last - first) / steps for first, last in zip(marks[WARM_UP - 1], marks[-1], strict=True))
    ledger = (await run.stub.GetStatus(pb.GetStatusRequest(), timeout=30)).ledger
    used, unused = ledger.trained + ledger.assigned, ledger.stale + ledger.surplus
    rejected = ledger.filtered_all_right + ledger.filtered_all_wrong + ledger.filtered_other
    ages = [*_ages(around.run_dir / "metrics.jsonl")]
    return Pace(
        step_s=step_s,
        waited_s=statistics.mean(waited[WARM_UP:]),
        cpu_s=cpu_s,
        trained=used / (used + unused),
        generated=(used + unused + rejected) / used,
        age_mean=statistics.mean(mean for mean, _ in ages[WARM_UP:]),
        age_max=max(oldest for _, oldest in ages),
    )


def _ages(metrics: Path) -> Iterator[tuple[float, float]]:
    """Mean and largest age of each step, in steps."""
    for line in metrics.read_text().splitlines():
        values = json.loads(line)
        if "staleness/age_max_steps" in values:
            yield values["staleness/age_mean_steps"], values["staleness/age_max_steps"]


def _engine(fleet: Fleet, token_s: float) -> list[str]:
    flags = {
        "--median-tokens": MEDIAN,
        "--sigma": SIGMA,
        "--most-tokens": LIMIT,
        "--token-s": token_s,
        "--slots": fleet.slots,
        "--signal": SIGNAL,
    }
    return [str(part) for flag in flags.items() for part in flag]


def _config(model: Path, fleet: Fleet, schedule: Schedule) -> Config:
    return Config.model_validate(
        {
            "run": {"total_steps": 10_000},
            "model": {"path": str(model)},
            "data": {
                "train_files": ["mixadd3:train"],
                "train_batch_size": fleet.batch,
                "gen_batch_size": schedule.waves * fleet.batch,
                "max_prompt_length": 16,
                "max_response_length": LIMIT,
                "template": "none",
            },
            "rollout": {"n": SAMPLES},
            "reward": {"workers": 1},
            "coordinator": {
                "max_staleness": schedule.max_staleness,
                "refill_confidence": schedule.refill_confidence,
                "heartbeat_timeout_s": 60.0,
            },
            "launch": {"check_reward": False},
            "eval": {"every_steps": 0},
        }
    )
