"""`sluice demo-turns`: a small model learns to use a calculator; everything but the model is as with `sluice up`.

The base model is built once and kept in the cache, beside the model of `sluice demo`.
"""

import argparse
from typing import Any

from sluice.cli.up import add_demo_flags, cache_dir, run_on_base

RECIPE = "two-turns.yaml"


def add_parser(commands: Any) -> None:
    """Adds `demo-turns`."""
    demo = commands.add_parser(
        "demo-turns",
        help="teach a small model to use a calculator, in episodes of two turns, on 2 CPU cores",
        description="Builds the base model (cached), then runs recipes/two-turns.yaml on it.",
    )
    add_demo_flags(demo)
    demo.set_defaults(run=run_demo_turns)


def run_demo_turns(args: argparse.Namespace) -> int:
    """Builds the base model unless the model is cached, then runs the recipe."""
    return run_on_base(args, recipe=RECIPE, task="products", base=cache_dir() / "products-base")
