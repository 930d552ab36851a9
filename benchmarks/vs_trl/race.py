"""The order of things: TRL's layout is probed, then its learning rate tuned, then both sides race on other seeds.

Every run is kept in the folder of the race, so that an interrupted race goes on where it was. Runs never overlap, and
evaluation comes after the runs of a phase.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.vs_trl.crossings import curve
from benchmarks.vs_trl.records import Moment, add_moment, facts, finish, moments, weights_dir
from benchmarks.vs_trl.sluice_side import sluice_run
from benchmarks.vs_trl.terms import Terms
from benchmarks.vs_trl.trl_side import trl_run

_TUNING_SEED = 0
TUNING_SPLIT, RACE_SPLIT = "held_out", "fresh"
_EVALUATIONS_AT_ONCE = {"demo": 2, "sums": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long and how often."""

    terms: Terms
    """Sluice's; TRL's layouts are made from them."""
    recipe: Path
    python: Path
    """Interpreter of TRL's environment."""
    out: Path
    """Folder of the race."""
    lrs: Sequence[float]
    """What TRL may choose from."""
    seeds: Sequence[int]
    trl_batches: int
    """Of the recipe's size. More than Sluice's: without dynamic sampling TRL generates fewer completions a batch."""
    probe_batches: int
    eval_prompts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How TRL runs."""

    name: str
    on_policy: bool
    """Whether every update gets a generation of its own; else a generation serves a batch's updates, as in Sluice."""
    threads: int

    def terms(self, plan: Plan, *, batches: int, lr: float) -> Terms:
        """The terms of a run of `batches` batches of the recipe's size."""
        terms = replace(plan.terms, batches=batches, lr=lr)
        return terms.on_policy() if self.on_policy else terms


LAYOUTS = [
    Layout(name=f"{'on-policy' if on_policy else 'recipe'}-{threads}t", on_policy=on_policy, threads=threads)
    for threads in (1, 2)
    for on_policy in (False, True)
]


def probe(plan: Plan) -> dict[str, float]:
    """Completions a second of each of TRL's layouts, by name."""
    speeds = {}
    for layout in LAYOUTS:
        terms = layout.terms(plan, batches=plan.probe_batches, lr=plan.terms.lr)
        end = moments(_trl(plan, layout, terms, seed=_TUNING_SEED, name=f"probe-{layout.name}"))[-1]
        speeds[layout.name] = end.completions / end.seconds
        print(f"TRL, layout {layout.name}: {speeds[layout.name]:.0f} completions/s", flush=True)
    return speeds


def tune(plan: Plan, layout: Layout) -> dict[float, float]:
    """The mean of avg@n over the whole run for each learning rate: it rewards learning early and ending high."""
    runs = {lr: _race_trl(plan, layout, lr, seed=_TUNING_SEED) for lr in plan.lrs}
    _evaluate(plan, list(runs.values()), TUNING_SPLIT)
    scores = {lr: float(np.mean(curve(run, TUNING_SPLIT).avg)) for lr, run in runs.items()}
    for lr, score in scores.items():
        final = curve(runs[lr], TUNING_SPLIT).avg[-1]
        print(f"TRL, lr {lr:g}: avg@n {score:.3f} over the run, {final:.3f} at its end", flush=True)
    return scores


def race(plan: Plan, layout: Layout, lr: float) -> dict[str, list[Path]]:
    """Both sides in turns; the evaluated runs of each."""
    runs: dict[str, list[Path]] = {"Sluice": [], "TRL": []}
    for seed in plan.seeds:
        runs["Sluice"].append(_race_sluice(plan, seed))
        runs["TRL"].append(_race_trl(plan, layout, lr, seed=seed))
    _evaluate(plan, [run for side in runs.values() for run in side], RACE_SPLIT)
    return runs


def kept_or_made(run: Path, terms: Terms, make: Callable[[Path], dict[str, object]]) -> Path:
    """Makes a run unless it is there. Raises ValueError when the one that is there was made under other terms."""
    wanted = asdict(terms) | {"betas": list(terms.betas)}
    if (known := facts(run)) is not None:
        if known["terms"] != wanted:
            raise ValueError(f"{run}: was made under other terms ({known['terms']}); remove it or give another --out")
        return run
    shutil.rmtree(run, ignore_errors=True)
    weights_dir(run, 0).parent.mkdir(parents=True)
    weights_dir(run, 0).symlink_to(terms.base, target_is_directory=True)
    add_moment(run, Moment(batches=0, seconds=0, cpu_seconds=0, completions=0, tokens=0))
    load = os.getloadavg()[0]
    print(f"{run.name} (load before it: {load:.2f})", flush=True)
    finish(run, make(run) | {"terms": wanted, "load_before": load})
    return run


def _race_trl(plan: Plan, layout: Layout, lr: float, *, seed: int) -> Path:
    terms = layout.terms(plan, batches=plan.trl_batches, lr=lr)
    return _trl(plan, layout, terms, seed=seed, name=f"trl-{layout.name}-lr{lr:g}-seed{seed}")


def _trl(plan: Plan, layout: Layout, terms: Terms, *, seed: int, name: str) -> Path:
    return kept_or_made(
        plan.out / name,
        terms,
        lambda run: trl_run(terms, python=plan.python, run=run, seed=seed, threads=layout.threads),
    )


def _race_sluice(plan: Plan, seed: int) -> Path:
    return kept_or_made(
        plan.out / f"sluice-seed{seed}",
        plan.terms,
        lambda run: sluice_run(plan.terms, recipe=plan.recipe, run=run, seed=seed),
    )


def _evaluate(plan: Plan, runs: Sequence[Path], split: str) -> None:
    """Reads all weights of the runs that were not read yet. Raises CalledProcessError."""

    def evaluate(run: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.vs_trl.evaluate", str(run), split]
        command += [
            "--task",
            plan.terms.task,
            "--prompts",
            str(plan.eval_prompts),
            "--max-response-tokens",
            str(plan.terms.max_response_tokens),
        ]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    with ThreadPoolExecutor(_EVALUATIONS_AT_ONCE[plan.terms.task]) as pool:
        for _ in pool.map(evaluate, runs):
            pass
