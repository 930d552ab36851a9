"""python -m benchmarks.vs_trl: the whole race, or --smoke, some minutes that only shows that everything works."""

import argparse
import sys
import tempfile
from pathlib import Path

_TASKS = ("demo", "sums")
_LRS = {"demo": [1e-4, 2e-4, 4e-4, 8e-4], "sums": [2.5e-6, 5e-6, 1e-5, 2e-5]}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_trl", description=__doc__)
    parser.add_argument(
        "--smoke", action="store_true", help="2 batches a side, one seed; writes nothing into the repository"
    )
    parser.add_argument(
        "--task", choices=_TASKS, default="demo", help="demo, or SmolLM2-135M on sums (default: %(default)s)"
    )
    parser.add_argument("--env", type=Path, default=None, help="TRL's environment (default: trl-env in the cache)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the runs (default: vs-trl-TASK in the cache)")
    parser.add_argument("--lrs", type=float, nargs="+", help="for TRL to choose from (default: around the recipe's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the race (TRL is tuned on seed 0)")
    parser.add_argument("--trl-batches", type=int, help="of the recipe's size (default: 200, sums 40)")
    args = parser.parse_args()
    if args.smoke:
        with tempfile.TemporaryDirectory(prefix="vs-trl-smoke-") as folder:
            return _run(args, out=Path(folder), report=Path(folder))
    return _run(args, out=args.out, report=None)


def _run(args: argparse.Namespace, *, out: Path | None, report: Path | None) -> int:
    """Everything; `report` is where the JSON and the picture go instead of into the repository."""
    import dataclasses
    import os
    import subprocess

    from benchmarks.vs_trl.environment import prepare
    from benchmarks.vs_trl.race import LAYOUTS, Plan, probe, race, tune
    from benchmarks.vs_trl.report import publish
    from benchmarks.vs_trl.terms import terms_of
    from sluice.cli import demo_llm
    from sluice.cli.up import DEMO_RECIPE, cache_dir, demo_base_dir, find_recipe
    from sluice.config.load import load_config

    demo = args.task == "demo"
    base = demo_base_dir() if demo else cache_dir().absolute() / "smollm2-135m-instruct"
    build = [sys.executable, "-m", f"services.learner.{'sft_base' if demo else 'gguf_base'}.build", "--out", str(base)]
    subprocess.run(build, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    recipe = find_recipe(DEMO_RECIPE if demo else demo_llm.RECIPE)
    config = load_config(recipe, overrides=[f"model.path={base}"])
    terms = terms_of(config, task=args.task, save_every_batches=2)
    lrs = args.lrs or _LRS[args.task]
    plan = Plan(
        terms=terms,
        recipe=recipe,
        python=prepare(args.env or base.parent / "trl-env"),
        out=out or base.parent / ("vs-trl" if demo else "vs-trl-sums"),
        lrs=lrs,
        seeds=args.seeds,
        trl_batches=args.trl_batches or (200 if demo else 40),
        probe_batches=16 if demo else 2,
        eval_prompts=256,
    )
    if args.smoke:
        plan = dataclasses.replace(
            plan,
            terms=dataclasses.replace(terms, batches=2, save_every_batches=1),
            lrs=lrs[:1],
            seeds=args.seeds[:1],
            trl_batches=2,
            probe_batches=1,
            eval_prompts=16,
        )
    speeds = probe(plan)
    layout = max(LAYOUTS, key=lambda layout: speeds[layout.name])
    scores = tune(plan, layout)
    lr = max(scores, key=lambda lr: scores[lr])
    print(f"TRL races with layout {layout.name} and lr {lr:g}", flush=True)
    publish(race(plan, layout, lr), plan=plan, speeds=speeds, scores=scores, report=report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
