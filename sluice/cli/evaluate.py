"""`sluice evaluate`: how good is a model? Of a run that is up, or with --model of any model folder, without a run.

With --model the run's own launcher starts what an evaluation needs - Redis, coordinator, reward, rollout - and no learner.
"""

import argparse
from pathlib import Path
from typing import Any

from sluice.cli.control import add_coordinator_flag, call
from sluice.cli.durations import seconds
from sluice.cli.model_evaluation import check_targets, evaluate_model
from sluice.rpc.service import add_credentials_flag

_DESCRIPTION = """\
Evaluates the newest version of a run that is up, on its evaluation sets; or, with --model, the model in a folder:

  sluice evaluate                                        every set of the run at --coordinator
  sluice evaluate aime_2024 -n 32                        one set of it
  sluice evaluate --model runs/mine/model --data val.jsonl -n 8
  sluice evaluate --model Qwen2.5-32B -c recipe.yaml     the evaluation sets of a recipe
"""

_OF_MODELS = ("data", "config", "overrides", "temperature", "top_p", "no_greedy", "parquet", "run_dir")
"""Flags that only --model takes, by their names in the parsed arguments."""


def add_parser(commands: Any) -> None:
    """Adds `evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a run's newest version, or any model folder",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help="evaluation sets by name (default: all)")
    parser.add_argument("--prompts", type=_at_least_1, metavar="N", help="prompts of a set (default: the set's)")
    parser.add_argument("-n", type=_at_least_1, help="samples a prompt (default: the set's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    run = parser.add_argument_group("of a run that is up")
    add_coordinator_flag(run)
    add_credentials_flag(run)
    run.add_argument(
        "--timeout-s", type=seconds, default=900.0, metavar="S", help="give up after (default %(default)s)"
    )
    model = parser.add_argument_group("of a model folder, without a run")
    model.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face model folder")
    model.add_argument(
        "--data", action="append", default=[], metavar="FILE", help="prompts with answers, as data.val_files"
    )
    model.add_argument("-c", "--config", type=Path, help="recipe with graders and evaluation sets")
    model.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    model.add_argument("--temperature", type=float, help="of the n samples (default: the set's)")
    model.add_argument("--top-p", type=float, metavar="P", help="nucleus mass of the n samples (default: the set's)")
    model.add_argument("--no-greedy", action="store_true", help="no greedy completion beside the n samples")
    model.add_argument("--parquet", type=Path, metavar="FILE", help="write a row for every prompt there")
    model.add_argument("--run-dir", type=Path, metavar="DIR", help="keep logs and results there (default: thrown away)")
    parser.set_defaults(run=_run)


def _at_least_1(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value


def _run(args: argparse.Namespace) -> int:
    from sluice.errors import ConfigError

    if args.model is not None:
        return evaluate_model(args)
    if given := [name for name in _OF_MODELS if getattr(args, name)]:
        flag = {"config": "-c", "overrides": "--set"}.get(given[0], f"--{given[0].replace('_', '-')}")
        rows = "; a run keeps them in RUN/evaluations" if given[0] == "parquet" else ""
        raise ConfigError(f"evaluate: {flag} is for --model DIR, without a run{rows}")
    check_targets(args.json)
    return call(_evaluate_run, args)


def _evaluate_run(client: Any, args: argparse.Namespace) -> str:
    """Evaluates the sets that are asked for, or all of the run, and prints each when it is done."""
    from sluice.cli.model_evaluation import write_json
    from sluice.config.schema.eval import DEFAULT_SET
    from sluice.launch.view import evaluation_line

    names = [name if name != DEFAULT_SET else "" for name in args.sets] or list(client.status().evaluation_sets) or [""]
    made = []
    for name in names:
        made.append(client.evaluate(name, prompts=args.prompts or 0, n=args.n or 0, timeout_s=args.timeout_s))
        print(evaluation_line(made[-1]), flush=True)
    if args.json is not None:
        write_json(args.json, made)
    return ""
