"""`sluice evaluate --model DIR`: a model folder on evaluation sets, by the services of a run but for the learner."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sluice.cli.config import load_runnable
from sluice.cli.up import engine_overrides
from sluice.errors import ConfigError, LaunchError

_NO_LIMIT_S = 7 * 86_400.0
"""eval.timeout_s without a recipe: nothing waits for the rollout meanwhile."""
_ALL_ROWS = 1_000_000
_LONGEST_PROMPT, _LONGEST_RESPONSE = 2048, 20_480
"""Tokens, at most what the model's context has; as the defaults of the schema."""


def evaluate_model(args: argparse.Namespace) -> int:
    """Evaluates, prints a table, writes the files that were asked for; returns the exit code. Raises ConfigError."""
    import asyncio

    from sluice.launch.run import Run
    from sluice.launch.view import make_view

    config = evaluation_config(args)
    if args.run_dir is not None and args.run_dir.is_dir() and any(args.run_dir.iterdir()):
        raise ConfigError(f"evaluate: --run-dir must be a new folder, {args.run_dir} has files")
    check_targets(args.json, args.parquet)
    with tempfile.TemporaryDirectory(prefix="sluice-evaluate-") as scratch:
        run_dir = (args.run_dir or Path(scratch) / "evaluation").resolve()
        view = make_view(sys.stderr, plain=True)
        outcome = asyncio.run(Run(config=config, run_dir=run_dir, view=view, evaluate_only=True).run())
        if outcome.message or outcome.exit_code or outcome.status is None:
            print(f"sluice: {outcome.message}", file=sys.stderr)
            return outcome.exit_code
        evaluations = list(outcome.status.evaluations)
        print_table(evaluations)
        if args.json is not None:
            write_json(args.json, evaluations, model=config.model.path)
        if args.parquet is not None:
            write_parquet(args.parquet, run_dir)
    return 0


def check_targets(*paths: Path | None) -> None:
    """Hours of work should not end with a folder that is not there. Raises ConfigError."""
    for path in filter(None, paths):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"evaluate: {path} cannot be written: {path.absolute().parent} is no folder")
        if path.is_dir():
            raise ConfigError(f"evaluate: {path} cannot be written: it is a folder")


def evaluation_config(args: argparse.Namespace) -> Any:
    """The recipe, or what stands in its place, with the sets and settings that the flags ask for. Raises ConfigError."""
    from sluice.config.evaluation_sets import check_files, evaluation_sets
    from sluice.config.load import parse_config
    from sluice.config.yaml_text import print_yaml
    from sluice.model_identity import model_identity

    model_identity(args.model)
    overrides = [f"model.path={json.dumps(str(args.model.resolve()))}", *engine_overrides()]
    if args.config is None:
        overrides += [*_instead_of_a_recipe(args), *_lengths(args)]
    config = load_runnable(args.config, overrides=[*overrides, *args.overrides])
    tree = config.model_dump(mode="json")
    if args.data:
        tree["data"]["val_files"], tree["eval"]["sets"] = args.data, {}
    _choose(tree, args)
    _set(tree, args)
    tree["launch"] |= {"rollout_replicas": 1, "reward_replicas": max(1, config.launch.reward_replicas)}
    tree["network"] |= {"bind": "auto", "advertise": "auto", "coordinator_port": 0, "metrics": False}
    tree["network"] |= {"credentials": None, "redis_url": None}
    tree["run"]["loggers"] = []
    tree["telemetry"]["traces"] = None
    config = parse_config(print_yaml(tree), where="evaluate")
    check_files(config)
    if not evaluation_sets(config):
        raise ConfigError(
            "evaluate: nothing to evaluate; give --data FILE, or a recipe with data.val_files or eval.sets"
        )
    return config


def _instead_of_a_recipe(args: argparse.Namespace) -> list[str]:
    """The settings without a recipe: every row of files, and as long as it takes."""
    from sluice.config.task_names import is_task

    endless = any(map(is_task, args.data))
    settings = ["data.train_files=[mixadd3:train]"]  # a recipe must name some; nothing of them is read
    settings += [f"{key}={_NO_LIMIT_S}" for key in ("eval.timeout_s", "coordinator.generate_timeout_s")]
    return settings if endless else [*settings, f"eval.prompts={_ALL_ROWS}"]


