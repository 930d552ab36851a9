"""Does training hide behind generation? Step time against the longer of the two, and against Sluice's own synchronous mode.

Real: coordinator, reward (with the demo's verifier), Redis, dynamic sampling, gRPC. Simulated: rollouts, whose timed engine
gives every token the same time, and the learner, which sleeps its training time. Fixed beforehand:

- Lengths: log-normal, median a quarter of the limit, sigma 0.9, cut at the limit. Most answers short, some at the limit: the
  long tail that DAPO (arXiv:2503.14476, section 3.2) and verl's fully asynchronous trainer (docs/advance/fully_async.md, 28k
  responses) speak of. The limit is 512 tokens instead of DAPO's 20,480: bytes shrink, the shape stays.
- Signal: half of the prompts, the others all right or all wrong in equal parts, so a batch of B takes 2 B groups. The rollouts
  hold the samples of 2 B groups at once. `data.gen_batch_size` is 2 B; DAPO's recipe draws 3 B.
- Generation : training from 0.25 to 4. verl's tables have both ends: 430 of 485 s a step in the update (8:8 H20, 7B), and
  generation as the larger part at 28k responses (128 H20: 356 s a step synchronously, 151 s asynchronously).

The synchronous run is tuned: of the generation batches in SYNC_WAVES the one with the shortest step, by fleet, at ratio 1.
Generation of a ratio is what the synchronous run waits for a batch (asked for until handed out), training what the learner
sleeps. The time of a token that gives a ratio is found by synchronous runs of the same steps, because what the coordinator
needs does not shrink with a token's time, and other steps have other lengths. Time is scaled: the longer of the two is some
seconds instead of minutes, so what the coordinator itself needs weighs a hundred times what it would; its CPU seconds a step
are printed. With G = T no schedule can have more than (G + T) / max(G, T) = 2 times the synchronous speed.

`python -m benchmarks.overlap 16` measures the fleet of 16 rollouts alone; results/overlap.json keeps what it has of the others.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

import uvloop

from benchmarks.report import RESULTS, Row, show, write
from benchmarks.simulated.pace import LIMIT, Fleet, Pace, Schedule, pace

RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
STEPS = 8
EFFICIENCY, SPEED_UP, TRAINED = 1.05, 2.0, 0.99
SYNC_WAVES = (2, 3)
SCHEDULES = (
    Schedule(max_staleness=1),
    Schedule(max_staleness=1, refill_confidence=0.9),
    Schedule(max_staleness=1, refill_confidence=0.5),
    Schedule(max_staleness=2),
    Schedule(max_staleness=2, refill_confidence=0.9),
    Schedule(max_staleness=4),
)

CLOSE = 0.04
"""How far measured generation may be from what was asked for. Chosen: two runs of the same steps differ by about as much."""
TRIES = 4
FIRST_WAVE = 1.5
"""Generation of a batch in longest answers, the first guess."""

CURVE = Fleet(rollouts=16, batch=16, longer_s=2.0)
OTHERS = (
    Fleet(rollouts=4, batch=16, longer_s=2.0),
    Fleet(rollouts=64, batch=32, longer_s=4.0),
    Fleet(rollouts=256, batch=128, longer_s=10.0),
)
CASES = tuple((CURVE, ratio) for ratio in RATIOS) + tuple((fleet, 1.0) for fleet in OTHERS)


class Measure(Protocol):
    """Runs a schedule; a token takes `token_s`, a step's training `train_s`."""

    def __call__(self, fleet: Fleet, way: Schedule, /, *, train_s: float, token_s: float, steps: int) -> Pace: ...


def _real_pace(fleet: Fleet, way: Schedule, /, *, train_s: float, token_s: float, steps: int) -> Pace:
    return uvloop.run(pace(fleet, way, train_s=train_s, token_s=token_s, steps=steps))


def run(cases: Sequence[tuple[Fleet, float]] = CASES, steps: int = STEPS, measure: Measure = _real_pace) -> list[Row]:
    """Every case synchronously and by every schedule."""
    rows: list[Row] = []
    tuned: dict[Fleet, Schedule] = {}
    for fleet, ratio in cases:
        if fleet not in tuned:
            tuned[fleet] = _tuned(fleet, steps, measure)
        train_s, generation_s = fleet.longer_s * min(1.0, 1 / ratio), fleet.longer_s * min(1.0, ratio)
        token_s, sync = _calibrated(
            fleet, tuned[fleet], train_s=train_s, generation_s=generation_s, steps=steps, measure=measure
        )
        paces = {way: measure(fleet, way, train_s=train_s, token_s=token_s, steps=steps) for way in SCHEDULES}
        measured = f"{ratio:g} ({sync.waited_s / train_s:.2f} measured)"
        what = f"{fleet.rollouts} rollouts (simulated), generation : training {measured}"
        rows += _sync_rows(f"{what}: synchronous, gen_batch_size {tuned[fleet].waves} B", sync)
        for way, found in paces.items():
            rows += _rows(f"{what}: {way}", way, found, sync=sync, train_s=train_s, balanced=ratio == 1.0)
    return rows


