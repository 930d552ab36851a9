"""Does training hide behind generation? Step time against the longer of the two, and against Sluice's own synchronous mode.

Real: coordinator, reward (with the demo's verifier), Redis, dynamic sampling, gRPC. Simulated: rollouts, whose timed engine
gives every token the same time, and the learner, which sleeps its training time. Fixed beforehand:

- Lengths: log-normal, median a quarter of the limit, sigma 0.9, cut at the limit. Most answers short, some at the limit: the
  long tail that DAPO (arXiv:2503.14476, section 3.2) and verl's fully asynchronous trainer (docs/advance/fully_async.md, 28k
  responses) speak of. The limit is 512 tokens instead of DAPO's 20,480: bytes shrink, the shape stays.
- Signal: half of the prompts, the others all right or all wrong in equal parts, so a batch of B takes 2 B groups.
  `data.gen_batch_size` is 2 B (DAPO's recipe draws 3 B): the synchronous mode gets a first wave that fills the batch.
- Generation : training from 0.25 to 4. verl's tables have both ends: 430 of 485 s a step in the update (8:8 H20, 7B), and
  generation as the larger part at 28k responses (128 H20: 356 s a step synchronously, 151 s asynchronously).
- The engine holds all samples of a first wave at once, so generation is its longest answers and the refills behind them.

Generation of a ratio is what the synchronous run measures (batch asked for until handed out), training what the learner
sleeps. Time is scaled: the longer of the two is some seconds instead of minutes, so what the coordinator itself needs weighs
a hundred times what it would; its CPU seconds a step are printed.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.report import Row
from benchmarks.simulated.learner import whole_batch
from benchmarks.simulated.stage import Stage, stage
from sluice.config.schema import Config
from sluice.testing.fakes import FakeLearner
from sluice.testing.fakes.service import Connection
from sluice.v1 import coordinator_pb2 as pb

LIMIT, MEDIAN, SIGMA = 512, 128, 0.9
SIGNAL = 0.5
SAMPLES = 8
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
WARM_UP, STEPS = 2, 8
EFFICIENCY, SPEED_UP, TRAINED = 1.05, 2.0, 0.99
TRIED_TOKEN_S = 2e-3
"""Time a token in the run that finds out how long generation takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """How many rollouts, and a batch that keeps them busy."""

    rollouts: int
    batch: int
    longer_s: float
    """The longer of generation and training."""

    @property
    def slots(self) -> int:
        """Samples a rollout generates at once."""
        return -(-2 * self.batch * SAMPLES // self.rollouts)


CURVE = Fleet(rollouts=16, batch=16, longer_s=2.0)
OTHERS = (
    Fleet(rollouts=4, batch=16, longer_s=2.0),
    Fleet(rollouts=64, batch=32, longer_s=4.0),
    Fleet(rollouts=256, batch=128, longer_s=10.0),
)
CASES = tuple((CURVE, ratio) for ratio in RATIOS) + tuple((fleet, 1.0) for fleet in OTHERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """A run in its steady state."""

    step_s: float
    waited_s: float
    """Of a step, for its batch."""
    cpu_s: float
    """Of the coordinator, a step."""
    trained: float
    """Groups trained or assigned / those and the stale and surplus ones."""


def run(cases: Sequence[tuple[Fleet, float]] = CASES, steps: int = STEPS) -> list[Row]:
    """Every case synchronously and with ages up to 1 and 2."""
    rows: list[Row] = []
    tried: dict[Fleet, float] = {}
    for fleet, ratio in cases:
        if fleet not in tried:
            probe = uvloop.run(
                _pace(fleet, max_staleness=0, train_s=0.0, token_s=TRIED_TOKEN_S, steps=max(3, steps // 2))
            )
            tried[fleet] = probe.waited_s
        train_s = fleet.longer_s * min(1.0, 1 / ratio)
        token_s = TRIED_TOKEN_S * fleet.longer_s * min(1.0, ratio) / tried[fleet]
        paces = [
            uvloop.run(_pace(fleet, max_staleness=age, train_s=train_s, token_s=token_s, steps=steps))
            for age in (0, 1, 2)
        ]
        rows += _rows(fleet, ratio, train_s, *paces)
    return rows


def _rows(fleet: Fleet, ratio: float, train_s: float, sync: Pace, *asynchronous: Pace) -> list[Row]:
    generation_s = sync.waited_s
    measured, balanced = generation_s / train_s, ratio == 1.0
    what = f"{fleet.rollouts} rollouts (simulated), generation : training {ratio:g} ({measured:.2f} measured)"
    rows = [
        Row(what=f"{what}: synchronous", value=sync.step_s, unit="s/step", target="", met=True),
        Row(what=f"{what}: coordinator, synchronous", value=sync.cpu_s, unit="CPU s/step", target="", met=True),
    ]
    for age, pace in enumerate(asynchronous, start=1):
        efficiency = pace.step_s / max(generation_s, train_s)
        faster = sync.step_s / pace.step_s
        name = f"{what}: max_staleness {age}"
        rows += [
            Row(
                what=f"{name}, step / max(generation, training)",
                value=efficiency,
                unit="",
                target=f"<= {EFFICIENCY}",
                met=efficiency <= EFFICIENCY,
            ),
            Row(
                what=f"{name}, times the synchronous speed",
                value=faster,
                unit="",
                target=f">= {SPEED_UP}" if balanced else "",
                met=faster >= SPEED_UP or not balanced,
            ),
            Row(
                what=f"{name}, qualifying groups trained",
                value=pace.trained,
                unit="",
                target=f">= {TRAINED}",
                met=pace.trained >= TRAINED,
            ),
            Row(what=f"{name}, coordinator", value=pace.cpu_s, unit="CPU s/step", target="", met=True),
        ]
    return rows


async def _pace(fleet: Fleet, *, max_staleness: int, train_s: float, token_s: float, steps: int) -> Pace:
    with tempfile.TemporaryDirectory(prefix="sluice-overlap-") as folder:
        async with (
            stage(Path(folder) / "stage") as around,
            around.coordinator(_config(around.model, fleet, max_staleness)),
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
    return Pace(step_s=step_s, waited_s=statistics.mean(waited[WARM_UP:]), cpu_s=cpu_s, trained=_trained(ledger))


def _trained(ledger: pb.Ledger) -> float:
    used = ledger.trained + ledger.assigned
    return used / (used + ledger.stale + ledger.surplus)


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


def _config(model: Path, fleet: Fleet, max_staleness: int) -> Config:
    return Config.model_validate(
        {
            "run": {"total_steps": 10_000},
            "model": {"path": str(model)},
            "data": {
                "train_files": ["mixadd3:train"],
                "train_batch_size": fleet.batch,
                "gen_batch_size": 2 * fleet.batch,
                "max_prompt_length": 16,
                "max_response_length": LIMIT,
                "template": "none",
            },
            "rollout": {"n": SAMPLES},
            "reward": {"workers": 1},
            "coordinator": {"max_staleness": max_staleness, "heartbeat_timeout_s": 60.0},
            "launch": {"check_reward": False},
            "eval": {"every_steps": 0},
        }
    )