def _lengths(args: argparse.Namespace) -> list[str]:
    """Lengths of prompt and response that the model's context has room for."""
    given = {text.partition("=")[0] for text in args.overrides}
    if {"data.max_prompt_length", "data.max_response_length"} <= given:
        return []
    path = args.model / "config.json"
    try:
        read = json.loads(path.read_bytes())
        context = read.get("text_config", read)["max_position_embeddings"]
        assert isinstance(context, int)
    except (OSError, ValueError, KeyError, AttributeError, AssertionError):
        raise ConfigError(
            f"evaluate: {path} does not say max_position_embeddings; give "
            "--set data.max_prompt_length=N --set data.max_response_length=N"
        ) from None
    prompt = min(_LONGEST_PROMPT, context // 2)
    return [
        f"data.max_prompt_length={prompt}",
        f"data.max_response_length={max(1, min(_LONGEST_RESPONSE, context - prompt))}",
        "data.train_batch_size=1",  # there is none, and nothing has to hold one
    ]


def _choose(tree: dict[str, Any], args: argparse.Namespace) -> None:
    """Leaves the sets that are named."""
    from sluice.config.schema.eval import DEFAULT_SET

    sets = tree["eval"]["sets"]
    known = [*([DEFAULT_SET] if tree["data"]["val_files"] else []), *sets]
    if unknown := [name for name in args.sets if name not in known]:
        raise ConfigError(
            f"evaluate: {unknown[0]!r:.60} is no evaluation set here; there are {', '.join(known) or 'none'}"
        )
    if args.sets:
        tree["eval"]["sets"] = {name: one for name, one in sets.items() if name in args.sets}
        if DEFAULT_SET not in args.sets:
            tree["data"]["val_files"] = []


def _set(tree: dict[str, Any], args: argparse.Namespace) -> None:
    """Gives every set what the flags say."""
    flags = {"prompts": args.prompts, "n": args.n, "temperature": args.temperature, "top_p": args.top_p}
    flags |= {"greedy": False} if args.no_greedy else {}
    given = {key: value for key, value in flags.items() if value is not None}
    for section in (tree["eval"], *tree["eval"]["sets"].values()):
        section.update(given)


def print_table(evaluations: Sequence[Any]) -> None:
    """The evaluations, one a line, with their intervals."""
    from rich.console import Console
    from rich.table import Table

    from sluice.config.schema.eval import DEFAULT_SET
    from sluice.report.evaluations import within
    from sluice.report.figures import ABSENT, duration, fraction, number

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    called = ["tool use"] if any(one.tool_use for one in evaluations) else []
    for name in ("set", "prompts", "n", "avg@n", "pass@n", "maj@n", "greedy", *called, "tokens", "not graded", "time"):
        table.add_column(name, no_wrap=True)
    for one in evaluations:
        table.add_row(
            one.set or DEFAULT_SET,
            str(one.prompts),
            str(one.n),
            within(one.avg_at_n, one, "avg_interval"),
            within(one.pass_at_n, one, "pass_interval"),
            within(one.maj_at_n, one, "maj_interval") if one.HasField("maj_at_n") else ABSENT,
            fraction(one.greedy),
            *([fraction(one.tool_use) if one.HasField("tool_use") else ABSENT] if called else []),
            number(one.mean_response_tokens),
            str(one.ungraded),
            duration(one.wall_s),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def write_json(path: Path, evaluations: Sequence[Any], *, model: str = "") -> None:
    """Writes the evaluations as JSON. Raises LaunchError where that is not possible."""
    from sluice.config.schema.eval import DEFAULT_SET
    from sluice.report.evaluations import accuracy

    lines = [
        {
            "set": one.set or DEFAULT_SET,
            "version": one.version.number,
            "lineage": one.version.lineage,
            "prompts": one.prompts,
            "temperature": one.temperature,
            "top_p": one.top_p,
            **accuracy(one),
            "mean_response_tokens": one.mean_response_tokens,
            "ungraded": one.ungraded,
            "wall_s": one.wall_s,
        }
        for one in evaluations
    ]
    text = json.dumps(({"model": model} if model else {}) | {"evaluations": lines}, indent=2, allow_nan=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise LaunchError(f"evaluate: {path} cannot be written: {error.strerror}") from error


def write_parquet(path: Path, run_dir: Path) -> None:
    """Writes the rows of all evaluations of a run directory into one file. Raises LaunchError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sluice.run_dir.evaluation_schema import EVALUATIONS_FOLDER

    tables = [pq.read_table(file) for file in sorted((run_dir / EVALUATIONS_FOLDER).glob("*.parquet"))]
    try:
        pq.write_table(pa.concat_tables(tables), path)
    except OSError as error:
        raise LaunchError(f"evaluate: {path} cannot be written: {error}") from error
