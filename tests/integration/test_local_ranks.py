"""The parent of the ranks of one machine, with shells as ranks: one of them fails, or the parent is told to stop."""

import json
import signal
import subprocess
import sys

import psutil
import pytest

from tests.integration.service_process import ENVIRON, ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

PARENT = """
import json, os, sys
os.posix_spawnp("true", ["true"], os.environ)  # a child of no rank
from services.learner.distributed import local_ranks
local_ranks.LOST_S = 0.3
run = lambda script: local_ranks.run_ranks(["sh", "-c", script], count=2)
print("codes", json.dumps([run(script) for script in sys.argv[1:-1]]), flush=True)
sys.exit(run(sys.argv[-1]))
"""
PLACE = 'test "$RANK/$WORLD_SIZE/$LOCAL_WORLD_SIZE" = "$LOCAL_RANK/2/2" -a "$MASTER_PORT" -gt 0'
STORE = 'if test "$RANK" = 0; then test -S "/proc/self/fd/$SLUICE_STORE_FD"; else test -z "$SLUICE_STORE_FD"; fi'
FIRST_FAILS = "test $RANK = 1 || exit {}; exec sleep 100"
KILLED_BESIDE_A_DEAF_ONE = "trap '' TERM; test $RANK = 1 || { sleep 0.2; kill -9 $$; }; exec sleep 100"
LIVES = "echo rank $$; exec sleep 100"


def test_ranks_know_their_places_and_end_together_with_the_code_of_the_one_that_failed() -> None:
    scripts = {
        f"{PLACE} && {STORE}": 0,
        FIRST_FAILS.format(2): 2,
        FIRST_FAILS.format(5): 1,
        "exit $RANK": 1,
        KILLED_BESIDE_A_DEAF_ONE: 1,
    }
    command = [sys.executable, "-c", PARENT, *scripts, LIVES]
    with subprocess.Popen(command, env=ENVIRON, cwd=ROOT, text=True, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            codes = next(line.removeprefix("codes ") for line in parent.stdout if line.startswith("codes "))
            assert json.loads(codes) == list(scripts.values())
            ranks = [psutil.Process(int(parent.stdout.readline().split()[1])) for _ in range(2)]
            parent.send_signal(signal.SIGTERM)
            assert parent.wait(30) == 128 + signal.SIGTERM
            assert not any(rank.is_running() for rank in ranks)
        finally:
            parent.kill()
