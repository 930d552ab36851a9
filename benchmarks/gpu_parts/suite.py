"""tests/gpu as pytest runs them, in a process of their own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_parts.context import Context, Figure

ROOT = Path(__file__).parents[2]
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|deselected)")


def run(context: Context) -> Iterator[Figure]:
    """How many tests passed and failed; the log has the rest. Raises CalledProcessError when one failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    for count, what in _COUNT.findall(done.stdout.strip().splitlines()[-1]):
        yield Figure(what=f"tests {what}", value=float(count), unit="")
    done.check_returncode()
