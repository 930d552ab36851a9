"""A rank leaves with its exit code, whatever gloo's threads still hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]

# Collectives whose tensors gloo's threads alone hold when the process ends. Ended by sys.exit instead, 9 to 18 of 100 such
# processes died of SIGABRT here, so that 30 in a row would pass by luck in 1 of 20 to 400 tries.
PROGRAM = """
import os, sys
import torch, torch.distributed as dist
from services.learner.distributed.ending import end_process
from services.learner.distributed.ranks import join_ranks

def main() -> int:
    join_ranks()
    for _ in range(300):
        dist.all_reduce(torch.zeros(1), async_op=True)
    print("said")
    if sys.argv[1] == "raise":
        raise ValueError("what went wrong")
    return 3

codes = []
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if not child:
        end_process(main)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(codes)
"""


def _ended(how: str, times: int) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, how, str(times)],
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=110, check=True,
    )  # fmt: skip


def test_a_process_whose_collectives_are_hardly_over_leaves_with_its_exit_code() -> None:
    *said, codes = _ended("return", 30).stdout.splitlines()
    assert codes == str([3] * 30)
    assert said == ["said"] * 30


def test_one_that_fails_leaves_with_its_traceback_and_1() -> None:
    ended = _ended("raise", 1)
    assert ended.stdout.splitlines() == ["said", "[1]"]
    assert ended.stderr.rstrip().endswith("ValueError: what went wrong")
