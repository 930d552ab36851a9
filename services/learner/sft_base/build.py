"""Builds the base model of a CPU demo: `python -m services.learner.sft_base.build --out DIR [--task products]`.

The result is an ordinary Hugging Face folder, made once: a folder that was built from the same course and seed is kept,
without importing torch. The folder appears whole or not at all. training.py trains the model.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from services.learner.base_folder import make_once
from services.learner.sft_base import mixadd3_course, products_course
from services.learner.sft_base.course import Course

RECORD: Final = "warmup.json"
"""File in the folder that says how the folder was made."""

COURSES: Final[Mapping[str, Course]] = {
    course.task: course for course in (mixadd3_course.COURSE, products_course.COURSE)
}
"""Task -> what its base is taught."""


def build(out: Path, *, course: Course = mixadd3_course.COURSE, seed: int = 0, force: bool = False) -> bool:
    """Makes a course's base model in `out` unless `out` holds the model already; returns whether the model was built.

    Raises:
        ValueError: `out` is in the way: not a folder that this function made.
        RuntimeError: the base is less accurate than the course asks for.
    """
    record = {"key": cache_key(course, seed), "seed": seed, "stages": [asdict(stage) for stage in course.stages]}
    built = make_once(
        out, record_name=RECORD, record=record, write=lambda folder: _train(folder, course, seed=seed), force=force
    )
    print(f"warm-up: wrote {out}" if built else f"warm-up: {out} is up to date")
    return built


def cache_key(course: Course, seed: int) -> str:
    """A key that changes whenever the course, the seed or the demonstrations change."""
    recipe = {
        "seed": seed,
        "stages": [asdict(stage) for stage in course.stages],
        "architecture": {"vocab_size": len(course.vocabulary), **course.architecture},
        "vocabulary": course.vocabulary,
        "demonstrations": course.examples(seed),
    }
    if course.chat_template is not None:
        recipe["chat_template"] = course.chat_template
    return hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=16).hexdigest()


def _train(folder: Path, course: Course, *, seed: int) -> None:
    from services.learner.sft_base.training import save_model, train_base

    started = time.monotonic()
    model = train_base(course, seed=seed, report=lambda line: print(f"warm-up {line}", flush=True))
    save_model(model, course, folder)
    print(f"warm-up: took {time.monotonic() - started:.0f} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.learner.sft_base.build", description="Builds the base model of a CPU demo."
    )
    parser.add_argument("--task", choices=COURSES, default="mixadd3", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of weights and demonstrations (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="build even if the folder is up to date")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        build(args.out, course=COURSES[args.task], seed=args.seed, force=args.force)
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