def _tuned(fleet: Fleet, steps: int, measure: Measure) -> Schedule:
    """The fastest synchronous schedule at about ratio 1."""
    token_s = fleet.longer_s / (FIRST_WAVE * LIMIT)
    ways = [Schedule(max_staleness=0, waves=waves) for waves in SYNC_WAVES]
    return min(ways, key=lambda way: measure(fleet, way, train_s=fleet.longer_s, token_s=token_s, steps=steps).step_s)


def _calibrated(
    fleet: Fleet, way: Schedule, *, train_s: float, generation_s: float, steps: int, measure: Measure
) -> tuple[float, Pace]:
    """The token time with which the synchronous run waits `generation_s` a batch, by secants, and that run.

    The wait is a constant of the machine and a multiple of the token time; the constant is large for many rollouts.
    """
    token_s = generation_s / (FIRST_WAVE * LIMIT)
    tried: list[tuple[float, float, Pace]] = []
    for _ in range(TRIES):
        sync = measure(fleet, way, train_s=train_s, token_s=token_s, steps=steps)
        tried.append((abs(sync.waited_s / generation_s - 1.0), token_s, sync))
        if tried[-1][0] <= CLOSE:
            break
        slope = sync.waited_s / token_s
        if len(tried) > 1 and token_s != tried[-2][1]:
            secant = (sync.waited_s - tried[-2][2].waited_s) / (token_s - tried[-2][1])
            slope = secant if secant > slope / 4 else slope  # else noise
        token_s = max(token_s / 4, token_s + (generation_s - sync.waited_s) / slope)
    _, token_s, sync = min(tried, key=lambda one: one[0])
    return token_s, sync


def _sync_rows(what: str, sync: Pace) -> Iterator[Row]:
    yield _row(what, sync.step_s, "s/step")
    yield _row(f"{what}, qualifying groups trained", sync.trained)
    yield _row(f"{what}, groups generated a trained group", sync.generated)
    yield from _cpu_rows(what, sync)


def _rows(name: str, way: Schedule, pace: Pace, *, sync: Pace, train_s: float, balanced: bool) -> Iterator[Row]:
    efficiency, faster = pace.step_s / max(sync.waited_s, train_s), sync.step_s / pace.step_s
    most, wanted = way.max_staleness, f">= {SPEED_UP}" if balanced else ""
    what = f"{name}, step / max(generation, training)"
    yield _row(what, efficiency, "", f"<= {EFFICIENCY}", met=efficiency <= EFFICIENCY)
    yield _row(f"{name}, times the synchronous speed", faster, "", wanted, met=faster >= SPEED_UP or not balanced)
    yield _row(f"{name}, qualifying groups trained", pace.trained, "", f">= {TRAINED}", met=pace.trained >= TRAINED)
    yield _row(f"{name}, groups generated a trained group", pace.generated)
    yield _row(f"{name}, mean age", pace.age_mean, "steps")
    yield _row(f"{name}, largest age", pace.age_max, "steps", f"<= {most}", met=pace.age_max <= most)
    yield from _cpu_rows(name, pace)


def _cpu_rows(name: str, pace: Pace) -> Iterator[Row]:
    if pace.cpu_s is not None:
        yield _row(f"{name}, coordinator", pace.cpu_s, "CPU s/step")


def _row(what: str, value: float, unit: str = "", target: str = "", *, met: bool = True) -> Row:
    return Row(what=what, value=value, unit=unit, target=target, met=met)


def main() -> None:
    """Measures the fleets whose sizes are named, and keeps the rows of the others."""
    sizes = {int(size) for size in sys.argv[1:]}
    measured = run([case for case in CASES if case[0].rollouts in sizes])
    show("overlap", measured)
    before = [Row(**row) for row in json.loads((RESULTS / "overlap.json").read_text())["rows"]]
    kept = [row for row in before if int(row.what.split()[0]) not in sizes]
    order = [fleet.rollouts for fleet in (CURVE, *OTHERS)]
    rows = sorted([*kept, *measured], key=lambda row: order.index(int(row.what.split()[0])))
    print(f"written to {write('overlap', rows)}")


if __name__ == "__main__":
    main()
