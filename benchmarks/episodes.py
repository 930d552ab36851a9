"""Tokens a second of two-turn episodes against single answers of as many sampled tokens, over a real vLLM rollout, same run.

Real: the coordinator's players of groups and episodes with their clients and chat (services/coordinator/groups/generation.py,
episodes/), a rollout service with vLLM and its prefix cache, gRPC. Simulated: the environment, a process whose tool takes no
time or a second (benchmarks/simulated/tools.py), and the model, a Qwen3 whose turns have the length that the last word asks
for (benchmarks/simulated/counting_model.py): so both kinds sample exactly the same number of tokens.

64 episodes are in flight all the time, the engine runs 16 at once: while a tool works, its slot is another episode's. The three
kinds are measured in turns, each over a window of the engine's own count of generated tokens; ratios are of one round, figures
are medians. An episode also reads its tool's answer, and its context once more at the second turn, which the prefix cache saves
but for the last block: so the rate of all tokens that are trained on or read, counted once, is told beside that of the sampled
ones. CPU time tells what the wall clock cannot on a machine where other things run too: seconds of the rollout's process a
token, for an engine that is always full is made of nothing else. So its slots must be full all the time, by looks at the
samples that it has. The parts' share is CPU seconds of the process that plays the episodes, a second.
"""

import asyncio
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.report import Row
from benchmarks.simulated.episode_stage import EpisodeStage, Shape, episode_stage

TARGET = 0.9
SHAPE = Shape(at_once=64, slots=16, samples=8, prompt=96, turn=128, answer=16, hidden=256, layers=4)
SINGLE, INSTANT, SLOW = "", "instant", "slow"
TOOLS = {INSTANT: 0.0, SLOW: 1.0}
REPEATS = 7
SETTLE_S, WINDOW_S, LOOK_S = 4.0, 8.0, 0.2
"""Until all are in flight and in different turns; then measured; between two looks at the engine."""

_FIGURES = {
    "sampled_per_s": "sampled tokens/s",
    "all_per_s": "tokens/s with prompts and tools' answers",
    "sampled_per_cpu_s": "sampled tokens per CPU second of the engine",
    "full": "of the time with a full engine",
    "parts_share": "cores for the coordinator's parts",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """One measurement."""

    sampled_per_s: float
    all_per_s: float
    """Tokens of prompts and tools' answers too."""
    sampled_per_cpu_s: float
    """Sampled tokens a CPU second of the rollout's process."""
    full: float
    """The share of looks at which the engine had as many samples as it runs at once, or more."""
    parts_share: float
    """CPU seconds of this process a second."""


def run(repeats: int = REPEATS) -> list[Row]:
    """The three kinds in turns, after one round that warms up."""
    with tempfile.TemporaryDirectory(prefix="sluice-episodes-") as folder:
        paces = uvloop.run(_measure(Path(folder), repeats))
    rows = []
    for kind, what in ((SINGLE, "single answers"), (INSTANT, "instant tools"), (SLOW, "tools of 1 s")):
        for name, unit in _FIGURES.items():
            value = statistics.median(getattr(pace, name) for pace in paces[kind])
            rows.append(Row(what=f"{what}, median of {repeats}", value=value, unit=unit, target="", met=True))
    for kind, what in ((INSTANT, "instant tools"), (SLOW, "tools of 1 s, 64 in flight")):
        for name in ("sampled_per_s", "all_per_s", "sampled_per_cpu_s"):
            pairs = zip(paces[kind], paces[SINGLE], strict=True)
            ratio = statistics.median(getattr(one, name) / getattr(other, name) for one, other in pairs)
            rows.append(_held(f"{what}: {_FIGURES[name]}, over single answers", ratio, has_target=name != "all_per_s"))
        full = statistics.median(pace.full for pace in paces[kind])
        rows.append(_held(f"{what}: share of the time with a full engine", full))
    return rows


def _held(what: str, value: float, *, has_target: bool = True) -> Row:
    target = f">= {TARGET}" if has_target else ""
    return Row(what=what, value=value, unit="", target=target, met=value >= TARGET or not has_target)


async def _measure(folder: Path, repeats: int) -> dict[str, list[Pace]]:
    paces: dict[str, list[Pace]] = {SINGLE: [], INSTANT: [], SLOW: []}
    async with episode_stage(folder, SHAPE, TOOLS) as stage:
        for repeat in range(repeats + 1):
            for kind, measured in paces.items():
                pace = await _pace(stage, kind, WINDOW_S if repeat else LOOK_S)
                if repeat:
                    measured.append(pace)
                    print(f"{kind or 'single'}: {pace}", file=sys.stderr, flush=True)
    return paces


async def _pace(stage: EpisodeStage, kind: str, window_s: float) -> Pace:
    """The rate while all are in flight."""
    feeding = [asyncio.create_task(stage.feed(kind)) for _ in range(SHAPE.at_once // SHAPE.samples)]
    await asyncio.sleep(SETTLE_S)
    before, full = await stage.look(), list[bool]()
    while (after := await stage.look()).at_s - before.at_s < window_s:
        full.append(after.samples >= SHAPE.slots)
        await asyncio.sleep(LOOK_S)
    for task in feeding:
        task.cancel()
    failed = [one for one in await asyncio.gather(*feeding, return_exceptions=True) if isinstance(one, Exception)]
    assert not failed, failed
    tokens, took_s = after.tokens - before.tokens, after.at_s - before.at_s
    everything = (SHAPE.prompt + 2 * SHAPE.turn + (SHAPE.answer if kind else 0)) / (2 * SHAPE.turn)
    return Pace(
        sampled_per_s=tokens / took_s,
        all_per_s=tokens / took_s * everything,
        sampled_per_cpu_s=tokens / (after.engine_cpu_s - before.engine_cpu_s),
        full=statistics.mean(full),
        parts_share=(after.own_cpu_s - before.own_cpu_s) / took_s,
    )
