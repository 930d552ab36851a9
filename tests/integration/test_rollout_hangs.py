"""A rollout whose engine hangs ends by itself, with the engine's own processes, stopped ones too."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sluice.testing import assert_eventually_blocking

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent

CODE = """
import asyncio, multiprocessing, os, signal, threading, time
from services.rollout.engine_loop import EngineLoop
from services.rollout.engine_watch import end_process, hung_s
from sluice.clock import SystemClock
from tests.unit.rollout.fake_engine import FakeEngine

async def main():
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    worker.start()
    os.kill(worker.pid, signal.SIGSTOP)
    print(worker.pid, flush=True)
    loop = EngineLoop(FakeEngine(), max_samples=1)
    loop.start()
    asyncio.ensure_future(loop._call(a_step_that_hangs))
    end_process(await hung_s(loop, limit_s=0.5, clock=SystemClock()), limit_s=0.5)

def a_step_that_hangs():
    threading.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_an_engine_that_hangs_ends_the_process_and_what_it_started(tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(CODE)
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    )
    try:
        said, stacks = process.communicate(timeout=60)
    finally:
        process.kill()
    worker = int(said.split()[0])
    try:
        assert process.returncode == 1
        assert "engine_hung" in said
        assert "rollout.step_timeout_s" in said
        assert "a_step_that_hangs" in stacks
        assert_eventually_blocking(lambda: not psutil.pid_exists(worker), what="the stopped worker is gone")
    finally:
        if psutil.pid_exists(worker):
            psutil.Process(worker).send_signal(signal.SIGKILL)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}
