"""`sluice up`: a whole run, on this machine or on a cluster. `sluice demo`: the same for the demo task, base model included."""

import argparse
import errno
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sluice.cli.closing import print_checked, report
from sluice.cli.config import load_runnable, print_derived
from sluice.errors import ConfigError, LaunchError
from sluice.process.child import module_command

DEMO_RECIPE = "cpu-demo.yaml"


def add_parser(commands: Any) -> None:
    """Adds `up` and `demo`."""
    up = commands.add_parser(
        "up",
        help="run a recipe",
        description="Runs a recipe, on this machine or with its services placed by Ray or Slurm.",
    )
    up.add_argument("-c", "--config", type=Path, required=True, help="recipe (YAML)")
    up.add_argument("--dry-run", action="store_true", help="check the recipe, print the derived numbers and end")
    add_run_flags(up)
    up.set_defaults(run=run_up)
    check = commands.add_parser(
        "check-reward",
        help="grade gold and wrong answers as a run would, and end",
        description="Grades gold answers, other prompts' and garbage with the recipe's graders; prints a line a grader.",
    )
    check.add_argument("-c", "--config", type=Path, required=True, help="recipe (YAML)")
    check.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    check.set_defaults(run=run_check_reward)
    demo = commands.add_parser(
        "demo",
        help="teach a small model to add, on 2 CPU cores",
        description="Builds the demo's base model (cached), then runs the CPU demo recipe on it.",
    )
    add_demo_flags(demo)
    demo.set_defaults(run=run_demo)


def add_demo_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of every demo; `demo_overrides` reads these flags."""
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default %(default)s)")
    parser.add_argument("--steps", type=int, default=None, help="steps to train (default: the recipe's)")
    add_run_flags(parser)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of every command that runs a recipe."""
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    parser.add_argument("--run-dir", type=Path, default=None, help="run directory; an existing one is resumed")
    parser.add_argument(
        "--on", choices=["local", "ray", "slurm"], help="what places the services (default: the recipe's launch.engine)"
    )
    parser.add_argument(
        "--rollout-replicas",
        default=None,
        metavar="N|auto",
        help="rollout services; auto: as many as there are GPUs for",
    )
    parser.add_argument("--reward-replicas", type=int, default=None, metavar="N", help="reward services")
    parser.add_argument("--learner-nproc-per-node", type=int, default=None, metavar="N", help="learner ranks a machine")
    parser.add_argument("--learner-nnodes", type=int, default=None, metavar="N", help="machines of the learner")
    parser.add_argument(
        "--learner-rdzv-endpoint", default=None, metavar="HOST:PORT", help="where they meet, on this machine"
    )
    parser.add_argument("--plain", action="store_true", help="plain lines instead of the live view")
    parser.add_argument(
        "--ready-fd", type=int, metavar="FD", help="write the coordinator's address to this file descriptor"
    )


def run_up(args: argparse.Namespace) -> int:
    """Runs a recipe, or with --dry-run only checks the recipe."""
    config = load_runnable(args.config, overrides=[*args.overrides, *replica_overrides(args)])
    if args.dry_run:
        return _dry_run(config)
    return run_here(config, args)


def run_check_reward(args: argparse.Namespace) -> int:
    """Has data, tokenizer and reward checked by the real services."""
    return _check(load_runnable(args.config, overrides=args.overrides))


def _dry_run(config: Any) -> int:
    """Prints the numbers that follow from the recipe, then has the recipe checked."""
    from sluice.cli.gpus import print_gpus
    from sluice.shared_memory import check_here as check_shared_memory

    check_shared_memory(config)
    print_gpus(config)
    print_derived(config)
    return _check(config)


def check_here(config: Any) -> int:
    """`_dry_run` for a run elsewhere: what this machine does not have is named and left to the run's own start."""
    from sluice.config.schema import NetworkConfig
    from sluice.config.task_names import is_task

    print_derived(config)
    files = [file for file in (*config.data.train_files, *config.data.val_files) if not is_task(file)]
    if absent := [path for path in (config.model.path, *files) if not Path(path).expanduser().exists()]:
        print(f"not on this machine, so left to the run's own start: {', '.join(absent)}")
        return 0
    return _check(config.model_copy(update={"network": NetworkConfig()}))


def _check(config: Any) -> int:
    """Has data, tokenizer and reward checked by the real services; returns the exit code."""
    import asyncio
    import tempfile

    from sluice.config.evaluation_sets import check_files
    from sluice.launch.run import Run
    from sluice.launch.view import make_view

    check_files(config)
    ports = {"coordinator_port": 0, "gateway_port": 0, "metrics": False}  # so that there may be a run beside it
    config = config.model_copy(update={"network": config.network.model_copy(update=ports)})
    with tempfile.TemporaryDirectory(prefix="sluice-dry-run-") as folder:
        run_dir = Path(folder) / "dry-run"
        view = make_view(sys.stdout, plain=True)
        outcome = asyncio.run(Run(config=config, run_dir=run_dir, view=view, check_only=True).run())
        if outcome.exit_code:
            print(f"sluice: {outcome.message}", file=sys.stderr)
            return outcome.exit_code
    print_checked(config)
    return 0


