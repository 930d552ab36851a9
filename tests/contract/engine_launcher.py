"""python -m tests.contract.engine_launcher ENGINE RUN_DIR: starts tasks by an engine, prints their logs, waits to be killed."""

import asyncio
import json
import sys
from pathlib import Path

from sluice.config.schema import LaunchConfig
from sluice.launch.engines.choice import engine_of
from tests.contract.engine_tasks import SLEEPS, shell


async def main(name: str, run_dir: Path) -> None:
    """Never returns."""
    engine = engine_of(LaunchConfig.model_validate({"engine": name}))
    await engine.open(run_dir=run_dir, node_timeout_s=30)
    logs = [run_dir / f"orphan-{index}.log" for index in range(2)]
    for log in logs:
        await engine.start(shell(log.stem, SLEEPS), log_path=log, waits=print)
    print(json.dumps([str(log) for log in logs]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
