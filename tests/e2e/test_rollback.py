"""A real run goes back to a checkpoint while it is up, and once more where it lies; its ledger closes."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.verdict import problems
from tests.e2e.conftest import ROOT, Run, until

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(600)]

OFTEN_SAVED = ("learner.checkpoint_every_steps=2", "learner.keep_checkpoints=50")
SMALL = ("data.train_batch_size=4", "learner.mini_batch_size=4", "rollout.engine=transformers")
TINY = ("eval.prompts=16", "eval.n=2", "eval.every_steps=0", *OFTEN_SAVED, *SMALL)


def lines(run: Run, name: str) -> list[dict]:
    path = run.run_dir / name
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""  # the last line may be in the making
    return [json.loads(line) for line in whole.splitlines()]


def steps_since_rollback(run: Run) -> int:
    kinds = [line["kind"] for line in lines(run, "metrics.jsonl")]
    return kinds[::-1].index("rollback") if "rollback" in kinds else -1


def roll_back(*where: str) -> str:
    command = [sys.executable, "-m", "sluice.cli.main", "rollback", "--to", "step-4", "--yes", *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_is_rolled_back_while_it_is_up_and_once_more_where_it_lies(start_run) -> None:
    run = start_run("run.total_steps=1000", *TINY)
    until(run, lambda: len(lines(run, "metrics.jsonl")) >= 8)
    address = re.search(r"serving\s+address=(\S+)", (run.run_dir / "logs" / "coordinator.log").read_text())
    assert address is not None
    assert "as lineage b" in roll_back("--coordinator", address[1])
    until(run, lambda: steps_since_rollback(run) >= 3)
    run.process.send_signal(signal.SIGINT)
    assert run.wait(timeout_s=90) == 130, run.output()
    said = roll_back("--run-dir", str(run.run_dir))
    assert "back from step" in said
    assert "as lineage c" in said
    again = start_run("run.total_steps=6", *TINY)
    assert again.wait(timeout_s=300) == 0, again.output()
    groups = json.loads((run.run_dir / "summary.json").read_text())["groups"]
    made = lines(run, "rollbacks.jsonl")
    assert [(account["to"], account["lineage"]) for account in made] == [(4, "b"), (4, "c")]
    assert groups["rollback"] == sum(sum(account["groups"].values()) for account in made)
    assert problems(run.run_dir) == []
    state = json.loads(Path(run.run_dir, "checkpoints", "step-6", "state.json").read_text())
    assert state["lineage"] == "c"
    assert run.left_behind() == []
