"""Builds the base model of the CPU demo: `python -m services.learner.sft_base.build --out DIR`.

The result is an ordinary Hugging Face folder, made once: a folder that was built from the same recipe and seed is kept,
without importing torch. The folder appears whole or not at all. training.py trains the model.
"""

import argparse
import hashlib
import json
import os
import random
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from services.learner.base_folder import make_once
from services.learner.sft_base.stages import STAGES
from sluice.tasks import mixadd3

RECORD: Final = "warmup.json"
"""File in the folder that says how the folder was made."""

MIN_GREEDY_ACCURACY: Final = 0.5
"""Greedy accuracy on training prompts that ends the last stage. Other CPUs' roundings gave .54 to .70 on held-out prompts."""

ARCHITECTURE: Final[Mapping[str, int]] = {
    "vocab_size": len(mixadd3.VOCABULARY),
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "max_position_embeddings": 128,
}
"""Sizes of a Qwen3 architecture with tied embeddings: 338,784 parameters."""


def build(out: Path, *, seed: int = 0, force: bool = False) -> bool:
    """Makes the base model in `out` unless `out` holds the model already; returns whether the model was built.

    Raises:
        ValueError: `out` is in the way: not a folder that this function made.
        RuntimeError: the base is less accurate than MIN_GREEDY_ACCURACY.
    """
    record = {"key": cache_key(seed), "seed": seed, "stages": [asdict(stage) for stage in STAGES]}
    built = make_once(
        out, record_name=RECORD, record=record, write=lambda folder: _train(folder, seed=seed), force=force
    )
    print(f"warm-up: wrote {out}" if built else f"warm-up: {out} is up to date")
    return built


def cache_key(seed: int) -> str:
    """A key that changes whenever the recipe, the seed or the demonstrations change."""
    rng = random.Random(seed)
    prompts = [mixadd3.prompt_at(seed=seed, index=index, split="train") for index in range(64)]
    recipe = {
        "seed": seed,
        "stages": [asdict(stage) for stage in STAGES],
        "architecture": dict(ARCHITECTURE),
        "vocabulary": mixadd3.VOCABULARY,
        "demonstrations": [prompt + mixadd3.demonstration(prompt, rng) for prompt in prompts],
    }
    return hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=16).hexdigest()


def _train(folder: Path, *, seed: int) -> None:
    from services.learner.sft_base.training import save_model, train_base

    model = train_base(
        seed=seed,
        architecture=ARCHITECTURE,
        stages=STAGES,
        min_accuracy=MIN_GREEDY_ACCURACY,
        report=lambda line: print(f"warm-up {line}", flush=True),
    )
    save_model(model, folder)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.learner.sft_base.build", description="Builds the base model of the CPU demo."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of weights and demonstrations (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="build even if the folder is up to date")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        build(args.out, seed=args.seed, force=args.force)
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