def run_demo(args: argparse.Namespace) -> int:
    """Builds the base model unless the model is cached, then runs the demo recipe."""
    return run_on_base(args, recipe=DEMO_RECIPE, task="mixadd3", base=demo_base_dir())


def run_on_base(args: argparse.Namespace, *, recipe: str, task: str, base: Path) -> int:
    """Builds a task's base model unless the folder `base` has it, then runs a recipe on it."""
    config = load_runnable(find_recipe(recipe), overrides=demo_overrides(args, model=base))
    warm_up = [*module_command("services.learner.sft_base.build"), "--task", task, "--out", str(base)]
    try:
        subprocess.run(warm_up, check=True)
    except subprocess.CalledProcessError as error:
        raise LaunchError(f"building the base model failed with code {error.returncode}: see above") from error
    return run_here(config, args)


def demo_overrides(args: argparse.Namespace, *, model: Path) -> list[str]:
    """A demo's flags as overrides of its recipe; `--set` wins over the model and the seed."""
    overrides = [f"model.path={json.dumps(str(model))}", f"run.seed={args.seed}", *args.overrides]
    overrides += [*replica_overrides(args), *engine_overrides()]
    if args.steps is not None:
        overrides.append(f"run.total_steps={args.steps}")
    return overrides


def engine_overrides() -> list[str]:
    """The override for the transformers engine where vLLM is not installed; none where vLLM is."""
    if importlib.util.find_spec("vllm") is not None:
        return []
    print("vLLM is not installed: rollouts use the transformers engine", file=sys.stderr)
    return ["rollout.engine=transformers"]


def find_recipe(name: str) -> Path:
    """A recipe that ships with Sluice: in the repository, else in the installed package."""
    package = Path(__file__).parent.parent
    for folder in (package.parent / "recipes", package / "recipes"):
        if (folder / name).exists():
            return folder / name
    raise ConfigError(
        f"recipe {name} is neither in recipes/ nor in the installed package; give one with `sluice up -c`"
    )


def cache_dir() -> Path:
    """The folder of the models and files that the demos make: SLUICE_CACHE, else the user's cache directory.

    Raises LaunchError when the folder cannot be made.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("SLUICE_CACHE") or os.path.join(caches, "sluice"))
    try:
        if str(folder).startswith("~"):
            raise FileNotFoundError(errno.ENOENT, "this user has no home")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            f"the demo's model is kept in {folder}, which cannot be made: {error.strerror}; set SLUICE_CACHE to a folder"
        ) from error
    return folder


def demo_base_dir() -> Path:
    """Where the demo's base model is cached."""
    return cache_dir() / "mixadd3-base"


def replica_overrides(args: argparse.Namespace) -> list[str]:
    """The overrides that the flags for numbers of processes stand for."""
    flags = {
        "launch.engine": args.on,
        "launch.rollout_replicas": args.rollout_replicas,
        "launch.reward_replicas": args.reward_replicas,
        "launch.learner_nproc_per_node": args.learner_nproc_per_node,
        "launch.learner_nnodes": args.learner_nnodes,
        "launch.learner_rdzv_endpoint": args.learner_rdzv_endpoint,
    }
    return [f"{key}={value}" for key, value in flags.items() if value is not None]


def run_here(config: Any, args: argparse.Namespace) -> int:
    """Runs a checked recipe on this machine, reports, and returns the exit code."""
    import asyncio

    from sluice.cli.ui import beside
    from sluice.config.evaluation_sets import check_files
    from sluice.launch.engines.choice import engine_of
    from sluice.launch.run import Run
    from sluice.launch.view import make_view
    from sluice.model_identity import model_identity
    from sluice.run_dir.naming import new_run_dir
    from sluice.shared_memory import check_here as check_shared_memory
    from sluice.telemetry.full_disk_stream import FullDiskStream

    check_shared_memory(config)
    check_files(config)
    model_identity(config.model.path)
    run_dir = (args.run_dir or new_run_dir(config)).resolve()
    view = make_view(sys.stdout, plain=args.plain)
    try:
        with beside(config, run_dir, view.message):
            view.message(f"run directory {run_dir}")
            run = Run(
                config=config, run_dir=run_dir, view=view, ready_fd=args.ready_fd, engine=engine_of(config.launch)
            )
            outcome = asyncio.run(run.run())
    finally:
        view.close()
    if outcome.status is not None and outcome.status.step:
        report(outcome.status, departures=config.departures, run_dir=run_dir, wall_s=outcome.wall_s)
    if outcome.message:
        FullDiskStream(sys.stderr).write(f"sluice: {outcome.message}\n")
    return outcome.exit_code
