"""A whole run graded by examples/reward-typescript: the run's own reward services are none."""

import json
import os
import re
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import until
from tests.typescript_example import typescript_service

pytestmark = [pytest.mark.e2e, pytest.mark.needs("typescript-example"), pytest.mark.timeout(300)]

STEPS = 4


def test_a_run_is_graded_by_it_even_when_the_coordinator_is_killed(start_run, tmp_path: Path) -> None:
    run = start_run(
        "launch.reward_replicas=0",
        "rollout.engine=transformers",
        f"run.total_steps={STEPS}",
        *("data.train_batch_size=4", "learner.mini_batch_size=4", "learner.checkpoint_every_steps=2"),
        *("eval.every_steps=0", "eval.prompts=8", "eval.n=1", "eval.greedy=false"),
    )
    waits = re.compile(r"launch\.reward_replicas is 0: waiting 300 s for a reward to register with (\S+)")
    until(run, lambda: waits.search(run.output()) is not None)
    found = waits.search(run.output())
    assert found is not None
    arguments = ("--coordinator", found[1], "--service-id", "graders-0")
    with typescript_service(tmp_path / "node.log", *arguments) as service:
        metrics = run.run_dir / "metrics.jsonl"
        until(run, lambda: metrics.exists() and '"kind":"step"' in metrics.read_text())
        assert run.pids("-m", "services.reward") == []
        os.kill(run.pids("-m", "services.coordinator")[0], signal.SIGKILL)
        assert run.wait(timeout_s=180) == 0, run.output()
        assert service.end() == 0, service.output()
    registered = service.said("registered")
    assert len(registered) >= 2, "again with the coordinator that was started anew"
    assert {line["serviceId"] for line in registered} == {"graders-0"}

    summary = json.loads((run.run_dir / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["groups"]["closed"] is True
    rows = pq.read_table(run.run_dir / "ledger").to_pylist()
    completions = [completion for row in rows if row["term"] == "trained" for completion in row["completions"]]
    assert len(completions) == STEPS * 4 * 8
    for completion in completions:
        assert completion["grader"] == "number-typescript 1"
        assert completion["shaped_reward"] == completion["raw_score"] + completion["overlong_penalty"]
        # DAPO eq. 13 with the recipe's buffer: 24 of 72 tokens, factor 1.
        assert completion["overlong_penalty"] == pytest.approx(-min(max(completion["tokens"] - 48, 0) / 24, 1))
    assert any(completion["overlong_penalty"] < 0 for completion in completions)
    assert run.left_behind() == []
