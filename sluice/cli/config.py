"""`sluice config`: shows a resolved recipe, checks one, translates one from verl."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MOST_GPUS = 100_000
"""Chosen: more than any run has, and planned in a moment."""


def add_parser(commands: Any) -> None:
    """Adds `config show`, `config check` and `config from-verl`."""
    config = commands.add_parser("config", help="show, check or translate a recipe")
    verbs = config.add_subparsers(dest="verb", required=True, metavar="VERB")
    show = verbs.add_parser("show", help="print the resolved recipe", description="Prints the resolved recipe as YAML.")
    _add_recipe_flags(show)
    show.set_defaults(run=_show)
    check = verbs.add_parser(
        "check", help="check a recipe, print what follows from it", description="Checks a recipe without running it."
    )
    _add_recipe_flags(check)
    check.add_argument(
        "--gpu-memory", metavar="SIZE", help="memory of one GPU, such as 80GB: refuse a recipe that cannot fit"
    )
    check.add_argument("--gpus", type=int, metavar="N", help="GPUs that the run may have, with --gpu-memory")
    check.set_defaults(run=_check)
    verl = verbs.add_parser(
        "from-verl",
        help="translate a verl configuration",
        description="Translates a verl configuration into a recipe; what it means goes to stderr.",
    )
    verl.add_argument(
        "source",
        nargs="+",
        metavar="FILE | KEY=VALUE",
        help="a YAML file, a launch script, a file of KEY=VALUE lines, or the settings",
    )
    verl.add_argument("-o", "--out", type=Path, default=None, help="write the recipe here instead of to stdout")
    verl.set_defaults(run=_from_verl)


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", type=Path, default=None, help="recipe (YAML)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")


def _show(args: argparse.Namespace) -> int:
    from sluice.config.load import dump_config, load_config

    print(dump_config(load_config(args.config, overrides=args.overrides, environ=os.environ)), end="")
    return 0


def _check(args: argparse.Namespace) -> int:
    from sluice.cli.gpus import for_check

    gpu_bytes = _gpu_bytes(args)
    out, refused = for_check(load_runnable(args.config, overrides=args.overrides), gpus=args.gpus, gpu_bytes=gpu_bytes)
    config = out.config
    refused += print_sizes(config, gpu_bytes=gpu_bytes, shared=out.plan is not None and out.plan.shared)
    if out.lines:
        print(*out.lines, "", sep="\n")
    print_derived(config)
    _print_shared_memory(config)
    if refused:
        from sluice.errors import ConfigError

        raise ConfigError("\n".join(refused))
    return 0


def _print_shared_memory(config: Any) -> None:
    """Too little of it is only told: this machine need not be the one that the recipe is for."""
    from sluice.errors import ConfigError
    from sluice.shared_memory import check_here

    try:
        check_here(config)
    except ConfigError as error:
        print(f"note: `sluice up` is refused on this machine: {error}")


def _gpu_bytes(args: argparse.Namespace) -> int | None:
    """The memory of a GPU in bytes, if it is given. Raises ConfigError."""
    from sluice.errors import ConfigError
    from sluice.sizing.memory_parts import parse_bytes

    if args.gpus is not None and (not 1 <= args.gpus <= _MOST_GPUS or args.gpu_memory is None):
        raise ConfigError(f"--gpus: must be from 1 to {_MOST_GPUS} and come with --gpu-memory, got {args.gpus}")
    if args.gpu_memory is None:
        return None
    try:
        return parse_bytes(args.gpu_memory)
    except ValueError as error:
        raise ConfigError(f"--gpu-memory: {error}") from error


def print_sizes(config: Any, *, gpu_bytes: int | None, shared: bool) -> list[str]:
    """Prints memory, disk and network that the recipe needs; returns what cannot fit, a line each.

    shared: whether learner and rollouts compute on the same GPUs.
    """
    from sluice.sizing.config_json import Uncounted, read_shape
    from sluice.sizing.sizing_page import page
    from sluice.sizing.verdict import cautions, refusals

    try:
        shape = read_shape(config.model.path)
    except Uncounted as reason:
        print(f"memory is not counted: model.path: {reason}\n")
        return []
    print(*page(shape, config, gpu_bytes=gpu_bytes), "", sep="\n")
    if gpu_bytes is None:
        print("note: with --gpu-memory SIZE (and --gpus N) a recipe that cannot fit is refused\n")
        return []
    for caution in cautions(shape, config, gpu_bytes=gpu_bytes):
        print(f"note: {caution}\n")
    return list(refusals(shape, config, gpu_bytes=gpu_bytes, shared=shared))


def load_runnable(path: Path | None, *, overrides: Sequence[str]) -> Any:
    """The recipe with the environment and the overrides, after looking for every file and package that the recipe names.

    Runs no code of graders and environments. Raises ConfigError for a file, a module or a package that is not there,
    and for a model that `learner.context_parallel_size` cannot cut.
    """
    from sluice.config.context_parallel import check_context_parallel
    from sluice.config.environments import check_environments
    from sluice.config.graders import check_graders
    from sluice.config.load import load_config
    from sluice.config.loggers import check_loggers
    from sluice.config.traces import check_traces

    config = load_config(path, overrides=overrides, environ=os.environ)
    if config.launch.reward_replicas:  # a reward service on another machine has files of its own
        check_graders(config)
        check_environments(config)
    check_loggers(config)
    check_traces(config)
    check_context_parallel(config)
    return config


def print_derived(config: Any) -> None:
    """Prints the numbers that follow from a recipe, one a line."""
    from sluice.config.derived import derived_table, notes

    table = derived_table(config)
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    for name, value, how in table:
        print(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {how}")
    for note in notes(config):
        print(f"note: {note}")
    if config.departures:
        print(f"not exact DAPO: {', '.join(config.departures)}")


def _from_verl(args: argparse.Namespace) -> int:
    from sluice.config.verl import from_verl
    from sluice.config.yaml_text import print_yaml

    translation = from_verl(_source(args.source))
    for note in translation.notes:
        print(note, file=sys.stderr)
    recipe = print_yaml(translation.config_tree)
    if args.out is None:
        print(recipe, end="")
    else:
        _write(args.out, recipe)
    return 0


def _write(path: Path, text: str) -> None:
    from sluice.errors import ConfigError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be written: {error.strerror}") from error


def _source(arguments: Sequence[str]) -> Mapping[str, Any] | Sequence[str]:
    """The settings on the command line, or the settings in the one file that the command line names."""
    if "=" in arguments[0]:
        return arguments
    from sluice.errors import ConfigError

    if len(arguments) > 1:
        raise ConfigError(f"from-verl: must be one file or KEY=VALUE settings, got {' '.join(arguments)}")
    path = Path(arguments[0])
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return read_settings(text, where=str(path))


def read_settings(text: str, *, where: str) -> Mapping[str, Any] | Sequence[str]:
    """A shell script that launches verl, a YAML mapping, a YAML list (hydra's overrides.yaml), or KEY=VALUE lines.

    Raises:
        ConfigError: the text is none of these.
    """
    from sluice.config.launch_script import looks_like_script, settings_of
    from sluice.config.yaml_text import parse_yaml
    from sluice.errors import ConfigError

    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    only_settings = bool(lines) and all("=" in line.split(":")[0] and not line.startswith("-") for line in lines)
    if only_settings or looks_like_script(text):
        return settings_of(text, where=where, environ=os.environ)
    tree = parse_yaml(text, where=where)
    if isinstance(tree, Mapping) or (isinstance(tree, list) and all(isinstance(item, str) for item in tree)):
        return tree
    raise ConfigError(
        f"{where}: must be a YAML mapping, a YAML list of KEY=VALUE, lines of KEY=VALUE, or a shell script that launches verl"
    )
